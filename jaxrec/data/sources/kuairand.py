"""KuaiRand: the logs as CSV, and the TFRecord shards of sequences that AutoCDSR published.

Terms: CC BY-SA 4.0. Source: https://kuairand.com; AutoCDSR, arXiv 2505.21811 (shards).
"""

from __future__ import annotations

import pathlib

import numpy as np
import polars as pl

from jaxrec.data import event_values
from jaxrec.data.sources import cleaning
from jaxrec.data.sources.reading import find_file, read_columns
from jaxrec.data.sources.registry import InteractionLog
from jaxrec.data.sources.text_format import Column, TextFormat
from jaxrec.data.sources.tfrecord import read_examples

FEEDBACK = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
_ACTION_KINDS = dict.fromkeys(FEEDBACK, "binary") | {"play_seconds": "regression"}
_FOLDERS = {"training": 0, "evaluation": 1, "testing": 2}
_UNKNOWN_ITEM = -1
HELD_OUT = ("last", "all")


def read_logs(
  raw: str | pathlib.Path,
  *,
  domain: str = "tab",
  keep: str = "is_click",
  random_logs: bool = False,
  quote: str | None = None,
  encoding: str = "utf-8",
) -> InteractionLog:
  """Returns the events of `log_standard_*.csv`.

  The action is the sum of the values of the feedback given: is_click 1, is_like 2, is_follow 4, ... as in `FEEDBACK`.

  Typed actions: each kind of feedback (binary), and `play_seconds`, the time the video was played (regression).

  Args:
    raw: the `data` folder of KuaiRand-Pure, -1K or -27K, or one log file.
    domain: "one"; "tab" (the scenario of the event); or a column of `video_features_basic_*.csv` such as "music_type".
    keep: the kind of feedback without which a row is dropped, or "all" to keep all rows.
    random_logs: whether to read `log_random_*.csv` (random exposure) too.
    quote, encoding: of the files, as in `TextFormat`.

  Raises:
    ValueError: an unknown option, a missing file or a bad row.
  """
  if keep not in (*FEEDBACK, "all"):
    raise ValueError(f"{keep=} is not known; give 'all' or one of {', '.join(FEEDBACK)}")
  files, form = _log_files(pathlib.Path(raw), random_logs), TextFormat(",", quote, encoding)
  names = {
    "user_id": Column(pl.Int64),
    "video_id": Column(pl.Int64),
    "time_ms": Column(pl.Int64, unit="ms"),
    "play_time_ms": Column(pl.Int64),
    **{name: Column(pl.Int8) for name in FEEDBACK},
    **({"tab": Column(pl.Int64)} if domain == "tab" else {}),
  }
  rows = pl.concat([_checked_feedback(read_columns(path, names, form, header=True), path) for path in files])
  action = pl.sum_horizontal([pl.col(name).cast(pl.Int32) * (1 << bit) for bit, name in enumerate(FEEDBACK)]).cast(
    pl.Int32
  )
  events = rows.rename({"user_id": "user", "video_id": "item", "time_ms": "timestamp"}).with_columns(action=action)
  events = events.with_columns(
    (pl.col("play_time_ms") / 1000).cast(pl.Float32).alias("action.play_seconds"),
    *(pl.col(name).cast(pl.UInt8).alias(f"action.{name}") for name in FEEDBACK),
  )
  kept = events if keep == "all" else events.filter(pl.col(keep) != 0)
  dropped = {f"without {keep}": len(events) - len(kept)}
  kept, domains = _with_domain(kept, domain, files[0].parent, form)
  kept = kept.drop(*FEEDBACK, "play_time_ms")
  return InteractionLog(
    kept, domains=domains, raw_rows=len(rows), dropped=dropped, time_unit="ms", action_kinds=_ACTION_KINDS
  )


def read_shards(raw: str | pathlib.Path, *, min_training_events: int = 0, held_out: str = "last") -> InteractionLog:
  """Returns the events of `partition_*.tfrecord.gz` in `training/`, `evaluation/` and `testing/`; a record is a user.

  Items -1, outside the published vocabulary, are dropped and counted. All events of a training record are for training;
  of an evaluation record the last remaining event is for validation, of a testing record for test. Events have an order
  but no times.

  Args:
    raw: the folder of the three.
    min_training_events: drop events of items with fewer events in the training records, and count them; 0: none. With
      20 a core is left in which items can be learnt.
    held_out: "last", or "all" events of evaluation and testing records, of which each but the first has a history;
      evaluate them with `config.eval.targets=all`.

  Raises:
    ValueError: an option out of range, no shards, a damaged shard, or lists of unequal length.
  """
  if held_out not in HELD_OUT or min_training_events < 0:
    raise ValueError(f"{held_out=} must be one of {HELD_OUT}, and {min_training_events=} not negative")
  raw = pathlib.Path(raw)
  rows = [row for folder in _FOLDERS for row in _records(raw, folder)]
  lengths = np.array([len(row["sequence_data"]) for row in rows])
  item = np.concatenate([row["sequence_data"] for row in rows])
  kind = np.concatenate([row["sequence_event_type"] for row in rows])
  split = np.array([_FOLDERS[row["folder"]] for row in rows], np.uint8)
  user = np.repeat(np.arange(len(rows)), lengths)
  events = pl.DataFrame({"user": user, "item": item, "domain": kind, "split": split[user]})
  events = events.with_columns(pl.col("domain").cast(pl.String))
  known = events.filter(pl.col("item") != _UNKNOWN_ITEM)
  dropped = {"outside the published vocabulary": len(events) - len(known)}
  if min_training_events:
    in_training = (pl.col("split") == 0).sum().over("item")
    kept = known.filter(in_training >= min_training_events)
    dropped["of items with few training events"] = len(known) - len(kept)
    known = kept
  if held_out == "last":
    last = pl.col("user") != pl.col("user").shift(-1, fill_value=-1)
    known = known.with_columns(split=pl.when(last).then("split").otherwise(0).cast(pl.UInt8))
  users = pl.DataFrame({"user": np.arange(len(rows)), "raw_id": [row["name"] for row in rows]})
  return InteractionLog(
    known,
    users=users,
    raw_rows=len(events),
    in_order=True,
    dropped=dropped,
  )


def _checked_feedback(rows: pl.DataFrame, path: pathlib.Path) -> pl.DataFrame:
  for name in FEEDBACK:
    event_values.integers(rows[name], pl.Int8, event_values.at_rows(path, name, 2, "line"), low=0, high=1)
  return rows


def _log_files(raw: pathlib.Path, random_logs: bool) -> list[pathlib.Path]:
  if raw.is_file():
    return [raw]
  patterns = ["log_standard_*.csv*"] + (["log_random_*.csv*"] if random_logs else [])
  files = [path for pattern in patterns for path in sorted(raw.glob(pattern)) or sorted(raw.glob(f"data/{pattern}"))]
  return files or [find_file(raw, "log_standard_*.csv")]


def _with_domain(
  events: pl.DataFrame, domain: str, folder: pathlib.Path, form: TextFormat
) -> tuple[pl.DataFrame, tuple[str, ...] | None]:
  if domain == "one":
    return events, ("videos",)
  if domain == "tab":
    return events.with_columns(domain=pl.col("tab").cast(pl.String)).drop("tab"), None
  path = find_file(folder, "video_features_basic_*.csv*")
  names = {"video_id": Column(pl.Int64), domain: Column(pl.String, optional=True)}
  features = read_columns(path, names, form, header=True).rename({"video_id": "item", domain: "domain"})
  number = pl.col("domain").cast(pl.Float64, strict=False)  # The files write 9 as 9.0.
  whole_number = pl.when(number == number.floor()).then(number.cast(pl.Int64, strict=False).cast(pl.String))
  features = cleaning.first_texts(features, "item", "domain").with_columns(
    domain=pl.coalesce(whole_number, pl.col("domain"), pl.lit("unknown"))
  )
  return events.join(features, on="item", how="left", maintain_order="left").with_columns(
    pl.col("domain").fill_null("unknown")
  ), None


def _records(raw: pathlib.Path, name: str) -> list[dict]:
  folder = raw / name
  paths = sorted([*folder.glob("*.tfrecord"), *folder.glob("*.tfrecord.gz")], key=_shard_number)
  if not paths:
    raise ValueError(f"{folder}: no *.tfrecord or *.tfrecord.gz files; give the folder of {', '.join(_FOLDERS)}")
  shards = [path.name.split(".")[0] for path in paths]
  if repeated := [path.name for path, shard in zip(paths, shards, strict=True) if shards.count(shard) > 1]:
    raise ValueError(f"{folder}: {repeated} are the same shard, which names its users; keep one of them")
  rows = []
  for path, index, row in read_examples(paths, ("sequence_data", "sequence_event_type")):
    items, kinds = len(row["sequence_data"]), len(row["sequence_event_type"])
    if items != kinds:
      raise ValueError(f"{path}: record {index + 1}: {items} items but {kinds} event types")
    rows.append({**row, "folder": name, "name": f"{name}/{path.name.split('.')[0]}/{index}"})
  return rows


def _shard_number(path: pathlib.Path) -> tuple[int, str]:
  digits = "".join(c for c in path.name.split(".")[0] if c.isdigit())
  return (int(digits) if digits else 0, path.name)
