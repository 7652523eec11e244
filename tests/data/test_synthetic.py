"""Synthetic users: transfer between domains, sequels, titles, times, and how predictable the next item is."""

import inspect

import numpy as np
import pytest

from jaxrec.data.generators.synthetic import synthetic_data


def genres(data):
  """The genre in the title of every event."""
  titles = data.item_titles()
  names = np.array([title.partition("(")[2].rstrip(")") for title in titles])
  return names[data.item_id]


def share_of_transfers(data):
  """How often an event in domain 2 has the genre of the user's latest event in domain 1."""
  genre, hits = genres(data), []
  for user in range(data.num_users):
    latest = None
    for event in range(data.offsets[user], data.offsets[user + 1]):
      if data.domain_id[event] == 1:
        latest = genre[event]
      elif latest is not None:
        hits.append(genre[event] == latest)
  return np.mean(hits)


def test_the_same_seed_gives_the_same_data():
  one, same, other = (synthetic_data(num_users=20, num_items=48, seed=seed) for seed in (3, 3, 4))
  for name in ("item_id", "domain_id", "timestamp", "action", "offsets"):
    np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
  assert one.item_titles() == same.item_titles()
  assert one.item_id.tolist() != other.item_id.tolist()


def test_domain_one_predicts_the_genre_of_the_others_only_with_transfer():
  full, none = (synthetic_data(num_users=200, num_items=96, transfer=transfer) for transfer in (1.0, 0.0))
  assert share_of_transfers(full) == 1.0
  assert share_of_transfers(none) < 0.15  # 12 genres; by chance 1/12.


def test_half_the_transfer_gives_a_share_in_between():
  half = share_of_transfers(synthetic_data(num_users=200, num_items=96, transfer=0.5))
  assert 0.5 < half < 0.65


def test_sequels_follow_the_latest_title_of_their_domain_and_genre():
  data = synthetic_data(num_users=100, num_items=960, sequel=1.0)
  number_of = np.array([0] + [int(title.split()[1]) for title in data.item_titles()[1:]])
  genre, latest, seen = genres(data), {}, set()
  for user in range(data.num_users):
    for event in range(data.offsets[user], data.offsets[user + 1]):
      kind = (user, data.domain_id[event], genre[event])
      number = number_of[data.item_id[event]]
      if kind in latest and latest[kind] < 40 and (*kind, latest[kind] + 1) not in seen:  # 40 titles per kind.
        assert number == latest[kind] + 1
      latest[kind] = number
      seen.add((*kind, number))


def test_no_title_repeats_while_others_of_its_domain_and_genre_are_left():
  data = synthetic_data(num_users=200, num_items=960, concentration=1.0)
  kind_of = np.char.add(genres(data), data.domain_id.astype(str))
  for user in range(data.num_users):
    items, kinds = data.item_id[data.user_slice(user)], kind_of[data.user_slice(user)]
    for kind in set(kinds):
      of_kind = items[kinds == kind][:40]
      assert len(set(of_kind)) == len(of_kind)


def test_titles_name_the_domain_and_the_genre():
  data = synthetic_data(num_users=5, num_items=96, num_domains=2)
  titles, domain = data.item_titles(), data.item_domain()
  assert {title.split()[0] for title, d in zip(titles, domain, strict=True) if d == 2} == {"film"}
  assert sorted(titles[1:])[0] == "book 1 (comedy)"
  assert len(set(titles)) == 97


def test_events_have_the_domain_of_their_items():
  data = synthetic_data(num_users=50, num_items=144, num_domains=3)
  np.testing.assert_array_equal(data.item_domain()[data.item_id], data.domain_id)
  assert set(data.domain_id) == {1, 2, 3}


def test_users_have_enough_events_in_time_order_with_ratings():
  data = synthetic_data(num_users=300, num_items=96, mean_events=20.0)
  lengths = np.diff(data.offsets)
  assert lengths.min() >= 6 and abs(lengths.mean() - 20) < 3
  inside = np.ones(data.num_events, bool)
  inside[data.offsets[:-1]] = False
  assert (np.diff(data.timestamp)[inside[1:]] > 0).all()
  assert data.action.min() >= 1 and data.action.max() <= 5


def test_popularity_alone_predicts_little():
  data = synthetic_data(num_users=500)
  counts = np.bincount(data.item_id[data.split == 0], minlength=data.num_items + 1)
  top = np.argsort(-counts)[:10]
  assert np.isin(data.item_id[data.split == 2], top).mean() < 0.1


def test_the_next_title_of_the_latest_genre_predicts_much():
  data = synthetic_data(num_users=500)
  item_of = {title: item for item, title in enumerate(data.item_titles())}
  hits = []
  for user in range(data.num_users):
    *_, before, test = data.item_id[data.user_slice(user)]
    domain, number, genre = data.item_titles()[before].split()
    hits.append(item_of.get(f"{domain} {int(number) + 1} {genre}") == test)
  assert np.mean(hits) > 0.2


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"num_items": 100}, "num_items=100 must be a multiple of num_domains . num_genres = 24.*try 96"),
    ({"num_users": 0}, "num_users=0 must be at least 1"),
    ({"transfer": 1.2}, "transfer=1.2 must be between 0 and 1"),
    ({"mean_events": 3.0}, "mean_events=3.0 must be at least 6"),
    ({"concentration": 0.0}, "concentration=0.0 must be above 0"),
  ],
)
def test_fields_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    synthetic_data(**options)


def test_the_signature_names_the_fields():
  assert {"num_users", "transfer", "seed"} < set(inspect.signature(synthetic_data).parameters)


def test_an_unknown_field_is_refused():
  with pytest.raises(TypeError, match="num_user"):
    synthetic_data(num_user=3)
