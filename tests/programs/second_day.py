"""Prepares the first events of a log, then the later ones onto them, and compares going on with starting anew.

    PYTHONPATH=. python tests/programs/second_day.py --source=movielens-1m --share=0.9 --epochs=20 --more=3 --folder=D

The first `share` of the events in time are the first day. Prints as JSON how many users and items are new on the second
day, whether the known ones kept their ids, and the metrics on the test events of both days: of a run on the first day
that went on for `more` epochs on both, and of runs on both from scratch for `more` and for `epochs` epochs.
"""

import argparse
import json
import pathlib

import numpy as np
import polars as pl

from jaxrec.data.preparation.prepare import prepare
from jaxrec.train import loop
from jaxrec.train.named_configs import named_config


def write_days(data, share, folder):
  """Writes the events of prepared data as two Parquet files, earlier and later ones, and returns their paths."""
  user = data.users["raw_id"].gather(np.repeat(np.arange(data.num_users), np.diff(data.offsets)))
  item = data.items["raw_id"].gather(np.asarray(data.item_id) - 1)
  events = pl.DataFrame({"user": user, "item": item, "timestamp": np.asarray(data.timestamp)})
  events = events.sort("timestamp", maintain_order=True)
  cut, paths = int(share * len(events)), (folder / "first.parquet", folder / "second.parquet")
  for path, rows in zip(paths, (events[:cut], events[cut:]), strict=True):
    rows.write_parquet(path)
  return paths


def train(sizes, data, workdir, epochs, start_from=""):
  """Trains the config "hstu" with the sizes that suit the data `sizes`; returns the metrics of the test events."""
  config = named_config("hstu", sizes)
  config.data.prepared = str(data.path)
  config.train.num_epochs, config.train.start_from, config.train.evaluate_every_epochs = epochs, start_from, 1
  config.optimizer.schedule, config.optimizer.warmup_steps = "constant", 0
  summary = loop.run(config, str(workdir))
  test = summary["select"]["test_of_selected"]
  return {name: round(test[name], 4) for name in ("HR@10", "NDCG@10", "MRR")}


def run(source, options, share, epochs, more, folder):
  """Returns what the module says."""
  folder.mkdir(parents=True, exist_ok=True)
  first, second = write_days(prepare(source, **options), share, folder)
  monday = prepare("table", first, folder / "monday", overwrite=True)
  both = prepare("table", second, folder / "both", extends=monday.path, overwrite=True)
  kept = {
    name: getattr(both, name)["raw_id"][: len(getattr(monday, name))].equals(getattr(monday, name)["raw_id"])
    for name in ("users", "items")
  }
  train(monday, monday, folder / "run-monday", epochs)
  return {
    "kept": kept, **both.meta["extends"],
    f"continued for {more}": train(monday, both, folder / "run-continued", more, str(folder / "run-monday")),
    f"from scratch for {more}": train(monday, both, folder / "run-short", more),
    f"from scratch for {epochs}": train(monday, both, folder / "run-long", epochs),
  }  # fmt: skip


def main():
  """Runs what the flags say."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--source", default="synthetic")
  parser.add_argument("--share", type=float, default=0.9)
  parser.add_argument("--epochs", type=int, default=10)
  parser.add_argument("--more", type=int, default=2)
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  given = parser.parse_args()
  print(json.dumps(run(given.source, {}, given.share, given.epochs, given.more, given.folder), indent=2))


if __name__ == "__main__":
  main()
