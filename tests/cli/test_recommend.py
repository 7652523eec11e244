"""`recommend` writes tables for users of the data and for strangers, in parts that survive a kill."""

import signal
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from conftest import REPOSITORY
from known_scores import recommender
from test_readme import code_blocks

from jaxrec.cli import export_vectors, recommend
from jaxrec.cli.history_files import read_histories
from jaxrec.cli.part_files import PartFiles
from jaxrec.data.preparation.prepare import prepare

EXPECTED = [("ann", "f6"), ("ann", "b3"), ("bob", "b1"), ("bob", "b2"), ("cyd", "f4"), ("cyd", "f5")]


@pytest.fixture
def write(call, monkeypatch, tmp_path):
  monkeypatch.setattr(recommend, "load", lambda *_: recommender())
  return lambda *arguments: call(recommend, f"--workdir={tmp_path}", "--k=2", "--part_size=1", *arguments)


def users_and_items(rows):
  return list(rows.select("user", "item").iter_rows())


@pytest.mark.parametrize(
  ("name", "read"), [("a.parquet", pl.read_parquet), ("a.csv", pl.read_csv), ("a.jsonl", pl.read_ndjson)]
)
def test_all_users_get_rows_with_raw_ids_and_titles(write, tmp_path, name, read):
  text = write("--all", f"--out={tmp_path / name}")
  rows = read(tmp_path / name)
  assert users_and_items(rows) == EXPECTED
  assert rows.row(0, named=True) == {
    "user": "ann", "rank": 1, "item": "f6", "title": "Heat", "domain": "films", "score": 0.0, "ranked_by": "model"
  }  # fmt: skip
  assert "3 users, 6 recommendations: " in text
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_users_who_have_seen_everything_are_counted(write, tmp_path):
  text = write("--all", "--domain=films", f"--out={tmp_path / 'a.csv'}")
  assert set(pl.read_csv(tmp_path / "a.csv")["user"]) == {"ann", "cyd"}
  assert "3 users, 3 recommendations (1 without a row: no item is left for them)" in text


def test_a_killed_table_continues_without_a_duplicate_or_a_gap(write, tmp_path, monkeypatch):
  made = []
  original = PartFiles.write

  def write_two_and_die(self, index, rows):
    if len(made) == 2:
      raise KeyboardInterrupt
    made.append(index)
    original(self, index, rows)

  monkeypatch.setattr(PartFiles, "write", write_two_and_die)
  out = tmp_path / "a.parquet"
  with pytest.raises(KeyboardInterrupt):
    write("--all", f"--out={out}")
  assert not out.exists()
  monkeypatch.setattr(PartFiles, "write", lambda self, index, rows: (made.append(index), original(self, index, rows)))
  write("--all", f"--out={out}")
  assert made == [0, 1, 2]
  assert users_and_items(pl.read_parquet(out)) == EXPECTED


WRITER = """
import os, signal, sys
import polars as pl
from jaxrec.cli import part_files

def kill(*_):
  os.kill(os.getpid(), signal.SIGKILL)

parts = part_files.PartFiles(sys.argv[1], {"k": 2})
for part in range(3):
  if not parts.has(part):
    if sys.argv[2] == f"part {part}":
      part_files.os.replace = kill
    parts.write(part, pl.DataFrame({"user": [f"u{part}", f"u{part}"], "rank": [1, 2]}))
part_files.os.replace = kill
parts.finish(3, "user")
"""


def test_a_process_killed_while_it_writes_a_part_or_the_table_leaves_neither_a_duplicate_nor_a_gap(tmp_path):
  """SIGKILL just before a file gets its name, then just before the table does."""
  out = tmp_path / "a.parquet"
  for moment, there in (("part 1", 1), ("the table", 3)):
    ended = subprocess.run([sys.executable, "-c", WRITER, out, moment], cwd=REPOSITORY, check=False)
    parts = PartFiles(out, {"k": 2})
    assert ended.returncode == -signal.SIGKILL and not out.exists()
    assert [parts.has(part) for part in range(3)] == [part < there for part in range(3)]
  assert parts.finish(3, "user") == (6, 3)
  assert list(pl.read_parquet(out).iter_rows()) == [(f"u{part}", rank) for part in range(3) for rank in (1, 2)]
  assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_parts_of_another_call_are_refused(tmp_path):
  PartFiles(tmp_path / "a.csv", {"k": 5}).write(0, pl.DataFrame({"user": ["ann"]}))
  with pytest.raises(ValueError, match="k was 5, is 6. Delete it to start anew"):
    PartFiles(tmp_path / "a.csv", {"k": 6})
  assert PartFiles(tmp_path / "a.csv", {"k": 5}).has(0)


@pytest.mark.parametrize("change", ["users", "model"])
def test_parts_of_other_users_or_another_model_are_refused(write, tmp_path, monkeypatch, change):
  users, out = tmp_path / "users.txt", tmp_path / "a.csv"
  users.write_text("cyd\nann\n")
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(PartFiles, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    write(f"--users_file={users}", f"--out={out}")
  if change == "users":
    users.write_text("cyd\nbob\n")
  else:
    other = recommender()
    other.__dict__["_vectors"] = 2 * other._vectors
    monkeypatch.setattr(recommend, "load", lambda *_: other)
  with pytest.raises(SystemExit, match=f"holds parts of another call: {change} was"):
    write(f"--users_file={users}", f"--out={out}")


def test_users_of_a_file_are_in_its_order(write, tmp_path):
  (tmp_path / "users.txt").write_text("cyd\nann\n\n")
  write(f"--users_file={tmp_path / 'users.txt'}", f"--out={tmp_path / 'a.csv'}")
  assert users_and_items(pl.read_csv(tmp_path / "a.csv")) == EXPECTED[4:] + EXPECTED[:2]


def test_strangers_of_a_file_get_rows_in_the_order_of_their_times(write, tmp_path):
  events = tmp_path / "new.csv"
  events.write_text("user,item,timestamp\neve,b1,200\ndan,x9,5\neve,f4,100\n")
  write(f"--histories={events}", f"--out={tmp_path / 'a.csv'}")
  rows = pl.read_csv(tmp_path / "a.csv")
  assert users_and_items(rows) == [("dan", "f4"), ("dan", "f5"), ("eve", "b2"), ("eve", "b3")]
  assert rows["ranked_by"].to_list() == ["popularity"] * 2 + ["model"] * 2


def test_histories_are_read_with_the_columns_of_the_prepared_table(tmp_path):
  log = tmp_path / "log.csv"
  log.write_text("who;sku;shop;ms\n" + "".join(f"u{i};s{i};books;{1_700_000_000_000 + 1000 * i}\n" for i in range(4)))
  names = {"user": "who", "item": "sku", "timestamp": "ms", "domain": "shop", "time_unit": "ms", "separator": ";"}
  data = prepare("table", log, tmp_path / "data", **names)
  new = tmp_path / "new.csv"
  new.write_text("who;sku;shop;ms\nu9;s2;books;1700000007000\n")
  assert read_histories(str(new), data) == {"u9": [("s2", 1_700_000_007, "books")]}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--all"], "--all and --users_file write a table: give --out"),
    (["--all", "--out={folder}/a.txt"], "must end with one of .parquet, .csv, .jsonl"),
    (["--out={folder}/a.csv"], "no user given; use --user=<id>"),
    (["--all", "--out={folder}/a.csv", "--hold_out"], "--hold_out prints ranks as text"),
    (["--users_file={folder}/none", "--out={folder}/a.csv"], "No such file"),
    (["--histories={folder}/none.csv"], "none.csv"),
  ],
)
def test_wrong_flags_exit_with_one_line(write, tmp_path, arguments, message):
  with pytest.raises(SystemExit, match=message):
    write(*(argument.format(folder=tmp_path) for argument in arguments))


def test_an_existing_table_is_not_overwritten(write, tmp_path):
  (tmp_path / "a.csv").write_text("mine")
  with pytest.raises(SystemExit, match="exists already"):
    write("--all", f"--out={tmp_path / 'a.csv'}")
  assert (tmp_path / "a.csv").read_text() == "mine"


@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")  # Of SWIG.
def test_the_example_for_faiss_finds_the_items_with_the_highest_scores(tmp_path, monkeypatch, capsys):
  pytest.importorskip("faiss", reason="the example needs FAISS: pip install faiss-cpu")
  known = recommender()
  export_vectors.export(known, tmp_path / "vectors", users=True, domain=None)
  (block,) = [block for _, block in code_blocks("jaxrec/serving/README.md", "python") if "import faiss" in block]
  monkeypatch.chdir(tmp_path)
  found = {}
  exec(block, found)
  scores = known.score(found["items"]["item"].to_list(), users=found["users"]["user"].to_list())
  np.testing.assert_array_equal(found["rows"], np.argsort(-scores, axis=1, kind="stable")[:, :5])
  np.testing.assert_array_equal(found["scores"], -np.sort(-scores, axis=1)[:, :5])
  assert capsys.readouterr().out.startswith("ann ['Heat', 'Emma'")


def test_exported_vectors_give_the_scores_of_the_model(call, monkeypatch, tmp_path):
  known = recommender()
  monkeypatch.setattr(export_vectors, "load", lambda *_: known)
  text = call(export_vectors, f"--workdir={tmp_path}", f"--out={tmp_path / 'vectors'}")
  assert "6 items, 3 users" in text
  items, users = (pl.read_parquet(tmp_path / "vectors" / f"{name}.parquet") for name in ("items", "users"))
  scores = users["vector"].to_numpy() @ items["vector"].to_numpy().T
  np.testing.assert_array_equal(scores, known.score(items["item"].to_list(), users=users["user"].to_list()))
  assert items.select("item", "title", "domain").row(5) == ("f6", "Heat", "films")
  np.testing.assert_array_equal(np.load(tmp_path / "vectors" / "users.npy"), users["vector"].to_numpy())
  assert sorted(path.suffix for path in (tmp_path / "vectors").iterdir()) == [".npy", ".npy", ".parquet", ".parquet"]
