"""A small whole sample of every raw format, and a simple reading of its users and items."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import raw_files

from jaxrec.data.sources.crc32c import masked_crc


@dataclasses.dataclass(frozen=True)
class Sample:
  """The files of a data set, and how to read them.

  source: name of the source.
  files: bytes by name; those of a name that ends in .gz are packed when they are written.
  log: the file with the events, if a simple reader can find them; its text has `encoding`.
  pairs: text of the log -> user and item of each row.
  separator: of the fields.
  settings: options of the source; `raw` is the folder, or `file` in it.
  wrap: what is done with the damaged bytes before they are written.
  """

  source: str
  files: dict[str, bytes]
  log: str = ""
  pairs: Callable[[str], list[tuple[str, str]]] = list
  separator: bytes = b","
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  file: str = ""
  encoding: str = "utf-8"
  wrap: Callable[[bytes], bytes] = bytes

  def options(self, folder: pathlib.Path) -> dict[str, Any]:
    """Returns the options of the source with the paths in a folder."""
    if self.source == "merge":
      sources = [{**entry, "raw": str(folder / entry["raw"])} for entry in self.settings["sources"]]
      return {"sources": sources}
    return {**self.settings, "raw": folder / self.file}


def _events() -> list[tuple[int, int, int, int]]:
  rng, time, events = random.Random(1), 978300000, []
  for user in range(1, 7):
    for _ in range(rng.randint(3, 8)):
      time += rng.randint(1, 5000)
      events.append((user, rng.randint(1, 9), rng.randint(1, 5), time))
  return events


_EVENTS = _events()


def _text(line: Callable[..., str], head: str = "") -> bytes:
  return (head + "".join(line(*event) for event in _EVENTS)).encode()


def _lines(text: str) -> list[str]:
  text = text.replace("\r\n", "\n")
  text = text if "\n" in text else text.replace("\r", "\n")
  return [line for line in text.split("\n") if line]


def _split(separator: str, user: int = 0, item: int = 1) -> Callable[[str], list[tuple[str, str]]]:
  def pairs(text):
    rows = [line.split(separator) for line in _lines(text)]
    return [(plain_id(row[user]), plain_id(row[item])) for row in rows]

  return pairs


def _first_two(text: str) -> list[tuple[str, str]]:
  rows = csv.reader(io.StringIO("\n".join(_lines(text)), newline=""))
  return [(plain_id(row[0]), plain_id(row[1])) for row in rows]


def _named(user: str, item: str) -> Callable[[str], list[tuple[str, str]]]:
  def pairs(text):
    text = text.replace("\r", "\n") if "\n" not in text else text
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    return [(plain_id(row[head.index(user)]), plain_id(row[head.index(item)])) for row in rows if row]

  return pairs


def plain_id(text: str) -> str:
  """Returns an id as it is written when it has been read as an integer."""
  number = text.strip()
  return str(int(number)) if number.lstrip("+-").isascii() and number.lstrip("+-").isdigit() else text


def _of_lists(of_word: Callable[[str], str]) -> Callable[[str], list[tuple[str, str]]]:
  def pairs(text):
    rows = [line.split() for line in _lines(text)]
    return [(plain_id(user), plain_id(of_word(word))) for user, *words in rows for word in words]

  return pairs


def _of_json(text: str) -> list[tuple[str, str]]:
  rows = [json.loads(line) for line in _lines(text) if line.strip()]
  return [(row["reviewerID"], row["asin"]) for row in rows]


def _by_user(word: Callable[..., str]) -> bytes:
  lines = [" ".join([str(user), *(word(*event) for event in _EVENTS if event[0] == user)]) for user in range(1, 7)]
  return ("\n".join(lines) + "\n").encode()


def _review(user, item, rating, time) -> str:
  fields = {"reviewerID": f"U{user}", "asin": f"B{item}", "overall": float(rating), "unixReviewTime": time}
  return json.dumps({**fields, "reviewText": "a\nb \u00e9", "helpful": [1, 2]}) + "\n"


def _parquet() -> bytes:
  out = io.BytesIO()
  columns = list(zip(*_EVENTS, strict=True))
  pl.DataFrame({"user": columns[0], "item": [str(i) for i in columns[1]], "timestamp": columns[3]}).write_parquet(out)
  return out.getvalue()


def _npz() -> bytes:
  out = io.BytesIO()
  lengths = [sum(event[0] == user for event in _EVENTS) for user in range(1, 7)]
  columns = np.array(_EVENTS).T
  np.savez(out, items=columns[1], offsets=np.cumsum([0, *lengths]), user_ids=np.arange(1, 7), timestamps=columns[3])
  return out.getvalue()


def _sealed(example: bytes) -> bytes:
  """Returns the record of an example, whatever its bytes, with right checksums."""
  size = len(example).to_bytes(8, "little")
  checksums = [int(crc).to_bytes(4, "little") for crc in masked_crc([size, example])]
  return size + checksums[0] + example + checksums[1]


def _shard(seed: int) -> bytes:
  rng = random.Random(seed)
  lists = [[rng.choice([5, 300, 7, -1, 8]) for _ in range(12)] for _ in range(4)]
  return b"".join(
    raw_files.record(sequence_data=items, sequence_event_type=[9 if i % 2 else 4 for i in range(12)]) for items in lists
  )


def _samples() -> dict[str, Sample]:
  movies = "".join(f"{i}::Title {i} (19{i}0)::Drama|Action\n" for i in range(1, 10)).encode()
  genres = "|".join("1" if i == 5 else "0" for i in range(19))
  old_movies = "".join(f"{i}|T{i} (1995)|24-Jan-1997||http://x|{genres}\n" for i in range(1, 10)).encode()
  new_movies = "movieId,title,genres\n" + "".join(f'{i},"T{i}, The ""x"" (1995)",Action|Crime\n' for i in range(1, 10))
  reviews = _text(_review)
  ratings = _text(lambda u, i, r, t: f"U{u},B{i}{r},{r}.0,{t}\n")
  plain = _text(lambda u, i, r, t: f"{u},{i},{t}\n", "user,item,timestamp\n")
  quoted = _text(
    lambda u, i, r, t: f'u{u},"i,{i}",{t},d{i % 2},{r},{r}.5,"T ""{i}"""\n', "user,item,timestamp,dom,act,rat,title\n"
  )
  dotted = _text(lambda u, i, r, t: f"{u}::{i}::{r}::{t}\n")
  new_ratings = _text(lambda u, i, r, t: f"{u},{i},{r}.5,{t}\n", "userId,movieId,rating,timestamp\n")
  new_amazon = _text(lambda u, i, r, t: f"U{u},B{i}{r},{r}.0,{t}123\n", "user_id,parent_asin,rating,timestamp\n")
  kuairand = _text(
    lambda u, i, r, t: f"{u},{i},20220408,1800,16{t}12,{r % 2},0,1,0,0,0,1,0,9233,0,0,0,0,{r}\n",
    raw_files.KUAIRAND_HEAD,
  )
  taobao = _text(
    lambda u, i, r, t: f"{u},{i},{i % 3},{('pv', 'buy', 'cart', 'fav')[r % 4]},{1511544070 + t % 700000}\n"
  )
  tmall = _text(
    lambda u, i, r, t: f"{u},{i},{i % 3},7,{'' if r == 1 else 5},{(1111, 1005, 620)[r % 3]},{r % 4}\n",
    raw_files.TMALL_HEAD,
  )
  item_map = json.dumps({f"B{i}": [i, i % 2] for i in range(1, 10)}).encode()
  shards = {f"{name}/partition_0.tfrecord": _shard(i) for i, name in enumerate(("training", "evaluation", "testing"))}
  example = raw_files.record(sequence_data=[5, 300, 7, -1, 8], sequence_event_type=[9, 9, 4, 9, 4])[12:-4]
  merged = [
    {"source": "amazon-ratings", "raw": "ratings.csv", "name": "x", "edition": "2014"},
    {"source": "table", "raw": "plain.csv", "name": "y"},
  ]
  whole = {"domain": "dom", "action": "act", "rating": "rat", "title": "title"}
  table, first_two = _named("user", "item"), _first_two
  lists = _by_user(lambda u, i, r, t: str(i))
  reviews_file, reviews_gz = {"r_5.json": reviews}, {"r_5.json.gz": reviews}
  abxi = {"afk_50_preprocessed.txt": _by_user(lambda u, i, r, t: f"{i}|{t}"), "map_item_50.txt": item_map}
  latin, edition = {"encoding": "latin-1"}, {"edition": "2014"}
  old = {"u.data": dotted.replace(b"::", b"\t"), "u.item": old_movies}
  new = {"ratings.csv": new_ratings, "movies.csv": new_movies.encode()}
  by_name, by_id = _named("user_id", "parent_asin"), _named("userId", "movieId")
  videos, bought = _named("user_id", "video_id"), _named("user_id", "item_id")
  dotted_files = {"ratings.dat": dotted, "movies.dat": movies}
  with_times = {"Beauty.txt": lists, "Beauty.npz": _npz()}
  packed_shards = {f"{name}.gz": data for name, data in shards.items()}
  return {
    "movielens-1m": Sample("movielens-1m", dotted_files, "ratings.dat", _split("::"), b"::", **latin),
    "movielens-100k": Sample("movielens-100k", old, "u.data", _split("\t"), b"\t", **latin),
    "movielens-20m": Sample("movielens-20m", new, "ratings.csv", by_id),
    "amazon-ratings": Sample("amazon-ratings", {"A.csv": ratings}, "A.csv", first_two, settings=edition, file="A.csv"),
    "amazon-ratings-2023": Sample("amazon-ratings", {"A.csv": new_amazon}, "A.csv", by_name, file="A.csv"),
    "amazon-reviews": Sample("amazon-reviews", reviews_file, "r_5.json", _of_json, file="r_5.json"),
    "amazon-reviews-gz": Sample("amazon-reviews", reviews_gz, "r_5.json.gz", _of_json, file="r_5.json.gz"),
    "amazon-5core": Sample("amazon-5core", {"Beauty.txt": lists}, "Beauty.txt", _of_lists(str), b" "),
    "amazon-5core-times": Sample("amazon-5core", with_times, "Beauty.txt", _of_lists(str), b" "),
    "kuairand-csv": Sample("kuairand-csv", {"log_standard_a.csv": kuairand}, "log_standard_a.csv", videos,
                           settings={"keep": "all"}),
    "kuairand-1k": Sample("kuairand-1k", shards),
    "kuairand-1k-gz": Sample("kuairand-1k", packed_shards),
    "kuairand-1k-sealed": Sample("kuairand-1k", dict.fromkeys(shards, example), wrap=_sealed),
    "taobao": Sample("taobao", {"UserBehavior.csv": taobao}, "UserBehavior.csv", first_two),
    "tmall": Sample("tmall", {"user_log_format1.csv": tmall}, "user_log_format1.csv", bought),
    "abxi": Sample("abxi", abxi, "afk_50_preprocessed.txt", _of_lists(lambda word: word.split("|")[0]), b" "),
    "table": Sample("table", {"t.csv": quoted}, "t.csv", table, settings=whole, file="t.csv"),
    "table-integers": Sample("table", {"t.csv": plain}, "t.csv", table, settings={"ids": "int"}, file="t.csv"),
    "table-gz": Sample("table", {"t.csv.gz": plain}, "t.csv.gz", table, file="t.csv.gz"),
    "table-parquet": Sample("table", {"t.parquet": _parquet()}, file="t.parquet"),
    "merge": Sample("merge", {"ratings.csv": ratings, "plain.csv": plain}, settings={"sources": merged}),
  }  # fmt: skip


SAMPLES = _samples()
"""Name -> sample; the name begins with that of the source."""
