"""Writes synthetic events as Parquet part files, prepares them, and prints the seconds and the peak memory as JSON.

    PYTHONPATH=. python tests/programs/event_parts.py --events=100000000 --parts=50 --folder=parts
    PYTHONPATH=. python tests/programs/event_parts.py --events=100000000 --folder=parts --shards=8 --workers=2

A user has a log-normal number of events, 20 in the mean; the popularity of an item is 1 / rank; ids are texts of 12 and
10 characters; times lie within 90 days. Each part holds the events of some days of all users, in no order, as an engine
that partitions by date writes them. The preparation runs in a process of its own. Parts that are there are read again.
With --workers the parts are prepared again on Spark, by so many worker processes, and files that differ are printed.
"""

import argparse
import filecmp
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np
import polars as pl

from jaxrec.data.preparation.prepare import prepare

SECONDS = 90 * 86_400
START = 1_700_000_000


def write_parts(folder, events, parts, seed=0):
  """Writes `parts` files with `events` events of events / 20 users and events / 100 items."""
  folder.mkdir(parents=True, exist_ok=True)
  users, items = max(events // 20, 1), max(events // 100, 1)
  rng = np.random.default_rng(seed)
  weight = rng.lognormal(0, 1, users)
  cumulative = np.cumsum(weight / weight.sum())
  for part in range(parts):
    size = events // parts + (part < events % parts)
    rng = np.random.default_rng((seed, part))
    user = np.minimum(np.searchsorted(cumulative, rng.random(size)), users - 1)
    item = np.minimum(np.exp(rng.random(size) * np.log(items)).astype(np.int64), items - 1)
    second = START + (part + rng.random(size)) * (SECONDS / parts)
    table = pl.DataFrame({"user": user, "item": item, "timestamp": second.astype(np.int64)})
    names = (
      pl.format("u{}", pl.col("user").cast(pl.String).str.zfill(11)),
      pl.format("i{}", pl.col("item").cast(pl.String).str.zfill(9)),
    )
    table.with_columns(user=names[0], item=names[1]).write_parquet(folder / f"part-{part:05}.parquet")


def prepared(folder, out, shards, minimum):
  """Prepares the parts in this process; returns what it took."""
  started = time.monotonic()

  def report(line):
    print(f"[{time.monotonic() - started:7.1f} s, {peak():.2f} GB] {line}", file=sys.stderr, flush=True)

  options = {"min_user_events": minimum, "min_item_events": minimum, **({"shards": shards} if shards > 1 else {})}
  data = prepare("table", folder, out, overwrite=True, report=report, **options)
  return {
    "events": data.num_events, "users": data.num_users, "items": data.num_items,
    "seconds": round(time.monotonic() - started, 1), "peak_gb": round(peak(), 2),
  }  # fmt: skip


def on_spark(raw, out, arguments):
  """Prepares the parts on Spark; returns what it took, and the files that are not as in the folder `prepared`."""
  from pyspark.sql import SparkSession

  from jaxrec.data.spark.prepare_on_spark import prepare_on_spark

  os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path), "PYSPARK_PYTHON": sys.executable}
  master = f"local-cluster[{arguments.workers},1,{arguments.megabytes}]"
  builder = SparkSession.builder.master(master).config("spark.ui.enabled", "false")
  session = builder.config("spark.executor.memory", f"{arguments.megabytes}m").getOrCreate()
  session.sparkContext.setLogLevel("ERROR")
  started = time.monotonic()

  def report(line):
    print(f"[{time.monotonic() - started:7.1f} s] {line}", file=sys.stderr, flush=True)

  limits = {"min_user_events": arguments.minimum, "min_item_events": arguments.minimum}
  how = {"shards": arguments.shards, "overwrite": True, "report": report, "session": session}
  meta = prepare_on_spark(raw, out, **how, **limits)
  session.stop()
  seconds = round(time.monotonic() - started, 1)
  return {"workers": arguments.workers, "events": meta["num_events"], "seconds": seconds} | {
    "driver_peak_gb": round(peak(), 2), "different": different(out, arguments.folder / "prepared")
  }  # fmt: skip


def different(one, other):
  """Returns the names of files that differ, byte for byte, between two folders; of id tables their rows."""
  files = {path.relative_to(folder) for folder in (one, other) for path in folder.rglob("*") if path.is_file()}

  def same(name):
    if not ((one / name).is_file() and (other / name).is_file()):
      return False
    if name.suffix == ".parquet":
      return pl.read_parquet(one / name).equals(pl.read_parquet(other / name))
    if name.suffix == ".json":
      return json.loads((one / name).read_text()) == json.loads((other / name).read_text())
    return filecmp.cmp(one / name, other / name, shallow=False)

  return sorted(str(name) for name in files if not same(name))


def peak():
  """The peak resident memory of this process in GB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main():
  """Writes, and prepares in another process."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--events", type=int, default=1_000_000)
  parser.add_argument("--parts", type=int, default=50)
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--shards", type=int, default=1)
  parser.add_argument("--minimum", type=int, default=5, help="events that a user and an item need")
  parser.add_argument("--only_prepare", action="store_true", help="in this process, from parts that are there")
  parser.add_argument("--workers", type=int, default=0, help="prepare on Spark too, with so many worker processes")
  parser.add_argument("--megabytes", type=int, default=1024, help="memory of the Java process of each worker")
  arguments = parser.parse_args()
  raw = arguments.folder / f"raw-{arguments.events}"
  if arguments.only_prepare:
    print(json.dumps(prepared(raw, arguments.folder / "prepared", arguments.shards, arguments.minimum)))
    return
  if len(list(raw.glob("*.parquet"))) < arguments.parts:
    write_parts(raw, arguments.events, arguments.parts)
  command = [sys.executable, __file__, *sys.argv[1:], "--only_prepare"]
  code = subprocess.run(command).returncode
  if arguments.workers and not code:
    print(json.dumps(on_spark(raw, arguments.folder / "spark", arguments)))
  sys.exit(code)


if __name__ == "__main__":
  main()
