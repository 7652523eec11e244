"""Whatever a library raises for a file becomes an error that names the file and, where there is one, the line."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import zipfile

import numpy as np
import polars as pl
import pytest
from programs.fuzz_samples import SAMPLES
from programs.fuzz_sources import run
from raw_files import ML1M_MOVIES, ML1M_RATINGS, REVIEW_2014, TMALL_HEAD, abxi, read, write

from jaxrec.data.preparation import prepare as preparation
from jaxrec.data.preparation.prepare import prepare

PARQUET = io.BytesIO()
pl.DataFrame({"user": ["u", "v"], "item": ["i", "j"], "timestamp": [1, 2]}).write_parquet(PARQUET)
ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as archive:
  archive.writestr("a.csv", "user,item,timestamp\nu,i,1\n")


@pytest.mark.parametrize(
  "source, files, message",
  [
    ("movielens-1m", {"ratings.dat": "1::661::nan::100\n", "movies.dat": ML1M_MOVIES}, "ratings.dat: line 1: .*'nan'"),
    (
      "movielens-1m",
      {"ratings.dat": ML1M_RATINGS, "movies.dat": "661::J::A\n"},
      "ratings.dat: line 1: item 1193 is not",
    ),
    (
      "movielens-1m",
      {"ratings.dat": ML1M_RATINGS, "movies.dat": ML1M_MOVIES * 2},
      "movies.dat: line 4: item 661 has a",
    ),
    ("tmall", {"user_log_format1.csv": f"{TMALL_HEAD}1,1,1,1,1,{-(2**63)},0\n"}, "format1.csv: line 2: .* not a day"),
    ("amazon-5core", {"Beauty.txt": "1 5 6\n", "Beauty.npz": b"PK\x03\x04abc"}, "Beauty.npz: cannot be read"),
    ("amazon-5core", {"Beauty.txt": "1 5 6\n", "Beauty.npz": b""}, "Beauty.npz: cannot be read"),
    ("amazon-5core", {"Beauty.txt": "1 5 6\n", "Beauty.npz": b"hello" * 50}, "Beauty.npz: cannot be read"),
    ("amazon-5core", {"Beauty.txt": b"1 5\n2 \xff\n"}, "Beauty.txt: line 2: is not UTF-8"),
    ("amazon-5core", {"Beauty.txt": b"\n\n"}, "Beauty.txt: has no rows"),
    ("amazon-reviews", {"r.json": json.dumps(REVIEW_2014) + "\n\n[1]\n"}, "r.json: line 3: not a JSON object"),
    ("amazon-reviews", {"r.json": json.dumps(REVIEW_2014) * 2 + "\n"}, "r.json: line 1: not a JSON object"),
    ("amazon-reviews", {"r.json": "[" * 100_000 + "\n"}, "r.json: line 1: not a JSON object"),
    ("amazon-reviews", {"r.json": json.dumps({**REVIEW_2014, "overall": True})}, "r.json: line 1: field 'overall'"),
  ],
)
def test_what_libraries_raise_becomes_an_error_with_file_and_line(tmp_path, source, files, message):
  with pytest.raises(ValueError, match=message):
    prepare(source, write(tmp_path, files))


@pytest.mark.parametrize(
  "text, ids, message",
  [
    ("0 99999999999999999999|5\n", '{"B": [1, 0]}', r"preprocessed\.txt: line 1: .*first bad word"),
    ("0 1|99999999999999999999\n", '{"B": [1, 0]}', r"preprocessed\.txt: line 1: .*first bad word"),
    ("", '{"B": [1, 0]}', r"preprocessed\.txt: has no rows"),
    ("0 1|5\n1\n", '{"B": [1, 0]}', r"preprocessed\.txt: line 2: .*first bad word is ''"),
    ("0 1|5\n0 1|6\n", '{"B": [1, 0]}', r"preprocessed\.txt: line 2: user 0 has more than one line"),
    ("0 1|5\n1 2|5\n", '{"B": [1, 0]}', r"preprocessed\.txt: line 2: item 2 of user 1 is not in the item map"),
    ("0 1|5\n", '{"B": [1, 0], "C": [1, 1]}', r"map_item_50\.txt: item 1 is both 'B' and 'C'"),
    ("0 1|5\n", '{"B": [99999999999999999999, 0]}', r"map_item_50\.txt: needs one JSON object"),
    ("0 1|5\n", '{"B": [1.5, 0]}', r"map_item_50\.txt: needs one JSON object"),
    ("0 1|5\n", "[1]", r"map_item_50\.txt: not a JSON object"),
  ],
)
def test_bad_abxi_files_are_named(tmp_path, text, ids, message):
  with pytest.raises(ValueError, match=message):
    prepare("abxi", abxi(tmp_path, text, ids))


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"offsets": [0, 9, 2]}, "array 'offsets' must rise from 0 to 2"),
    ({"timestamps": [1]}, "array 'timestamps' has 1 values for 2 items"),
    ({"items": ["5", "6"]}, r"array 'items' is <U1\[2\], needs numbers"),
    ({"timestamps": [1.5, float("nan")]}, "entry 0: column 'timestamps' holds 1.5, needs Int64"),
    ({"timestamps": [1, -5]}, r"timestamps\[1\]: -5 is not a time"),
    ({"items": np.array([None, 1])}, "cannot be read"),
  ],
)
def test_bad_arrays_of_times_are_named(tmp_path, changed, message):
  arrays = {"items": [5, 6], "offsets": [0, 1, 2], "user_ids": [1, 2], "timestamps": [1, 2], **changed}
  np.savez(write(tmp_path, {"Beauty.txt": "1 5\n2 6\n"}) / "Beauty.npz", **{n: np.array(a) for n, a in arrays.items()})
  with pytest.raises(ValueError, match=r"Beauty\.npz: " + message):
    prepare("amazon-5core", tmp_path)


@pytest.mark.parametrize(
  "data, message",
  [
    (ZIP.getvalue(), "is a zip archive"),
    (bz2.compress(b"user,item\n"), "is packed with bzip2"),
    (lzma.compress(b"user,item\n"), "is packed with xz"),
    (gzip.compress(gzip.compress(b"user,item\n")), "is packed with gzip twice"),
    (b"\x28\xb5\x2f\xfd1234", "is packed with zstd"),
    (b"\n <!DOCTYPE HTML><title>Log in</title>", "is an HTML page, perhaps of a login"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    (b"SQLite format 3\0", "is an SQLite database"),
    (b"\x89HDF\r\n", "is an HDF5 file"),
  ],
  ids=lambda value: value if isinstance(value, str) else "",  # gzip holds the time at which it was made.
)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_file_of_another_kind_is_named(tmp_path, name, data, message):
  with pytest.raises(ValueError, match=rf"{re.escape(name)}: {message}"):
    read("table", write(tmp_path, {name: data}) / name)


def test_gzip_and_parquet_are_read_whatever_their_names(tmp_path):
  packed = write(tmp_path, {"a.csv.gz": "user,item,timestamp\nu,i,1\n"}) / "a.csv.gz"
  assert len(read("table", packed.rename(tmp_path / "b.csv")).events) == 1
  assert len(read("table", write(tmp_path, {"c.pq": PARQUET.getvalue()}) / "c.pq").events) == 2


def test_text_that_is_named_gz_is_refused(tmp_path):
  (tmp_path / "a.csv.gz").write_bytes(b"user,item,timestamp\nu,i,1\n")
  with pytest.raises(ValueError, match=r"a\.csv\.gz: is named \.gz, but is not packed with gzip"):
    read("table", tmp_path / "a.csv.gz")


def test_a_folder_of_parts_and_a_pipe_are_named(tmp_path):
  parts = write(tmp_path, {"parts/part-0.csv": "user,item,timestamp\nu,i,1\n"}) / "parts"
  with pytest.raises(ValueError, match=r"parts: is a folder, give one file .* the folder holds part-0\.csv"):
    prepare("table", parts)
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(ValueError, match="pipe: is no regular file"):
    prepare("table", tmp_path / "pipe")


@pytest.mark.parametrize("change", [lambda data: data[:-20], lambda data: data[:40] + b"\xff" * 60 + data[100:]])
def test_a_damaged_parquet_file_is_named(tmp_path, change):
  with pytest.raises(ValueError, match=r"a\.parquet: (damaged, or not Parquet|.*holds|.*not a time)"):
    prepare("table", write(tmp_path, {"a.parquet": change(PARQUET.getvalue())}) / "a.parquet")


@pytest.mark.parametrize(
  "error", [pl.exceptions.PanicException("x"), zipfile.BadZipFile("x"), OverflowError("x"), KeyError("x")]
)
def test_what_a_reader_does_not_expect_names_the_raw_data(tmp_path, monkeypatch, error):
  def reader(raw):
    raise error

  monkeypatch.setattr(preparation, "source_reader", lambda name: reader)
  with pytest.raises(ValueError, match=rf"{tmp_path}: cannot be read: {type(error).__name__}"):
    preparation.read_log("abxi", tmp_path, {})


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_files_of_every_source_are_read_rightly_or_refused_clearly(name):
  """The first seeds of `tests/programs/fuzz_sources.py`, which tries more by hand."""
  outcomes = [(seed, *run(seed, [name])) for seed in range(12)]
  assert [outcome for outcome in outcomes if outcome[1] not in ("read", "refused")] == []
