"""Recommendations for users of prepared data, by a model whose scores are known."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.prepared import PreparedData
from jaxrec.serving.recommend import describe, domain_id, history_of, recommend
from jaxrec.train.config import default_config

# Six items: 1, 2, 3 are books, 4, 5, 6 are films.
ITEM_DOMAIN = np.array([0, 1, 1, 1, 2, 2, 2])
EVENTS = {"ann": [1, 4, 2, 5], "bob": [6, 5, 4], "cyd": [3]}


class NextItem(nn.Module):
  """Ranks the items in cyclic order after the last item: after 4 come 5, 6, 1, 2, 3."""

  num_items: int = 6

  def __call__(self, batch, deterministic=True):
    distance = (
      jnp.arange(self.num_items) - batch.item_id[..., None]
    ) % self.num_items  # [B, N, V], 0 for the next item
    scores = -distance.astype(jnp.float32)
    return jnp.concatenate([jnp.zeros_like(scores[..., :1]), scores], axis=-1)  # [B, N, V1]

  def item_vectors(self):
    return jnp.eye(self.num_items + 1)


@pytest.fixture
def data():
  items = np.concatenate(list(EVENTS.values()))
  return PreparedData.from_columns(
    offsets=np.cumsum([0, *map(len, EVENTS.values())]),
    item_id=items,
    domain_id=ITEM_DOMAIN[items],
    timestamp=86_400 * np.arange(len(items)),
    domain_names=("books", "films"),
    item_domain=ITEM_DOMAIN,
    titles=["Emma", "Ulysses", "Dune", "Alien", "Brazil", "Heat"],
    raw_users=list(EVENTS),
  )


def _recommend(data, users, **options):
  config = default_config()
  config.data.max_length = 8
  config.eval.batch_size = 2
  return recommend(NextItem(), {}, data, config, users, **options)


def test_items_follow_the_last_event_of_the_whole_history(data):
  (found,) = _recommend(data, [2], k=3)
  assert found.items == [4, 5, 6]
  assert found.scores == [0.0, -1.0, -2.0]


def test_seen_items_are_excluded_unless_exclude_seen_is_false(data):
  (found,) = _recommend(data, [0], k=6)
  assert found.items == [6, 3]
  (found,) = _recommend(data, [0], k=6, exclude_seen=False)
  assert found.items == [6, 1, 2, 3, 4, 5]


def test_recommendations_can_be_limited_to_a_domain(data):
  assert [found.items for found in _recommend(data, [1, 2], k=2, domain="books")] == [[1, 2], [1, 2]]
  assert [found.items for found in _recommend(data, [1, 2], k=2, domain="films")] == [[], [4, 5]]


def test_results_are_in_the_order_of_the_given_users(data):
  assert [found.user for found in _recommend(data, [2, 0, 1])] == ["cyd", "ann", "bob"]
  assert [found.items[0] for found in _recommend(data, [2, 0, 2])] == [4, 6, 4]


def test_a_held_out_event_is_not_read_and_gets_its_rank(data):
  # Ann's history is then 1, 4, 2 and the order after 2 is 3, 4, 5, 6, 1, 2; 4 is seen, so 5 is second.
  (found,) = _recommend(data, [0], k=3, hold_out=True)
  assert found.items == [3, 5, 6]
  assert (found.held_out, found.held_out_rank, len(found.history)) == (5, 2, 3)


def test_a_user_without_a_test_event_cannot_have_it_held_out(data):
  with pytest.raises(ValueError, match="user 'cyd' has no test event to hold out"):
    _recommend(data, [2], hold_out=True)


def test_an_unknown_domain_is_refused_with_the_known_ones(data):
  with pytest.raises(ValueError, match="domain='music' is unknown; the data has 'books', 'films'"):
    domain_id(data, "music")


def test_an_unknown_user_is_refused_with_examples(data):
  with pytest.raises(ValueError, match="user 'eve' is not in the prepared data .*'ann'"):
    data.user_index("eve")


def test_a_user_outside_the_data_is_refused(data):
  with pytest.raises(ValueError, match=r"user=3 is outside 0\.\.2"):
    _recommend(data, [3])


def test_an_empty_list_of_users_is_refused(data):
  with pytest.raises(ValueError, match="users is empty"):
    _recommend(data, [])


def test_the_history_of_a_user_ends_before_the_test_event(data):
  assert data.item_id[history_of(data, 0, hold_out=False)].tolist() == [1, 4, 2, 5]
  assert data.item_id[history_of(data, 0, hold_out=True)].tolist() == [1, 4, 2]


def test_a_recommendation_reads_as_titles(data):
  (found,) = _recommend(data, [0], k=2, hold_out=True)
  lines = describe(data, found, history=2).splitlines()
  assert lines[0] == "User ann"
  assert lines[1].split("  ")[1] == "2 of 3 events, newest first"
  assert lines[2].split() == ["1970-01-03", "books:", "Ulysses", "1.", "0.000", "books:", "Dune"]
  assert lines[3].split()[:7] == ["1970-01-02", "films:", "Alien", "2.", "-2.000", "films:", "Brazil"]
  assert lines[3].endswith(" <- chosen next")
  assert lines[4] == "  chosen next: films: Brazil, rank 2"


class FirstOfTargetDomain(NextItem):
  """Ranks the first item of the target domain highest."""

  needs_target_domain = True

  def __call__(self, batch, deterministic=True):
    return jnp.eye(self.num_items + 1)[1 + 3 * (batch.target_domain - 1)]  # [B, N, V1]


def _recommend_first(data, **options):
  config = default_config()
  config.data.max_length = 8
  return recommend(FirstOfTargetDomain(), {}, data, config, [0], k=1, exclude_seen=False, **options)[0].items


def test_a_model_that_needs_a_target_domain_is_given_it(data):
  assert _recommend_first(data, domain="books") == [1]
  assert _recommend_first(data, domain="films") == [4]
  assert _recommend_first(data, domain="books", hold_out=True) == [1]  # Ann's test event is a film.
  assert _recommend_first(data, hold_out=True) == [4]


def test_a_model_that_needs_a_target_domain_is_refused_without_one(data):
  with pytest.raises(ValueError, match="needs a target domain; give domain=, one of books, films"):
    _recommend_first(data)


class WithReservedRows(NextItem):
  """Has three rows for items that the data does not have yet, which score highest."""

  num_items: int = 9

  def __call__(self, batch, deterministic=True):
    scores = jnp.arange(self.num_items + 1.0)  # [V1]
    return jnp.broadcast_to(scores, (*batch.item_id.shape, self.num_items + 1))  # [B, N, V1]


@pytest.mark.parametrize("domain", [None, "films"])
def test_rows_of_items_that_do_not_exist_yet_are_no_candidates(data, domain):
  config = default_config()
  config.data.max_length = 8
  (found,) = recommend(WithReservedRows(), {}, data, config, [0], k=8, exclude_seen=False, domain=domain)
  assert found.items == ([6, 5, 4, 3, 2, 1] if domain is None else [6, 5, 4])
  (held_out,) = recommend(WithReservedRows(), {}, data, config, [0], exclude_seen=False, hold_out=True)
  assert held_out.held_out_rank == 2  # Item 5 of 6.


def test_a_model_of_fewer_items_than_the_data_is_refused(data):
  with pytest.raises(ValueError, match="the model has 4 items, the data 6: they don't belong together"):
    recommend(NextItem(num_items=4), {}, data, default_config(), [0])


def test_titles_and_ids_reach_the_terminal_escaped():
  data = PreparedData.from_columns(
    user=[0, 0, 0, 1, 1], item_id=[1, 2, 3, 2, 2], num_items=4,
    titles=["\x1b]0;OWNED\x07\x1b[31mred", "a\nUser 99", "Amélie\xa0!", ""],
    raw_items=["i1", "i2", "i3", "\u202e4"], raw_users=["ann\r\x1b[2J", "bob"],
  )  # fmt: skip
  config = default_config()
  config.data.max_length = 8
  (found,) = recommend(NextItem(num_items=4), {}, data, config, [0], k=4, exclude_seen=False)
  text = describe(data, found)
  assert "\x1b" not in text and "\x07" not in text and "\r" not in text and "\u202e" not in text
  assert len(text.splitlines()) == 6
  assert text.startswith("User ann\\r\\x1b[2J\n")
  assert all(shown in text for shown in (r"\x1b]0;OWNED\x07\x1b[31mred", r"a\nUser 99", "Amélie\xa0!", r"\u202e4"))
