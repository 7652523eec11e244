"""Candidates for click-through prediction: targets, negatives, histories, order, resuming, real rows."""

import numpy as np
import pytest

from jaxrec.data.batches import candidates
from jaxrec.data.batches.candidates import (
  CandidateData,
  CandidateOptions,
  TrainingCandidates,
  held_out_candidates,
  item_categories,
  training_candidates,
)
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import TEST, TRAIN, VALIDATION, PreparedData

OPTIONS = CandidateOptions(history_length=4, min_events=8, targets_per_user=3, seed=1)


def users_with_events(lengths, num_items=50, seed=0):
  """Users with given numbers of events; items drawn by a power law."""
  rng = np.random.default_rng(seed)
  weights = 1 / np.arange(1, num_items + 1)
  items = rng.choice(num_items, sum(lengths), p=weights / weights.sum()) + 1
  return PreparedData.from_columns(
    user=np.repeat(np.arange(len(lengths)), lengths),
    item_id=items,
    domain_id=items % 3 + 1,
    num_items=num_items,
    item_domain=[0, *(np.arange(1, num_items + 1) % 3 + 1)],
  )


def all_of(examples, split):
  return examples.batch(split, np.arange(examples.num_examples(split)))


def test_the_targets_of_a_user_are_those_of_the_paper():
  data = PreparedData.from_columns(user=[0] * 210 + [1] * 210, item_id=np.arange(1, 421))
  examples = CandidateData(data, CandidateOptions())
  clicked = [[int(i) for i in all_of(examples, split).item[::3]] for split in (TRAIN, VALIDATION, TEST)]
  assert clicked[0][:19] == list(range(211 - 93, 209, 5))
  assert clicked[1:] == [[209, 419], [210, 420]]
  batch = all_of(examples, TEST)
  assert batch.history_item[0].tolist() == list(range(10, 210))
  assert batch.history_age[0].tolist() == list(range(200, 0, -1))


def test_several_targets_of_a_user_can_be_held_out():
  data = PreparedData.from_columns(user=[0] * 12 + [1] * 9, item_id=np.arange(1, 22))
  options = {"history_length": 3, "min_events": 8, "held_out_targets": 2, "target_stride": 1, "negatives": 0}
  examples = CandidateData(data, CandidateOptions(first_target=5, **options))
  clicked = [all_of(examples, split).item.tolist() for split in (TRAIN, VALIDATION, TEST)]
  assert clicked == [[2, 3, 4, 5, 6, 7, 8, 14, 15, 16, 17], [9, 10, 18, 19], [11, 12, 20, 21]]
  assert all_of(examples, TEST).history_item.tolist() == [[8, 9, 10], [9, 10, 11], [17, 18, 19], [18, 19, 20]]
  assert np.flatnonzero(examples.training_clicks()).tolist() == [*range(1, 9), *range(13, 18)]
  with pytest.raises(ValueError, match="first_target=4 must be above 4: a user's latest options.held_out_targets=2"):
    CandidateData(data, CandidateOptions(first_target=4, **options))


def test_the_last_two_events_of_a_user_are_no_training_clicks():
  data = PreparedData.from_columns(user=[0] * 4 + [1] * 3, item_id=[1, 2, 3, 1, 3, 3, 2])
  assert CandidateData(data, CandidateOptions(min_events=3)).training_clicks().tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(("lengths", "is_warned"), [([9, 9, 2, 2, 2], True), ([9, 9, 9, 2, 2], False)])
def test_a_minimum_that_leaves_out_most_users_is_warned_about(monkeypatch, lengths, is_warned):
  told = []
  monkeypatch.setattr(candidates.logging, "warning", lambda text, *values: told.append(text % values))
  CandidateData(users_with_events(lengths), OPTIONS)
  expected = ["3 of 5 users have fewer than min_events=8 events and are left out; lower config.data.min_events"]
  assert [text.removesuffix(" for short histories") for text in told] == expected * is_warned


def test_a_history_ends_before_its_target_and_never_reaches_another_user():
  data = PreparedData.from_columns(user=[0] * 8 + [1] * 8, item_id=np.arange(1, 17))
  batch = all_of(CandidateData(data, CandidateOptions(history_length=9, min_events=8, negatives=1)), TEST)
  assert batch.history_item[0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7]
  assert batch.history_item[2].tolist() == [0, 0, 9, 10, 11, 12, 13, 14, 15]
  assert batch.history_age[2].tolist() == [0, 0, 7, 6, 5, 4, 3, 2, 1]
  assert batch.history_category[2].tolist() == [0, 0, *[1] * 7]


def test_a_negative_was_never_clicked_by_its_user_and_has_the_history_of_its_positive():
  data = users_with_events([30, 9, 200, 12])
  batch = all_of(CandidateData(data, OPTIONS), TRAIN)
  assert batch.label.tolist() == [1, 0, 0] * (len(batch.label) // 3)
  for row in np.flatnonzero(batch.label == 0):
    assert batch.item[row] not in data.item_id[data.user_slice(int(batch.user_id[row]))]
    assert batch.history_item[row].tolist() == batch.history_item[row - row % 3].tolist()
  assert batch.category.tolist() == (batch.item % 3 + 1).tolist()


def test_negatives_are_drawn_in_proportion_to_clicks():
  """Item 1 has three events for each event of item 2; users who clicked neither get 2,000 negatives."""
  popular = [1, 1, 1, 2] * 50
  data = PreparedData.from_columns(
    user=np.r_[np.zeros(200, int), np.repeat(np.arange(1, 1001), 3)], item_id=np.r_[popular, np.full(3000, 3)]
  )
  examples = CandidateData(data, CandidateOptions(history_length=2, min_events=3, targets_per_user=1))
  item = all_of(examples, TEST).item.reshape(-1, 3)[1:, 1:]
  assert np.isin(item, (1, 2)).all()
  assert abs((item == 1).mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / item.size)


def test_negatives_depend_on_the_seed_and_not_on_the_batch():
  data = users_with_events([40] * 20)
  examples = CandidateData(data, OPTIONS)
  whole = all_of(examples, TRAIN).item
  rows = np.array([5, 50, 3, 100])
  assert examples.batch(TRAIN, rows).item.tolist() == whole[rows].tolist()
  other = CandidateData(data, CandidateOptions(**{**vars(OPTIONS), "seed": 2}))
  assert (all_of(other, TRAIN).item != whole).any()


@pytest.mark.parametrize("split, name, other", [(TRAIN, "seed", "held_out_seed"), (TEST, "held_out_seed", "seed")])
def test_the_negatives_of_training_and_of_evaluation_have_a_seed_each(split, name, other):
  data = users_with_events([40] * 20)

  def items(**seeds):
    return all_of(CandidateData(data, CandidateOptions(**{**vars(OPTIONS), **seeds})), split).item.tolist()

  assert items(**{other: 7}) == items() != items(**{name: 7})


def test_negatives_may_be_items_that_the_user_clicked_where_they_are_not_excluded():
  data = PreparedData.from_columns(user=[0] * 8, item_id=[1, 2] * 4)  # Who clicked everything.
  options = CandidateOptions(**{**vars(OPTIONS), "exclude_clicked": False})
  assert set(all_of(CandidateData(data, options), TRAIN).item[1:].tolist()) <= {1, 2}


@pytest.mark.parametrize("split", [TRAIN, VALIDATION, TEST])
def test_negatives_of_a_split_are_targets_of_the_same_split(split):
  data = users_with_events([40] * 20)
  options = CandidateOptions(**{**vars(OPTIONS), "negatives_from": "split", "exclude_clicked": False, "negatives": 3})
  examples = CandidateData(data, options)
  batch = all_of(examples, split)
  assert set(batch.item[batch.label == 0].tolist()) <= set(data.item_id[examples.targets(split)].tolist())
  assert {TRAIN: 0, VALIDATION: 3, TEST: 3}[split] <= len(set(batch.item[batch.label == 0].tolist()))


def test_held_out_negatives_are_as_often_new_as_clicked_items():
  """Every event is of an item of its own, so that no held-out item has a training event."""
  data = PreparedData.from_columns(user=np.repeat(np.arange(30), 12), item_id=np.arange(360) + 1)

  def known(negatives_from):
    options = CandidateOptions(**{**vars(OPTIONS), "negatives_from": negatives_from, "min_events": 5})
    examples = CandidateData(data, options)
    batch = all_of(examples, TEST)
    return (examples.training_clicks()[batch.item[batch.label == 0]] > 0).mean()

  assert known("split") == 0 and known("all") > 0.7


def test_an_unknown_source_of_negatives_is_refused():
  with pytest.raises(ValueError, match="options.negatives_from='none' is not one of"):
    CandidateData(users_with_events([40]), CandidateOptions(negatives_from="none"))


def test_short_users_and_targets_without_history_are_counted():
  examples = CandidateData(users_with_events([30, 7, 9, 10]), OPTIONS)
  assert examples.counts == {
    "users": 3, "users_too_short": 1, "training_targets": 7, "training_targets_without_history": 2
  }  # fmt: skip
  with pytest.raises(ValueError, match="no user has options.min_events=99 events; the longest history has 10"):
    CandidateData(users_with_events([10]), CandidateOptions(min_events=99))


def test_a_user_who_clicked_everything_is_named_in_the_error():
  data = PreparedData.from_columns(user=[0] * 8, item_id=[1, 2] * 4)
  with pytest.raises(ValueError, match="found no item that user 0 never clicked"):
    all_of(CandidateData(data, OPTIONS), TEST)


def test_every_example_occurs_once_per_epoch_in_another_order():
  examples = CandidateData(users_with_events([40] * 8), OPTIONS)  # 8 x 3 x 3 = 72 examples
  batches = TrainingCandidates(examples, batch_size=12, num_epochs=2, seed=0)
  assert (len(batches), batches.batches_per_epoch, batches.examples_left_out) == (12, 6, 0)
  epochs = [[(int(u), int(i)) for b in range(6) for u, i in rows(batches[6 * e + b])] for e in range(2)]
  assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(rows(all_of(examples, TRAIN)))
  assert epochs[0] != epochs[1]


def test_training_on_two_splits_visits_the_examples_of_both():
  examples = CandidateData(users_with_events([40] * 8), OPTIONS)  # 72 + 24 examples
  batches = TrainingCandidates(examples, 12, num_epochs=1, seed=0, splits=(TRAIN, VALIDATION))
  visited = [pair for step in range(len(batches)) for pair in rows(batches[step])]
  assert sorted(visited) == sorted(rows(all_of(examples, TRAIN)) + rows(all_of(examples, VALIDATION)))


def test_hosts_partition_the_batch():
  examples = CandidateData(users_with_events([40] * 8), OPTIONS)
  order = {"batch_size": 12, "num_epochs": 1, "seed": 0, "splits": (TRAIN, VALIDATION)}
  hosts = [TrainingCandidates(examples, **order, shard_index=i, shard_count=3) for i in range(3)]
  for step in range(len(hosts[0])):
    assert sum((rows(host[step]) for host in hosts), []) == rows(hosts[1].whole(step))
  with pytest.raises(ValueError, match="batch_size=12 must be divisible by the 5 hosts"):
    TrainingCandidates(examples, **order, shard_count=5)


def rows(batch):
  return list(zip(batch.user_id.tolist(), batch.item.tolist(), strict=True))


def test_a_resumed_iterator_continues_with_the_next_batch():
  batches = TrainingCandidates(CandidateData(users_with_events([40] * 8), OPTIONS), 10, num_epochs=2, seed=0)
  iterator = iter(training_candidates(batches))
  before = [next(iterator) for _ in range(5)][-1]
  state = iterator.get_state()
  rest = [rows(batch) for batch in iterator]
  again = iter(training_candidates(batches))
  again.set_state(state)
  assert [rows(batch) for batch in again] == rest
  assert len(rest) == 9 and rows(before) not in rest


def test_held_out_examples_are_all_returned_in_order():
  examples = CandidateData(users_with_events([40] * 5), OPTIONS)
  sizes = [len(batch.item) for batch in held_out_candidates(examples, VALIDATION, 4)]
  assert sizes == [4, 4, 4, 3]


def test_categories_of_the_taobao_format_come_from_the_items(tmp_path):
  """Rows as in UserBehavior.csv: no header; only views count as clicks."""
  lines = ["1,2268318,2520377,pv,1511544070", "1,2333346,2520771,pv,1511561733", "1,2576651,149192,buy,1511572885"]
  lines += [f"2,{item},{149192 + item % 2},pv,{1511544071 + item}" for item in range(8)]
  (tmp_path / "UserBehavior.csv").write_text("\n".join(lines) + "\n")
  data = prepare("taobao", tmp_path, behaviors="pv")
  examples = CandidateData(data, CandidateOptions(history_length=3, min_events=8, targets_per_user=1))
  assert (examples.num_items, examples.num_categories) == (10, 4)
  assert examples.counts["users_too_short"] == 1
  batch = all_of(examples, TEST)
  assert batch.category[1] in item_categories(data)[0][[9, 10]]  # What user 1 viewed; the purchase is not a candidate.
  assert sorted(set(batch.history_category[0].tolist())) == [1, 2]


def test_an_unknown_column_of_categories_is_an_error():
  with pytest.raises(ValueError, match=r"options.category='genre' is no column of the items; there are \['domain'\]"):
    item_categories(users_with_events([10]), "genre")


@pytest.mark.parametrize(
  "change", [{"first_target": 2}, {"history_length": 0}, {"negatives": -1}, {"held_out_seed": -1}]
)
def test_options_out_of_range_are_errors(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    CandidateData(users_with_events([10]), CandidateOptions(**change))


def test_the_sample_of_taobao_gives_candidates(data_dir):
  raw = data_dir / "taobao-sample"
  if not raw.is_dir():
    pytest.skip(f"no folder {raw}")
  data = prepare("taobao", raw, behaviors="pv")
  examples = CandidateData(data, CandidateOptions(min_events=100))
  batch = next(held_out_candidates(examples, TEST, 64))
  assert (batch.history_item[:, -1] > 0).all() and batch.history_category.max() <= examples.num_categories
  assert examples.counts["training_targets"] > 1000
