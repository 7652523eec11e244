"""Reads damaged files with every source and reports what is not as promised; run by tests and by hand.

    PYTHONPATH=.:tests python tests/programs/fuzz_sources.py --count=1000 --first=0 --seconds=500 --sources=table,abxi

Each seed is one sample of one source with one or two random mutations. Either it is read, and then every row is kept or
counted as dropped, and ids are those of an independent reading; or the error is a `ValueError` that names the file and,
if it is about a row, the line. Prints a line per problem, and a table of what happened.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import pathlib
import random
import re
import resource
import shutil
import signal
import tempfile
import time

import polars as pl
from programs.fuzz_samples import SAMPLES, Sample, plain_id
from programs.mutations import mutate

from jaxrec.data.preparation import prepare

SECONDS = 20
MEGABYTES = 500  # That reading one small file may add to the memory of the process.
_PLACE = re.compile(r": (line|record|row) \d|: near line \d|in or after line \d|timestamps\[\d")
_ABOUT_THE_FILE = re.compile(
  "|".join(
    [
      *("has no rows", "is empty", "damaged", "truncated", r"is named \.gz", "cannot be read", "no such file"),
      *(": is an? ", "not a TFRecord", "packed with", "in the item map", "JSON object", "has domain", "is both"),
      *("unpacks to", "both id columns", "has no records", "lacks the arrays", "array '", "does not belong"),
      *("not Parquet", "no column", "no time is in", "all times are", "needs the fields"),
    ]
  )
)
_ABOUT_ALL_EVENTS = re.compile(r"no event is left|domains must be|look the same")


class Hang(BaseException):
  """The time for one file is over."""


def main() -> None:
  """Runs the seeds of the command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--first", type=int, default=0)
  parser.add_argument("--count", type=int, default=1000)
  parser.add_argument("--seconds", type=float, default=float("inf"), help="end after this time")
  parser.add_argument("--sources", default="", help="names of samples, separated by commas; default: all")
  arguments = parser.parse_args()
  names = arguments.sources.split(",") if arguments.sources else list(SAMPLES)
  counts: collections.Counter = collections.Counter()
  end = time.monotonic() + arguments.seconds
  for seed in range(arguments.first, arguments.first + arguments.count):
    if time.monotonic() > end:
      print("ended before seed", seed)
      break
    outcome, detail = run(seed, names)
    counts[names[seed % len(names)], outcome] += 1
    if outcome not in ("read", "refused"):
      print(
        json.dumps({"seed": seed, "sample": names[seed % len(names)], "outcome": outcome, "detail": detail}), flush=True
      )
  for name in names:
    print(name, {outcome: count for (other, outcome), count in sorted(counts.items()) if other == name})
  print("all", dict(sum((collections.Counter({o: n}) for (_, o), n in counts.items()), collections.Counter())))


def run(seed: int, names: list[str]) -> tuple[str, str]:
  """Returns what happened to the file of a seed: "read", "refused", or a problem; and the details."""
  rng, sample = random.Random(seed), SAMPLES[names[seed % len(names)]]
  folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz"))
  try:
    content, kinds = _write(sample, folder, rng)
    outcome, detail = _outcome(sample, folder, content)
  finally:
    shutil.rmtree(folder)
  return outcome, f"{'+'.join(kinds)}: {detail}"


def _write(sample: Sample, folder: pathlib.Path, rng: random.Random) -> tuple[dict[str, bytes | None], list[str]]:
  """Writes the files of a sample, one of them mutated; returns their unpacked bytes, None if those are unknown."""
  largest = max(sample.files, key=lambda name: len(sample.files[name]))
  target = rng.choice(sorted(sample.files)) if rng.random() < 0.3 else largest
  content: dict[str, bytes | None] = {}
  kinds = []
  for name, data in sample.files.items():
    packed_is_damaged = name.endswith(".gz") and rng.random() < 0.3
    if name == target and not packed_is_damaged:
      for _ in range(rng.choice([1, 1, 1, 2])):
        data, kind = mutate(data, sample.separator, rng)
        kinds.append(kind)
    content[name] = data
    data = sample.wrap(data)
    if name.endswith(".gz"):
      data = gzip.compress(data, mtime=0)
      if name == target and packed_is_damaged:
        data, kind = mutate(data, b",", rng)
        kinds.append(f"packed {kind}")
        content[name] = _unpacked(data)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
  return content, kinds


def _unpacked(data: bytes) -> bytes | None:
  try:
    return gzip.decompress(data)
  except Exception:
    return None


def _outcome(sample: Sample, folder: pathlib.Path, content: dict[str, bytes | None]) -> tuple[str, str]:
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  signal.signal(signal.SIGALRM, _stop)
  try:
    signal.alarm(SECONDS)
    options = sample.options(folder)
    raw = options.pop("raw", None)
    whole = {"split": "leave_one_out", "min_user_events": 0, "item_identity": "raw"}
    data = prepare.prepare(sample.source, raw, **options, **whole)
    log = prepare.read_log(sample.source, raw, options)
  except Hang:
    return "hang", ""
  except ValueError as error:
    return _judge_error(str(error), type(error).__name__, folder, sample)
  except BaseException as error:
    return "unclear exception", f"{type(error).__name__}: {str(error)[:200]}"
  finally:
    signal.alarm(0)
  grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
  if grown > MEGABYTES:
    return "memory", f"{grown} MB"
  return _judge_counts(sample, log, data, content)


def _stop(*_) -> None:
  raise Hang


def _judge_error(text: str, kind: str, folder: pathlib.Path, sample: Sample) -> tuple[str, str]:
  if kind not in ("ValueError", "TableError"):
    return "foreign exception", f"{kind}: {text[:300]}"
  if sample.source == "merge" and _ABOUT_ALL_EVENTS.search(text):
    return "refused", text
  if not any(name in text for name in (str(folder), *sample.files)):
    return "error without file", text[:300]
  if not any(pattern.search(text) for pattern in (_PLACE, _ABOUT_THE_FILE, _ABOUT_ALL_EVENTS)):
    return "error without line", text[:300]
  return "refused", text


def _judge_counts(sample: Sample, log, data, content: dict[str, bytes | None]) -> tuple[str, str]:
  counts = data.meta["counts"]
  dropped = sum(counts["dropped"].values())
  if data.num_events + dropped != counts["raw_rows"]:
    return "wrong sum", f"{data.num_events} kept, {dropped} dropped, {counts['raw_rows']} rows"
  pairs = _pairs(sample, content)
  if pairs is None:
    return "read", ""
  if len(pairs) != counts["raw_rows"]:
    return "wrong count", f"{counts['raw_rows']} rows, not {len(pairs)}"
  rows = log.events.select(pl.col("user", "item").cast(pl.String)).rows()
  read = [(plain_id(user), plain_id(item)) for user, item in rows]
  if not dropped and read != pairs:
    wrong = next(pair for pair in zip(read, pairs, strict=True) if pair[0] != pair[1])
    return "wrong ids", f"{wrong[0]} instead of {wrong[1]}"
  return "read", ""


def _pairs(sample: Sample, content: dict[str, bytes | None]) -> list[tuple[str, str]] | None:
  """Returns user and item of each row as a simple reader finds them; None if it cannot."""
  data = content[sample.log] if sample.log else None
  if data is None:
    return None
  try:
    text = data.decode(sample.encoding).removeprefix("\ufeff")
    return sample.pairs(text)
  except Exception:
    return None


if __name__ == "__main__":
  main()
