"""Raw files -> prepared columns: read, filter, number the ids, sort, split, write.

    data = prepare("movielens-1m", raw="ml-1m", out="prepared/ml1m")
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

from jaxrec.data import prepared
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import InteractionLog, source_names, source_reader

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "merge": {"item_identity": "per_domain"},
    "kuairand-1k": {"min_user_events": 10, "split": "given"},
}


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
  """What happens to a log once it is read. Times are seconds.

  min_user_events, min_item_events: keep users (items) with at least so many events, repeated until both hold (k-core); 0 = all.
    With `min_item_events` the catalogue shrinks to the items that are left, otherwise it keeps the never-seen candidates.
  min_domain_events: keep users with at least so many events in every domain.
  min_rating: drop events rated below this.
  duplicates: "keep"; "first" or "last" keeps one event for a user and an item.
  item_identity: "raw" = an item is its raw id; "per_domain" = the same raw id in two domains is two items.
  split: "leave_one_out" = a user's last event is test, the second-last validation (users with under 3 events train only);
    "by_time" = test is what happens from `test_time` on, validation from `validation_time` on; "given" = the source says.
  validation_time, test_time: for "by_time"; where not given, the times after which 10% and 5% of the events lie.
  """

  min_user_events: int = 0
  min_item_events: int = 0
  min_domain_events: int = 0
  min_rating: float | None = None
  duplicates: str = "keep"
  item_identity: str = "raw"
  split: str = "leave_one_out"
  validation_time: int | None = None
  test_time: int | None = None

  def __post_init__(self):
    choices = {"duplicates": ("keep", "first", "last"), "item_identity": ("raw", "per_domain"),
               "split": ("leave_one_out", "by_time", "given")}
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise ValueError(f"{name}={getattr(self, name)!r} is not known; give one of {', '.join(allowed)}")
    for name in ("min_user_events", "min_item_events", "min_domain_events"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)} must not be negative")
    if self.split != "by_time" and (self.validation_time is not None or self.test_time is not None):
      raise ValueError(f"validation_time and test_time need split='by_time', not split={self.split!r}")


def prepare(source: str, raw: str | os.PathLike | None = None, out: str | os.PathLike | None = None, *, overwrite: bool = False,
            report: Callable[[str], None] | None = None, **options: Any) -> PreparedData:
  """Returns the prepared data of a source, written to the folder `out` (or only in memory where `out` is None).

  Args:
    source: a name of `jaxrec.data.sources.source_names()`.
    raw: the file or folder of the raw data; None downloads the official files (not needed for "merge" and "synthetic").
    out: the folder to write; it appears complete or not at all.
    overwrite: replace an earlier prepared folder.
    report: called with one line a stage; None = silence.
    **options: the fields of `PrepareOptions` and the keyword arguments of the source's reader.

  Raises:
    ValueError: unknown source or option; bad data (file, line, column and text are named); nothing is left after filtering.
  """
  say = report or (lambda _: None)
  if out is not None:
    prepared.check_free(pathlib.Path(out), overwrite)
  if source == "synthetic":
    data = _synthetic(options)
  else:
    todo, reader_options = split_options(source, options)
    say(f"reading {source} from {raw if raw is not None else 'its official home'}")
    log = read_log(source, raw, reader_options, say)
    data = build(log, todo, source=source, reader_options=reader_options, report=say)
  if out is None:
    return data
  say(f"writing {out}")
  return data.save(out, overwrite=overwrite)


def split_options(source: str, options: Mapping[str, Any]) -> tuple[PrepareOptions, dict[str, Any]]:
  """Returns the options of the filters and splits, and those of the source's reader.

  Raises:
    ValueError: an option belongs to neither.
  """
  ours = {field.name for field in dataclasses.fields(PrepareOptions)}
  theirs = reader_option_names(source)
  unknown = sorted(set(options) - ours - set(theirs))
  if unknown:
    raise ValueError(f"unknown option(s) {unknown} for source {source!r}; known: {', '.join(sorted({*ours, *theirs}))}")
  todo = PrepareOptions(**{**_DEFAULTS.get(source, {}), **{name: options[name] for name in options if name in ours}})
  return todo, {name: options[name] for name in options if name in theirs}


def reader_option_names(source: str) -> tuple[str, ...]:
  """Returns the names of the options that only this source has."""
  if source == "merge":
    return ("sources",)
  if source not in source_names():
    source_reader(source)
  if source == "synthetic":
    from jaxrec.data import synthetic
    return tuple(inspect.signature(synthetic.synthetic_data).parameters)
  return tuple(inspect.signature(source_reader(source)).parameters)[1:]


def read_log(source: str, raw: str | os.PathLike | None, options: Mapping[str, Any],
             report: Callable[[str], None] | None = None) -> InteractionLog:
  """Returns the interaction log of a source, fetched first where `raw` is None."""
  if source == "merge":
    from jaxrec.data.sources import merge
    return merge.read_merge(options.get("sources", ()), read=lambda entry: _read_merged(entry, report))
  reader = source_reader(source)
  if raw is None:
    from jaxrec.data import download
    raw = download.fetch(source, report=report, **{name: options[name] for name in ("name",) if name in options})
  if not pathlib.Path(raw).exists():
    raise ValueError(f"{raw}: no such file or folder (raw data of source {source!r})")
  return reader(raw, **options)


def _read_merged(entry: Mapping[str, Any], report: Callable[[str], None] | None) -> InteractionLog:
  source = entry.get("source", "")
  known = set(reader_option_names(source)) if source not in ("merge", "synthetic") else set()
  options = {key: value for key, value in entry.items() if key not in ("source", "raw") and (key != "name" or key in known)}
  if unknown := sorted(set(options) - known):
    raise ValueError(f"unknown option(s) {unknown} for source {source!r} in a merge; known: {', '.join(sorted(known))}")
  return read_log(source, entry.get("raw"), options, report)


def build(log: InteractionLog, todo: PrepareOptions, *, source: str, reader_options: Mapping[str, Any] | None = None,
          report: Callable[[str], None] = lambda _: None) -> PreparedData:
  """Returns the prepared data of an interaction log, in memory."""
  report(f"filtering {len(log.events):,} events")
  counts: dict[str, Any] = {"raw_rows": log.raw_rows or len(log.events), "dropped": dict(log.dropped)}
  events = _filter_events(log.events, todo, counts)
  report("numbering users, items and domains")
  events, domain_names = _number_domains(events, log)
  users = _catalogue(events, "user", log.users)
  items = _catalogue(events, "item", _item_catalogue(log, domain_names), by_domain=todo.item_identity == "per_domain")
  events = _number(_number(events, users, "user"), items, "item")
  events = events.select("user", "item", "domain", *(c for c in ("timestamp", "action", "split") if c in events.columns))
  events = _core(events, todo, len(domain_names), counts, report)
  report(f"sorting {len(events):,} events")
  events = _sort(events, log.in_order, counts)
  return _assemble(events, users, items, domain_names, todo, counts, source, reader_options or {})


def _synthetic(options: Mapping[str, Any]) -> PreparedData:
  from jaxrec.data import synthetic
  known = reader_option_names("synthetic")
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise ValueError(f"unknown option(s) {unknown} for source 'synthetic'; known: {', '.join(known)}")
  return synthetic.synthetic_data(**options)


def _filter_events(events: pl.DataFrame, todo: PrepareOptions, counts: dict[str, Any]) -> pl.DataFrame:
  if todo.min_rating is not None:
    if "rating" not in events.columns:
      raise ValueError(f"min_rating={todo.min_rating} needs ratings, but the source has none")
    events = _count(events, events.filter(pl.col("rating") >= todo.min_rating), "rated below min_rating", counts)
  if todo.duplicates != "keep":
    if todo.duplicates == "last" and "timestamp" in events.columns:
      events = events.sort("timestamp", maintain_order=True)
    key = ["user", "item"] + (["domain"] if todo.item_identity == "per_domain" and "domain" in events.columns else [])
    order = "timestamp" if todo.duplicates == "first" and "timestamp" in events.columns else None
    source = events.sort(order, maintain_order=True) if order else events
    events = _count(events, source.unique(key, keep=todo.duplicates, maintain_order=True), "duplicate", counts)
  return events


def _count(before: pl.DataFrame, after: pl.DataFrame, reason: str, counts: dict[str, Any]) -> pl.DataFrame:
  counts["dropped"][reason] = counts["dropped"].get(reason, 0) + len(before) - len(after)
  if after.is_empty():
    raise ValueError(f"no event is left: {len(before)} were dropped because {reason}")
  return after


def _number_domains(events: pl.DataFrame, log: InteractionLog) -> tuple[pl.DataFrame, tuple[str, ...]]:
  """Returns the events with `domain` as 1..C, and the C names."""
  if "domain" not in events.columns and log.items is not None and "domain" in log.items.columns:
    events = events.join(log.items.select("item", "domain"), on="item", how="left", maintain_order="left")
  if "domain" not in events.columns:
    names = log.domains or ("all",)
    return events.with_columns(domain=pl.lit(1, pl.Int32)), names
  met = events["domain"].unique().drop_nulls().to_list()
  names = log.domains or tuple(sorted(met, key=_natural))
  empty, unknown = sorted(set(names) - set(met)), sorted(set(met) - set(names))
  if empty or unknown:
    raise ValueError(f"domains must be {list(names)}: {empty} have no events, {unknown} are not expected")
  ids = pl.DataFrame({"domain": list(names), "__id": np.arange(1, len(names) + 1, dtype=np.int32)})
  numbered = events.join(ids, on="domain", how="left", maintain_order="left").drop("domain").rename({"__id": "domain"})
  return numbered, names


def _natural(name: str) -> tuple[int, int, str]:
  return (0, int(name), "") if name.lstrip("-").isdigit() else (1, 0, name)


def _item_catalogue(log: InteractionLog, domain_names: tuple[str, ...]) -> pl.DataFrame | None:
  if log.items is None or "domain" not in log.items.columns:
    return log.items
  ids = pl.DataFrame({"domain": list(domain_names), "__id": np.arange(1, len(domain_names) + 1, dtype=np.int32)})
  items = log.items.join(ids, on="domain", how="left", maintain_order="left").drop("domain").rename({"__id": "domain"})
  return items.with_columns(pl.col("domain").fill_null(1))


def _catalogue(events: pl.DataFrame, key: str, known: pl.DataFrame | None, by_domain: bool = False) -> pl.DataFrame:
  """Returns one row for each user (item), in the order of the ids, with its key columns."""
  keys = [key, "domain"] if by_domain else [key]
  if known is None:
    return events.select(keys).unique().sort(keys[::-1])
  keys = [name for name in keys if name in known.columns]
  twice = known.filter(pl.struct(keys).is_duplicated()).head(1)
  if len(twice):
    raise ValueError(f"the catalogue holds {key} {twice[key][0]!r} twice")
  strange = events.select(keys).unique().join(known, on=keys, how="anti").sort(keys)
  if len(strange):
    raise ValueError(f"{len(strange)} {key}(s) of the events are not in the catalogue, such as {strange[key].head(3).to_list()}")
  return known


def _number(events: pl.DataFrame, table: pl.DataFrame, key: str) -> pl.DataFrame:
  keys = [name for name in (key, "domain") if name in table.columns and (name == key or len(table) != table[key].n_unique())]
  ids = table.select(keys).with_columns(__id=np.arange(len(table), dtype=np.int32))
  return events.join(ids, on=keys, how="left", maintain_order="left").drop(key).rename({"__id": key})


def _core(events: pl.DataFrame, todo: PrepareOptions, num_domains: int, counts, report) -> pl.DataFrame:
  """Returns the events of the iterated k-core. Counting is `bincount` on the dense numbers, a round costs milliseconds."""
  user, item, domain = (events[name].to_numpy() for name in ("user", "item", "domain"))
  rows, rounds = np.arange(len(user)), 0
  limits = (("users with too few events", user, todo.min_user_events), ("items with too few events", item, todo.min_item_events))
  while True:
    left = len(rows)
    for reason, ids, least in limits:
      rows = _keep(rows, np.bincount(ids[rows])[ids[rows]] >= least, reason, counts)
    if todo.min_domain_events:
      per_domain = np.bincount(user[rows] * np.int64(num_domains) + domain[rows] - 1, minlength=(user.max() + 1) * num_domains)
      enough = (per_domain.reshape(-1, num_domains) >= todo.min_domain_events).all(axis=1)
      rows = _keep(rows, enough[user[rows]], "users with too few events in a domain", counts)
    rounds += 1
    if len(rows) == left:
      break
  if rounds > 1:
    report(f"{rounds - 1} round(s) of filtering leave {len(rows):,} events")
  return events if len(rows) == len(events) else events[rows]


def _keep(rows: np.ndarray, keep: np.ndarray, reason: str, counts: dict[str, Any]) -> np.ndarray:
  lost = int(len(rows) - keep.sum())
  if lost:
    counts["dropped"][reason] = counts["dropped"].get(reason, 0) + lost
    rows = rows[keep]
  if not len(rows):
    raise ValueError(f"no event is left after filtering; dropped: {counts['dropped']}; lower the limits")
  return rows


def _sort(events: pl.DataFrame, in_order: bool, counts: dict[str, Any]) -> pl.DataFrame:
  """Returns the events user by user in time order, ties as in the file.

  Choice: where the source's own order is kept, its few decreasing times are raised to the latest one before them, so that times
  never fall inside a user; the number of raised times is counted.
  """
  if not in_order and "timestamp" in events.columns:
    return events.sort("user", "timestamp", maintain_order=True)
  events = events if events["user"].is_sorted() else events.sort("user", maintain_order=True)
  if "timestamp" in events.columns:
    raised = events.with_columns(pl.col("timestamp").cum_max().over("user"))
    counts["times_raised_to_keep_the_order"] = int((raised["timestamp"] != events["timestamp"]).sum())
    events = raised
  return events


def _assemble(events, users, items, domain_names, todo, counts, source, reader_options) -> PreparedData:
  kept_users, user = np.unique(events["user"].to_numpy(), return_inverse=True)
  item = events["item"].to_numpy()
  if todo.min_item_events:
    kept_items, item = np.unique(item, return_inverse=True)
    items = items[kept_items]
  offsets = np.concatenate([[0], np.cumsum(np.bincount(user))]).astype(np.int64)
  columns = {"item_id": (item + 1).astype(np.int32), "domain_id": events["domain"].to_numpy().astype(np.int32)}
  for name in ("timestamp", "action"):
    has = name in events.columns
    columns[name] = events[name].to_numpy().astype(prepared.COLUMNS[name]) if has else np.zeros(len(item), prepared.COLUMNS[name])
  columns["split"], split = _split(events, offsets, todo)
  lengths = np.diff(offsets)
  counts |= {"users_train_only": int((np.add.reduceat(columns["split"] > 0, offsets[:-1]) == 0).sum()),
             "events_per_user": {"least": int(lengths.min()), "median": float(np.median(lengths)), "most": int(lengths.max())}}
  if len(domain_names) > 1:
    pairs = np.unique(np.repeat(np.arange(len(kept_users)), lengths) * np.int64(len(domain_names)) + columns["domain_id"] - 1)
    counts["users_in_several_domains"] = int((np.bincount(pairs // len(domain_names)) > 1).sum())
  options = {**dict(reader_options), **dataclasses.asdict(todo)}
  meta = {"format": prepared.FORMAT, "source": source, "options": _plain(options), "num_users": len(kept_users),
          "num_items": len(items), "num_domains": len(domain_names), "num_events": len(item), "domain_names": list(domain_names),
          "split": split, "has_timestamps": "timestamp" in events.columns, "counts": counts}
  return PreparedData(**columns, offsets=offsets, meta=meta, item_table=_item_table(items, columns, domain_names),
                      user_table=_user_table(users[kept_users]))


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
          for name, value in options.items()}


def _item_table(items: pl.DataFrame, columns: Mapping[str, np.ndarray], domain_names: tuple[str, ...]) -> pl.DataFrame:
  domain = prepared.first_domain(columns["item_id"], columns["domain_id"], len(items))[1:]
  if "domain" in items.columns:
    domain = items["domain"].to_numpy().astype(np.int32)
  title = pl.col("title").fill_null("") if "title" in items.columns else pl.lit("")
  raw_id = pl.col("raw_id" if "raw_id" in items.columns else "item")
  extra = [name for name in items.columns if name not in ("item", "raw_id", "title", "domain")]
  return items.with_columns(item_id=np.arange(1, len(items) + 1, dtype=np.int32), raw_id=raw_id.cast(pl.String),
                            title=title, domain_id=domain).select("item_id", "raw_id", "title", "domain_id", *extra)


def _user_table(users: pl.DataFrame) -> pl.DataFrame:
  raw_id = pl.col("raw_id") if "raw_id" in users.columns else pl.col("user").cast(pl.String)
  return users.select(raw_id=raw_id).with_columns(user=np.arange(len(users), dtype=np.int64)).select("user", "raw_id")


def _split(events: pl.DataFrame, offsets: np.ndarray, todo: PrepareOptions) -> tuple[np.ndarray, dict[str, Any]]:
  if todo.split == "leave_one_out":
    return prepared.leave_one_out(offsets), {"kind": "leave_one_out"}
  if todo.split == "given":
    if "split" not in events.columns:
      raise ValueError("split='given' needs a source that says which events are for validation and test; this one does not")
    return events["split"].to_numpy().astype(np.uint8), {"kind": "given"}
  if "timestamp" not in events.columns:
    raise ValueError("split='by_time' needs times, but the source has none; use split='leave_one_out'")
  times = events["timestamp"].to_numpy()
  early = int(np.quantile(times, 0.90, method="higher")) if todo.validation_time is None else todo.validation_time
  late = int(np.quantile(times, 0.95, method="higher")) if todo.test_time is None else todo.test_time
  split = (times >= early).astype(np.uint8) + (times >= late).astype(np.uint8)
  if early >= late or len(np.unique(split)) < 3:
    raise ValueError(f"split='by_time' with validation_time={early}, test_time={late} leaves a part empty; the events lie "
                     f"between {times.min()} and {times.max()}, and validation_time must lie before test_time")
  return split, {"kind": "by_time", "validation_time": early, "test_time": late}
