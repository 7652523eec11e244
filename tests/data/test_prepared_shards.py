"""Prepared data in shards: the same data and the same batches for any number of shards' hosts, and named faults."""

import shutil
import threading

import jax
import numpy as np
import polars as pl
import pytest

from jaxrec import parallel
from jaxrec.data import prepared_shards
from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.data.batches.sharded_training import ShardedTrainingBatches, make_training_batches, rows_of_batches
from jaxrec.data.batches.training import TrainingBatches, TrainingOptions, rows_for
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import COLUMNS, PreparedData

USERS, SHARDS = 240, 8
OPTIONS = TrainingOptions(max_length=12, row_length=16, rows_per_batch=16, seed=3)


def some_data(seed=0):
  """Data of 240 users with 0 to 40 events, actions of two kinds, and times."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(0, 41, USERS)
  total = int(lengths.sum())
  return PreparedData.from_columns(
    offsets=np.concatenate([[0], np.cumsum(lengths)]),
    item_id=rng.integers(1, 31, total),
    timestamp=np.concatenate([1000 + np.sort(rng.integers(0, 999, n)) for n in lengths]),
    action=rng.integers(0, 3, total),
    actions={"like": rng.integers(0, 2, total), "seconds": rng.random(total)},
    action_kinds={"like": "binary", "seconds": "regression"},
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder of eight shards."""
  return some_data().save(tmp_path_factory.mktemp("data") / "sharded", shards=SHARDS).path


@pytest.fixture
def copy(folder, tmp_path):
  """A copy of it, to be damaged."""
  return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def hosts(monkeypatch):
  """Returns a function that runs another one as several hosts at once, each in a thread."""

  def run(count, function):
    barrier, given, results = threading.Barrier(count), [None] * count, [None] * count
    here = threading.local()

    def max_over_hosts(tree):
      given[here.index] = tree
      barrier.wait(20)
      largest = jax.tree.map(lambda *arrays: np.max(arrays, axis=0), *given)
      barrier.wait(20)
      return largest

    def one(index):
      here.index = index
      try:
        results[index] = function(index)
      except BaseException:
        barrier.abort()
        raise

    monkeypatch.setattr(parallel, "max_over_hosts", max_over_hosts)
    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return results

  return run


def test_data_is_the_same_for_any_number_of_shards(tmp_path):
  data = some_data()
  for shards in (1, 3, 8):
    loaded = data.save(tmp_path / str(shards), shards=shards)
    for name in (*COLUMNS, "offsets"):
      np.testing.assert_array_equal(getattr(loaded, name), getattr(data, name), name)
      assert getattr(loaded, name).dtype == getattr(data, name).dtype
    for name, values in data.actions.items():
      np.testing.assert_array_equal(loaded.actions[name], values)
    assert loaded.fingerprint == data.fingerprint
    assert ("shards" in loaded.meta) == (shards > 1)
    loaded.check_content()


def test_shards_have_users_and_rows_of_equal_number_however_histories_are_cropped(folder):
  meta = PreparedData.load(folder).meta
  assert {entry["users"] for entry in meta["shards"]} == {USERS // SHARDS}
  for longest in (5, 20, 40):
    data = PreparedData.load(folder)
    kept = [np.minimum(np.diff(prepared_shards.own_columns(data, s)[1].offsets), longest).sum() for s in range(SHARDS)]
    assert max(kept) - min(kept) <= longest


def test_every_user_is_in_one_shard():
  dealt = prepared_shards.deal(np.random.default_rng(0).integers(0, 99, 1003), 8)
  assert np.sort(np.concatenate(dealt)).tolist() == list(range(1003))
  assert {len(users) for users in dealt} == {125, 126}


def blocks(folder, options, count, steps, hosts):
  """The global batches of some steps, put together from those of `count` hosts that open their own shards."""

  def of_host(index):
    data = PreparedData.load(folder, (index, count))
    batches = make_training_batches(data, options_of(options, index, count))
    return batches.batches_per_epoch, [batches[step] for step in steps]

  lengths, found = zip(*hosts(count, of_host), strict=True)
  assert len(set(lengths)) == 1
  return lengths[0], [jax.tree.map(lambda *x: np.concatenate(x), *parts) for parts in zip(*found, strict=True)]


def options_of(options, index, count):
  return options.__class__(**{**vars(options), "shard_index": index, "shard_count": count})


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("change", [{}, {"task": "masked_item"}, {"packing": False}, {"last_split": 1}], ids=str)
def test_one_two_four_and_eight_hosts_make_the_same_batches(folder, hosts, change):
  options = TrainingOptions(**{**vars(OPTIONS), **change})
  steps = [0, 1, 7, 30, 31]
  length, expected = blocks(folder, options, 1, steps, hosts)
  assert any((batch.item_id > 0).any() for batch in expected)
  for count in (2, 4, 8):
    found_length, found = blocks(folder, options, count, steps, hosts)
    assert found_length == length
    assert_equal(found, expected)


def test_each_epoch_holds_every_user_once_in_another_order(folder):
  data = PreparedData.load(folder)
  batches = ShardedTrainingBatches(data, OPTIONS)
  number = batches.batches_per_epoch
  epochs = [np.concatenate([batches.users(step) for step in range(e * number, (e + 1) * number)]) for e in range(2)]
  trained = TrainingBatches(some_data(), OPTIONS)
  assert batches.users_per_epoch == trained.users_per_epoch == len(epochs[0])
  assert batches.users_left_out == trained.users_left_out
  everyone = np.concatenate([trained.users(step) for step in range(trained.batches_per_epoch)])
  for users in epochs:
    assert np.sort(users).tolist() == np.sort(everyone).tolist()
  assert epochs[0].tolist() != epochs[1].tolist()


def test_the_events_of_a_user_are_those_of_data_in_one_piece(folder):
  options = TrainingOptions(**{**vars(OPTIONS), "packing": False, "max_length": 40, "row_length": 40})
  sharded, whole = ShardedTrainingBatches(PreparedData.load(folder), options), TrainingBatches(some_data(), options)

  def rows(batches):
    found = {}
    for step in range(batches.batches_per_epoch):
      batch = batches[step]
      rows = np.flatnonzero(batch.item_id.any(axis=1))
      found |= {
        int(user): jax.tree.map(lambda x, row=row: x[row].tolist(), batch)
        for user, row in zip(batches.users(step), rows, strict=True)
      }
    return found

  assert rows(sharded) == rows(whole)


def test_batches_are_a_function_of_their_index(folder):
  data = PreparedData.load(folder)
  one, other = ShardedTrainingBatches(data, OPTIONS), ShardedTrainingBatches(data, OPTIONS)
  expected = [one[step] for step in range(40)]
  for step in (39, 3, 20):  # As a run that resumes there.
    assert_equal(other[step], expected[step])


def test_packing_loses_few_rows_to_shards(folder):
  data = PreparedData.load(folder)
  rows = rows_of_batches(data, OPTIONS, users_per_batch=40)
  assert rows % SHARDS == 0
  whole = rows_for(some_data(), OPTIONS, users_per_batch=40)
  assert whole <= rows <= whole + SHARDS


def test_two_hosts_derive_the_same_rows(folder, hosts):
  def of_host(index):
    data = PreparedData.load(folder, (index, 2))
    return rows_of_batches(data, options_of(OPTIONS, index, 2), users_per_batch=40, multiple_of=6)

  expected = rows_of_batches(PreparedData.load(folder), OPTIONS, users_per_batch=40, multiple_of=6)
  assert hosts(2, of_host) == [expected] * 2 and expected % 24 == 0


@pytest.mark.parametrize("targets", ["first", "all"])
def test_hosts_put_the_batches_of_an_evaluation_together(folder, hosts, targets):
  def of_host(index, count=2):
    data = PreparedData.load(folder, (index, count))
    batches = evaluation_batches(data, 2, 32, 12, targets=targets)
    return batches.new_users, batches.without_history, list(batches)

  whole = evaluation_batches(some_data(), 2, 32, 12, targets=targets)
  for new_users, without_history, found in hosts(2, of_host):
    assert (new_users, without_history) == (whole.new_users, whole.without_history)
    assert_equal(found, list(whole))


def test_a_host_opens_its_own_shards_only(copy):
  for index in (0, 1, 2, 3, 6, 7):
    shutil.rmtree(copy / f"shard-0000{index}-of-00008")
  data = PreparedData.load(copy, (2, 4))
  data.check_content()
  assert 0 < data.num_events < some_data().num_events
  assert data.num_users == USERS


FAULTS = {
  "missing": (lambda shard: shutil.rmtree(shard), "shard-00005-of-00008: missing; .* needs its 8 shards"),
  "a column is missing": (lambda shard: (shard / "split.npy").unlink(), "shard-00005-of-00008/split.npy: missing"),
  "truncated": (
    lambda shard: (shard / "item_id.npy").write_bytes((shard / "item_id.npy").read_bytes()[:-40]),
    "shard-00005-of-00008/item_id.npy: (missing or damaged|truncated)",
  ),
  "of other sizes": (
    lambda shard: np.save(shard / "item_id.npy", np.load(shard / "item_id.npy")[:-1]),
    "shard-00005-of-00008: item_id has .* entries, needs",
  ),
}


@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_a_shard_is_named_when_the_data_is_opened(copy, damage, message):
  damage(copy / "shard-00005-of-00008")
  with pytest.raises(ValueError, match=message):
    PreparedData.load(copy)


def test_a_shard_of_other_data_is_named_before_training(copy, tmp_path):
  data = some_data()
  other = PreparedData.from_columns(
    offsets=data.offsets, item_id=data.item_id[::-1], timestamp=data.timestamp, action=data.action,
    actions=data.actions, action_kinds={"like": "binary", "seconds": "regression"},
  ).save(tmp_path / "other", shards=SHARDS)  # fmt: skip
  shutil.rmtree(copy / "shard-00002-of-00008")
  shutil.copytree(other.path / "shard-00002-of-00008", copy / "shard-00002-of-00008")
  loaded = PreparedData.load(copy)
  with pytest.raises(ValueError, match="shard-00002-of-00008: of other data than .*: item_id differ"):
    loaded.check_content()


def test_a_changed_id_table_is_named(copy):
  users = pl.read_parquet(copy / "users.parquet")
  users.with_columns(raw_id=users["raw_id"].reverse()).write_parquet(copy / "users.parquet")
  with pytest.raises(ValueError, match="copy: users changed after the folder was written"):
    PreparedData.load(copy).check_content()


def test_a_part_of_the_data_is_not_saved_as_all_of_it(folder, tmp_path):
  with pytest.raises(ValueError, match="is opened in part; load all of its shards"):
    PreparedData.load(folder, (1, 4)).save(tmp_path / "part")


def test_hosts_that_do_not_divide_the_shards_are_refused(folder):
  with pytest.raises(ValueError, match="8 shards cannot be divided among 3 hosts; prepare the data in a multiple of 3"):
    PreparedData.load(folder, (0, 3))


def test_rows_that_the_shards_do_not_divide_are_refused(folder):
  with pytest.raises(ValueError, match="rows_per_batch=12 must be divisible by the 8 shards"):
    ShardedTrainingBatches(PreparedData.load(folder), TrainingOptions(**{**vars(OPTIONS), "rows_per_batch": 12}))


def test_a_shard_without_anyone_to_train_on_is_named(tmp_path):
  data = PreparedData.from_columns(user=[0, 0, 0, 0, 1], item_id=[1, 2, 1, 2, 1]).save(tmp_path / "data", shards=2)
  with pytest.raises(ValueError, match="shard 1 of 2: no user has two events .*; or prepare the data in fewer shards"):
    ShardedTrainingBatches(data, OPTIONS)


def test_more_shards_than_users_are_refused_and_nothing_is_written(tmp_path):
  with pytest.raises(ValueError, match="shards=9 must be in 1..2, the number of users"):
    PreparedData.from_columns(user=[0, 1], item_id=[1, 2]).save(tmp_path / "data", shards=9)
  assert list(tmp_path.iterdir()) == []


def test_prepare_writes_shards_and_they_can_be_extended(tmp_path):
  log = "user,item,timestamp\n" + "".join(f"u{n % 7},i{n % 5},{n}\n" for n in range(60))
  (tmp_path / "log.csv").write_text(log)
  data = prepare("table", tmp_path / "log.csv", tmp_path / "one", shards=2)
  assert sorted(path.name for path in data.path.iterdir() if path.is_dir()) == [f"shard-0000{n}-of-00002" for n in "01"]
  (tmp_path / "next.csv").write_text("user,item,timestamp\nu0,new,99\na,i0,98\n")
  more = prepare("table", tmp_path / "next.csv", tmp_path / "two", extends=data.path, shards=4)
  assert more.users["raw_id"].to_list() == [*data.users["raw_id"], "a"]
  assert more.num_events == 62 and len(more.meta["shards"]) == 4
