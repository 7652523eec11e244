"""Checkpoints that are damaged, foreign or cannot be written, and the checksums of their arrays."""

import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import checkpoint_bit_flips
from programs.checkpoint_bit_flips import POSITION, save_two, state_at

from jaxrec.train import saved_step
from jaxrec.train.checkpoint import Checkpoints, check_path, load_state
from jaxrec.train.item_table import IN_PARAMS
from jaxrec.train.leaf_checksums import leaf_checksums
from jaxrec.train.saved_step import DamagedCheckpointError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A folder with the checkpoints 10, the best one, and 11."""
  folder = tmp_path_factory.mktemp("whole")
  save_two(folder)
  return folder


@pytest.fixture
def folder(whole, tmp_path):
  """A copy of it."""
  shutil.copytree(whole, tmp_path / "checkpoints")
  return tmp_path / "checkpoints"


@pytest.fixture
def warned(monkeypatch):
  """The warnings that are logged."""
  lines = []
  for module in ("jaxrec.train.checkpoint", "jaxrec.train.saved_step"):
    monkeypatch.setattr(f"{module}.logging.warning", lambda text, *values: lines.append(text % values))
  return lines


def restored(folder, **options):
  with Checkpoints(str(folder), **options) as checkpoints:
    found = checkpoints.restore(state_at(0))
  return None if found is None else (int(found[0].step), found[1])


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def zero(path):
  path.write_bytes(b"")


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fill_with_zeros(path):
  path.write_bytes(b"\0" * path.stat().st_size)


def of_all_data(change, step):
  """Changes every data file, because Orbax also leaves files behind in which no array is."""
  for path in list((step / "state").rglob("d/*")):
    change(path)


def test_single_flipped_bits_are_noticed_or_harmless():
  counts, failures = checkpoint_bit_flips.run(flips=5, seed=5)
  assert failures == []
  # Where the bits lie differs from run to run, as Orbax's files do.
  assert sum(counts.values()) == 5 and {outcome for _, outcome in counts} <= {"fell back", "harmless"}


DAMAGES = {
  "position of no bytes": lambda step: zero(step / "position" / "metadata"),
  "position cut in half": lambda step: cut(step / "position" / "metadata"),
  "position that is a list": lambda step: (step / "position" / "metadata").write_text("[]"),
  "no position": lambda step: shutil.rmtree(step / "position"),
  "metadata of no bytes": lambda step: zero(step / "state" / "_METADATA"),
  "no metadata": lambda step: (step / "state" / "_METADATA").unlink(),
  "manifest cut in half": lambda step: cut(step / "state" / "manifest.ocdbt"),
  "data cut in half": lambda step: of_all_data(cut, step),
  "data of zeros": lambda step: of_all_data(fill_with_zeros, step),
  "no data": lambda step: shutil.rmtree(step / "state" / "d"),
  "no state": lambda step: shutil.rmtree(step / "state"),
  "only empty folders": lambda step: [zero(path) for path in step.rglob("*") if path.is_file()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(folder, warned, damage):
  damage(folder / "11")
  assert restored(folder) == (10, {"best_step": 10, **POSITION, "step": 10})
  assert names(folder) == ["10", "11.damaged"]
  assert any("11 is damaged" in line and line.endswith("going on from step 10") for line in warned)


def test_steps_after_a_damaged_checkpoint_are_saved_again(folder):
  zero(folder / "11" / "position" / "metadata")
  with Checkpoints(str(folder)) as checkpoints:
    checkpoints.restore(state_at(0))
    checkpoints.save(state_at(11), {"again": True}, best_step=10)
  assert restored(folder) == (11, {"best_step": 10, "again": True})


def test_a_checkpoint_of_other_values_than_were_saved_names_the_array(folder):
  record = json.loads((folder / "11" / "position" / "metadata").read_text())
  record["leaves"]["params/items/table"][1] ^= 1
  checksum = record.pop("checksum")
  assert checksum != saved_step._crc(record)
  (folder / "11" / "position" / "metadata").write_text(json.dumps({**record, "checksum": saved_step._crc(record)}))
  saved = saved_step.read_saved(str(folder), 11)
  with pytest.raises(DamagedCheckpointError, match=r"11 is damaged .state: other values .* in params/items/table"):
    saved_step.read_state(str(folder), 11, saved, state_at(0), IN_PARAMS)


def test_folders_that_are_no_checkpoint_are_ignored(folder, warned):
  (folder / "99").mkdir()
  (folder / "100").mkdir()
  (folder / "100" / "notes.txt").write_text("")
  (folder / "101").write_text("")
  (folder / "x").mkdir()
  assert restored(folder)[0] == 11
  assert load_state(str(folder), state_at(0), "latest")[1] == 11
  assert names(folder) == ["10", "100", "101", "11", "99", "x"]
  assert any("99 is no checkpoint, ignored" in line for line in warned)


def test_a_folder_with_the_name_of_a_new_checkpoint_is_kept_under_another_name(folder):
  (folder / "12").mkdir()
  (folder / "12" / "notes.txt").write_text("mine")
  with Checkpoints(str(folder)) as checkpoints:
    checkpoints.restore(state_at(0))
    checkpoints.save(state_at(12), POSITION, best_step=12)
  assert (folder / "12.other" / "notes.txt").read_text() == "mine"
  assert names(folder) == ["10", "11", "12", "12.other"]  # 10 is the best at step 11, 12 at step 12.
  assert restored(folder)[0] == 12


def test_a_fallback_has_its_own_best_checkpoint(folder):
  with Checkpoints(str(folder)) as checkpoints:
    checkpoints.restore(state_at(0))
    checkpoints.save(state_at(12), POSITION, best_step=12)
  zero(folder / "12" / "state" / "_METADATA")
  assert restored(folder)[1]["best_step"] == 10


@pytest.mark.parametrize("damage", [shutil.rmtree, lambda step: of_all_data(cut, step)], ids=["missing", "damaged"])
def test_a_lost_best_checkpoint_is_noticed_before_training_goes_on(folder, damage):
  with Checkpoints(str(folder)) as checkpoints:
    checkpoints.restore(state_at(0))
    checkpoints.save(state_at(12), POSITION, best_step=10)
  shutil.rmtree(folder / "11")
  damage(folder / "10")
  with pytest.raises(
    DamagedCheckpointError, match=r"/10 is (missing|damaged).*Remove .* train this phase again.*latest"
  ):
    restored(folder)
  with pytest.raises(DamagedCheckpointError, match=r"/10 is .*take the latest with --checkpoint=latest"):
    load_state(str(folder), state_at(0), "best")
  assert load_state(str(folder), state_at(0), "latest")[1] == 12


def test_a_damaged_latest_checkpoint_is_said_when_a_run_is_loaded(folder, warned):
  of_all_data(cut, folder / "11")
  assert load_state(str(folder), state_at(0), "latest")[1] == 10
  assert any("11 is damaged" in line and "taking the one before" in line for line in warned)
  assert names(folder) == ["10", "11"]  # Loading changes nothing.


def test_without_an_intact_checkpoint_nothing_is_trained_or_loaded(folder):
  for step in ("10", "11"):
    zero(folder / step / "state" / "_METADATA")
  with pytest.raises(DamagedCheckpointError, match=r"no checkpoint is left to resume from: .*11.*10.*Remove"):
    restored(folder)
  with pytest.raises(DamagedCheckpointError, match="no checkpoint is intact"):
    load_state(str(folder), state_at(0), "latest")
  assert names(folder) == ["10", "11"]


def test_a_checkpoint_without_checksums_is_restored_with_a_warning(tmp_path, monkeypatch, warned):
  monkeypatch.setattr(saved_step, "describe", lambda saved, *_: saved.position)  # As older versions did.
  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, "_read_back", lambda *_: None)
    save_two(tmp_path)
  assert restored(tmp_path)[0] == 11
  assert any("has no checksums" in line for line in warned)


def test_the_first_checkpoint_is_read_back(tmp_path, monkeypatch):
  good = saved_step.leaf_checksums
  monkeypatch.setattr(saved_step, "leaf_checksums", lambda *_: {name: 0 for name in good(*_)})
  reads = []
  monkeypatch.setattr(saved_step, "_compare_checksums", lambda path, saved, arrays, table: reads.append(good(arrays)))
  with Checkpoints(str(tmp_path)) as checkpoints:
    checkpoints.save(state_at(1), {}, None)
    checkpoints.save(state_at(2), {}, None)
  assert len(reads) == 1


def test_a_first_checkpoint_that_is_read_back_as_something_else_stops_the_run(tmp_path, monkeypatch):
  wrong = iter([1, 0, 0, 0])
  good = saved_step.leaf_checksums
  monkeypatch.setattr(saved_step, "leaf_checksums", lambda *_: {n: x ^ next(wrong, 0) for n, x in good(*_).items()})
  with pytest.raises(OSError, match="the first checkpoint was written, but what is read is something else"):
    with Checkpoints(str(tmp_path)) as checkpoints:
      checkpoints.save(state_at(1), {}, None)


def test_what_a_killed_process_left_is_removed(folder):
  (folder / "12.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  with Checkpoints(str(folder)) as checkpoints:
    checkpoints.restore(state_at(0))
    checkpoints.save(state_at(12), POSITION, best_step=10)
  assert names(folder) == ["10", "11", "12"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_checkpoint_that_cannot_be_written_names_folder_and_space(folder, monkeypatch, number):
  def fail(*_, **__):
    raise OSError(number, os.strerror(number))

  with Checkpoints(str(folder)) as checkpoints:
    checkpoints.restore(state_at(0))
    with monkeypatch.context() as patch:
      patch.setattr(checkpoints._manager, "save", fail)
      with pytest.raises(
        OSError, match=r"cannot be written to .*checkpoints .*[\d,]+ bytes are free.*resumes"
      ) as error:
        checkpoints.save(state_at(12), POSITION, best_step=10)
  assert os.strerror(number) in str(error.value) and "\n" not in str(error.value)
  assert restored(folder)[0] == 11


@pytest.mark.parametrize("name", ["with space", "ünï 漢字", "a'b\"c", "a#b%20c", "a:b,c;d", "$HOME~{a}&b"])
def test_checkpoints_may_have_any_other_path(tmp_path, name):
  with Checkpoints(str(tmp_path / name)) as checkpoints:
    checkpoints.save(state_at(1), POSITION, None)
  assert restored(tmp_path / name) == (1, {"best_step": None, **POSITION})
  assert names(tmp_path) == [name]


@pytest.mark.parametrize(
  "name",
  ["a[1]", "[", "a*b", "a?b", "a\\b", "s\udcffx", "gs://bucket/run", "gs:/bucket/run", "s3://b/run", "file:///run"],
)
def test_a_path_that_checkpoints_cannot_have_is_refused_and_nothing_is_made(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  for start in (Checkpoints, lambda path: check_path("workdir", path), lambda path: load_state(path, state_at(0))):
    with pytest.raises(ValueError, match="URL|cannot write below"):
      start(name)
  assert names(tmp_path) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "int16"])
def test_the_checksum_of_an_array_changes_with_every_element(dtype):
  values = np.arange(24).reshape(4, 3, 2) % 2 if dtype == "bool" else np.arange(24).reshape(4, 3, 2)
  array = jnp.asarray(values, dtype)
  seen = {leaf_checksums({"x": array})["x"]}
  for index in np.ndindex(array.shape):
    other = ~array[index] if dtype == "bool" else array[index] + 1
    seen.add(leaf_checksums({"x": array.at[index].set(other)})["x"])
  assert len(seen) == 25


def test_the_checksum_of_an_array_changes_when_parts_change_places():
  x = jnp.arange(12.0).reshape(4, 3)
  others = [x, x[::-1], x[:, ::-1], x.T, x.reshape(-1), -x, x.at[0].set(x[1]).at[1].set(x[0])]
  assert len({leaf_checksums({"x": other})["x"] for other in others}) == len(others)


def test_the_checksum_of_an_array_does_not_depend_on_the_blocks_it_is_read_in(monkeypatch):
  arrays = {
    "table": jnp.arange(77.0).reshape(11, 7),
    "vector": jnp.arange(50),
    "scalar": jnp.float32(3),
    "no": jnp.ones(0),
  }
  rows = {"table": 9}
  found = [leaf_checksums(arrays, rows)]
  for block in (1, 16, 21):
    monkeypatch.setattr("jaxrec.train.leaf_checksums._BLOCK", block)
    found.append(leaf_checksums(arrays, rows))
  assert all(one == found[0] for one in found)


def test_rows_that_pad_a_shard_do_not_count():
  x = jax.random.normal(jax.random.key(0), (5, 2))
  padded = jnp.concatenate([x, jnp.ones((3, 2))])
  assert leaf_checksums({"x": padded}, {"x": 5}) == leaf_checksums({"x": x})
  assert leaf_checksums({"x": padded}) != leaf_checksums({"x": x})
