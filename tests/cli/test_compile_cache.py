"""Programs keep compiled code in a folder of limited size."""

import os

import pytest

from jaxrec.cli import compile_cache

SIZE = 100


@pytest.fixture
def folder(monkeypatch, tmp_path):
  """The folder of a user who has set nothing, with four entries: the second was used last, the third first."""
  monkeypatch.delenv(compile_cache.FOLDER, raising=False)
  monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path))
  (tmp_path / "jax").mkdir()
  for name, used in (("a", 20), ("b", 40), ("c", 10), ("d", 30)):
    (tmp_path / "jax" / name).write_bytes(bytes(SIZE))
    os.utime(tmp_path / "jax" / name, (used, 0))
  return tmp_path / "jax"


@pytest.mark.parametrize(("limit", "left"), [(4 * SIZE, "abcd"), (4 * SIZE - 1, "abd"), (2 * SIZE, "bd"), (0, "")])
def test_entries_that_were_not_used_for_longest_are_removed_until_the_others_fit(folder, monkeypatch, limit, left):
  monkeypatch.setenv(compile_cache.LIMIT, str(limit))
  compile_cache.use_compilation_cache()
  assert os.environ[compile_cache.FOLDER] == str(folder)
  assert sorted(path.name for path in folder.iterdir()) == list(left)


def test_a_new_entry_was_used_when_it_was_written(folder):
  """File systems mounted with noatime leave the time of access behind."""
  os.utime(folder / "c", (10, 50))
  compile_cache.remove_oldest(str(folder), SIZE)
  assert [path.name for path in folder.iterdir()] == ["c"]


def test_a_folder_that_is_not_there_or_is_named_by_the_user_is_left_alone(folder, monkeypatch, tmp_path):
  monkeypatch.setenv(compile_cache.LIMIT, "0")
  monkeypatch.setenv(compile_cache.FOLDER, str(tmp_path / "mine"))
  compile_cache.use_compilation_cache()
  compile_cache.remove_oldest(str(tmp_path / "none"), 0)
  assert len(list(folder.iterdir())) == 4 and os.environ[compile_cache.FOLDER] == str(tmp_path / "mine")


def test_a_limit_that_is_no_number_ends_the_program_with_one_line(folder, monkeypatch):
  monkeypatch.setenv(compile_cache.LIMIT, "2GB")
  with pytest.raises(
    SystemExit, match="JAXREC_COMPILE_CACHE_BYTES='2GB' must be a number of bytes, such as 2147483648"
  ):
    compile_cache.use_compilation_cache()
