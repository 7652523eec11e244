"""One domain of multi-domain data: what stays the same, what is dropped, and what is evaluated."""

import numpy as np
import pytest
import tiny_run

from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.data.prepared import PreparedData
from jaxrec.data.single_domain import domains_apart, held_out_users, only_domain
from jaxrec.train.config import check_config
from jaxrec.train.sequence_task import train_users

# user: (item, domain, split) of each event. Items 1..3 are books, 4..6 are films.
USERS = [
  [(1, 1, 0), (4, 2, 0), (2, 1, 0), (5, 2, 1), (3, 1, 2)],  # validated on films, tested on books
  [(4, 2, 0), (1, 1, 0), (5, 2, 0), (2, 1, 1), (6, 2, 2)],  # the other way round
  [(1, 1, 0), (2, 1, 0)],  # for training only
  [(4, 2, 0), (1, 1, 0), (5, 2, 2), (2, 1, 2), (3, 1, 2)],  # several test events, the first one a film
  [(4, 2, 0), (5, 2, 0)],  # no book
]


@pytest.fixture
def data():
  item, domain, split = zip(*[event for events in USERS for event in events], strict=True)
  return PreparedData.from_columns(
    item_id=item, domain_id=domain, split=split, user=[u for u, events in enumerate(USERS) for _ in events],
    timestamp=np.arange(len(item)), domain_names=["books", "films"], titles=list("abcdef"), num_items=6,
  )  # fmt: skip


def events_of(data, user):
  here = data.user_slice(user)
  return list(zip(data.item_id[here].tolist(), data.split[here].tolist(), strict=True))


def targets(data, split):
  """Target item of each evaluated user."""
  batches = evaluation_batches(data, split, batch_size=8, max_length=4)
  pairs = [(u, i) for batch in batches for u, i in zip(batch.user.tolist(), batch.target_item.tolist(), strict=True)]
  return {user: item for user, item in sorted(pairs) if user >= 0}


def test_ids_names_and_times_stay_and_splits_stay_with_their_events(data):
  books = only_domain(data, "books")
  assert (books.num_users, books.num_items, books.domain_names) == (5, 6, ("books", "films"))
  assert books.item_titles() == data.item_titles()
  assert books.item_domain().tolist() == data.item_domain().tolist()
  assert events_of(books, 0) == [(1, 0), (2, 0), (3, 2)]
  assert books.timestamp[books.user_slice(0)].tolist() == [0, 2, 4]
  assert events_of(books, 4) == []
  assert set(books.domain_id.tolist()) == {1}


@pytest.mark.parametrize("split", [1, 2])
def test_every_target_is_a_target_of_exactly_one_domain(data, split):
  whole, domain = targets(data, split), data.item_domain()
  found = {}
  for domain_id, name in enumerate(data.domain_names, 1):
    ranked = targets(only_domain(data, name), split)
    assert ranked == {user: item for user, item in whole.items() if domain[item] == domain_id}
    found |= ranked
  assert found == whole


def test_a_target_without_a_history_in_its_domain_is_not_evaluated():
  data = PreparedData.from_columns(user=[0] * 3 + [1] * 3, item_id=[1, 1, 2, 2, 2, 2], domain_id=[1, 1, 2, 2, 2, 2])
  assert targets(data, 2) == {0: 2, 1: 2}
  assert targets(only_domain(data, "domain 2"), 2) == {1: 2}


def test_later_events_of_a_split_are_dropped_where_its_first_is_elsewhere(data):
  books = only_domain(data, "books")
  assert events_of(books, 3) == [(1, 0)]
  assert books.meta["counts"]["dropped_by_only_domain"] == {"in other domains": 9, "held out behind one": 2}


def test_users_held_out_in_another_domain_are_still_held_out(data):
  config = tiny_run.get_config()
  config.data.train_users = "without_held_out"
  for subset in (data, only_domain(data, "books"), only_domain(data, "films")):
    assert held_out_users(subset, 0).tolist() == [0, 1, 3]
  assert train_users(config, only_domain(data, "books"), 0) == (2,)
  assert train_users(config, only_domain(data, "films"), 1) == (4,)


def test_held_out_users_survive_saving(data, tmp_path):
  saved = only_domain(data, "films").save(tmp_path / "films")
  assert held_out_users(saved, 1).tolist() == [0, 1, 3]
  with pytest.raises(ValueError, match="holds only the domain 'films'"):
    only_domain(saved, "books")


def test_an_unknown_domain_names_the_known_ones(data):
  with pytest.raises(ValueError, match="domain='music' is unknown; the data has 'books', 'films'"):
    only_domain(data, "music")


def test_a_domain_without_training_events_is_refused():
  data = PreparedData.from_columns(user=[0] * 4, item_id=[1, 1, 1, 2], domain_id=[1, 1, 1, 2])
  with pytest.raises(ValueError, match="domain='domain 2' has no training event"):
    only_domain(data, "domain 2")


def test_a_single_domain_has_no_cross_domain_objective():
  config = tiny_run.get_config()
  config.data.only_domain, config.multi_objective.objectives = "film", ("cross_domain_attention",)
  with pytest.raises(ValueError, match="config.data.only_domain='film' leaves no attention across domains"):
    check_config(config)


@pytest.mark.parametrize("split", [1, 2])
def test_histories_apart_have_every_target_once(data, split):
  found = targets(domains_apart(data), split)
  assert {user // 2: item for user, item in found.items()} == targets(data, split)
  assert all(data.item_domain()[item] == user % 2 + 1 for user, item in found.items())


def test_histories_apart_are_those_of_each_domain(data):
  apart = domains_apart(data)
  for number, name in enumerate(data.domain_names):
    one = only_domain(data, name)
    for user in range(data.num_users):
      here, there = apart.user_slice(2 * user + number), one.user_slice(user)
      for column in ("item_id", "domain_id", "timestamp", "action", "split"):
        assert getattr(apart, column)[here].tolist() == getattr(one, column)[there].tolist()
  assert apart.users["raw_id"].to_list()[:3] == ["0 (books)", "0 (films)", "1 (books)"]
  assert apart.users["user"].to_list() == list(range(10)) and apart.meta["num_events"] == len(apart.item_id)


def test_no_history_apart_of_a_held_out_user_is_trained_on_without_them(data):
  assert held_out_users(domains_apart(data), 0).tolist() == [0, 1, 2, 3, 6, 7]


def test_histories_are_taken_apart_once_and_where_there_are_several_domains(data):
  one = PreparedData.from_columns(user=[0] * 3, item_id=[1, 2, 3])
  for wrong in (one, domains_apart(data), only_domain(data, "books")):
    with pytest.raises(ValueError, match="taken apart by domain once, where there are several"):
      domains_apart(wrong)
