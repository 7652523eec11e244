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

from jaxrec.data import prepared, prepared_files
from jaxrec.data.preparation import filters
from jaxrec.data.preparation.filters import PrepareOptions
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import GENERATED, InteractionLog, generator, source_reader

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
  "merge": {"item_identity": "per_domain"},
  "kuairand-1k": {"min_user_events": 10, "split": "given"},
}


def prepare(
  source: str,
  raw: str | os.PathLike | None = None,
  out: str | os.PathLike | None = None,
  *,
  overwrite: bool = False,
  report: Callable[[str], None] | None = None,
  **options: Any,
) -> PreparedData:
  """Returns the prepared data of a source, written to the folder `out` (or only in memory where `out` is None).

  Args:
    source: a name of `jaxrec.data.sources.source_names()`.
    raw: the file or folder of the raw data; None downloads the official files ("merge" and generators need none).
    out: the folder to write; it appears complete or not at all.
    overwrite: replace an earlier prepared folder.
    report: called with one line a stage; None = silence.
    **options: the fields of `PrepareOptions` and the keyword arguments of the source's reader.

  Raises:
    ValueError: unknown source or option; bad data (file, line, column and text are named); nothing is left after
      filtering.
  """
  say = report or (lambda _: None)
  if out is not None:
    prepared_files.check_free(pathlib.Path(out), overwrite)
  if source in GENERATED:
    data = generate(source, options)
  else:
    todo, reader_options = split_options(source, options)
    say(f"reading {source}" + (f" from {raw}" if raw is not None else ""))
    log = read_log(source, raw, reader_options, say)
    data = build(log, todo, source=source, reader_options=reader_options, report=say)
  if out is None:
    return data
  say(f"writing {out}")
  return data.save(out, overwrite=overwrite)


def generate(source: str, options: Mapping[str, Any]) -> PreparedData:
  """Returns the data of a source that needs no raw files, in memory.

  Raises:
    ValueError: an unknown option, or one out of its range.
  """
  known = reader_parameters(source)
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise ValueError(f"unknown option(s) {unknown} for source {source!r}; known: {', '.join(known)}")
  return generator(source)(**options)


def split_options(source: str, options: Mapping[str, Any]) -> tuple[PrepareOptions, dict[str, Any]]:
  """Returns the options of the filters and splits, and those of the source's reader.

  Raises:
    ValueError: an option belongs to neither.
  """
  ours = {field.name for field in dataclasses.fields(PrepareOptions)}
  theirs = reader_parameters(source)
  unknown = sorted(set(options) - ours - set(theirs))
  if unknown:
    raise ValueError(f"unknown option(s) {unknown} for source {source!r}; known: {', '.join(sorted({*ours, *theirs}))}")
  todo = PrepareOptions(**{**_DEFAULTS.get(source, {}), **{name: options[name] for name in options if name in ours}})
  return todo, {name: options[name] for name in options if name in theirs}


def reader_parameters(source: str) -> dict[str, inspect.Parameter]:
  """Returns the options that belong to the source itself, by name.

  Raises:
    ValueError: there is no such source.
  """
  if source == "merge":
    return {"sources": inspect.Parameter("sources", inspect.Parameter.KEYWORD_ONLY)}
  if source in GENERATED:
    return dict(inspect.signature(generator(source)).parameters)
  parameters = dict(inspect.signature(source_reader(source)).parameters)
  return {name: parameter for name, parameter in parameters.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


def read_log(
  source: str, raw: str | os.PathLike | None, options: Mapping[str, Any], report: Callable[[str], None] | None = None
) -> InteractionLog:
  """Returns the interaction log of a source, fetched first where `raw` is None."""
  if source == "merge":
    from jaxrec.data.sources import merge

    return merge.read_merge(options.get("sources", ()), read=lambda entry: _read_merged(entry, report))
  reader = source_reader(source)
  if raw is None:
    from jaxrec.data.preparation import download

    accepted = inspect.signature(reader).parameters
    which = {key: options.get(key, accepted[key].default) for key in ("name", "edition") if key in accepted}
    raw = download.fetch(source, report=report, **which)
  if not pathlib.Path(raw).exists():
    raise ValueError(f"{raw}: no such file or folder (raw data of source {source!r})")
  return reader(raw, **options)


def _read_merged(entry: Mapping[str, Any], report: Callable[[str], None] | None) -> InteractionLog:
  source = entry.get("source", "")
  known = set(reader_parameters(source)) if source not in ("merge", *GENERATED) else set()
  options = {
    key: value for key, value in entry.items() if key not in ("source", "raw") and (key != "name" or key in known)
  }
  if unknown := sorted(set(options) - known):
    raise ValueError(f"unknown option(s) {unknown} for source {source!r} in a merge; known: {', '.join(sorted(known))}")
  return read_log(source, entry.get("raw"), options, report)


def build(
  log: InteractionLog,
  todo: PrepareOptions,
  *,
  source: str,
  reader_options: Mapping[str, Any] | None = None,
  report: Callable[[str], None] = lambda _: None,
) -> PreparedData:
  """Returns the prepared data of an interaction log, in memory."""
  report(f"filtering {len(log.events):,} events")
  counts: dict[str, Any] = {"raw_rows": log.raw_rows or len(log.events), "dropped": dict(log.dropped)}
  events = filters.drop_events(log.events, log.in_order, todo, counts)
  report("numbering users, items and domains")
  events, domain_names = _number_domains(events, log)
  users = _catalogue(events, "user", log.users)
  items = _catalogue(events, "item", _item_catalogue(log, domain_names), by_domain=todo.item_identity == "per_domain")
  events = _number(_number(events, users, "user"), items, "item")
  events = events.select(
    "user", "item", "domain", *(c for c in ("timestamp", "action", "split") if c in events.columns)
  )
  events = filters.core(events, todo, len(domain_names), counts, report)
  report(f"sorting {len(events):,} events")
  events = filters.sort(events, log.in_order, counts)
  return _assemble(events, users, items, domain_names, todo, counts, source, reader_options or {})


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
  if by_domain and "domain" not in known.columns:
    known = events.select(keys).unique().sort(keys[::-1]).join(known, on=key, how="left", maintain_order="left")
  twice = known.filter(pl.struct(keys).is_duplicated()).head(1)
  if len(twice):
    raise ValueError(f"the catalogue holds {key} {twice[key][0]!r} twice")
  strange = events.select(keys).unique().join(known, on=keys, how="anti").sort(keys)
  if len(strange):
    raise ValueError(
      f"{len(strange)} {key}(s) of the events are not in the catalogue, such as {strange[key].head(3).to_list()}"
    )
  return known


def _number(events: pl.DataFrame, table: pl.DataFrame, key: str) -> pl.DataFrame:
  keys = [
    name for name in (key, "domain") if name in table.columns and (name == key or len(table) != table[key].n_unique())
  ]
  ids = table.select(keys).with_columns(__id=np.arange(len(table), dtype=np.int32))
  return events.join(ids, on=keys, how="left", maintain_order="left").drop(key).rename({"__id": key})


def _assemble(events, users, items, domain_names, todo, counts, source, reader_options) -> PreparedData:
  kept_users, user = np.unique(events["user"].to_numpy(), return_inverse=True)
  item = events["item"].to_numpy()
  if todo.min_item_events:
    kept_items, item = np.unique(item, return_inverse=True)
    items = items[kept_items]
  offsets = np.concatenate([[0], np.cumsum(np.bincount(user))]).astype(np.int64)
  events = events.with_columns(item_id=item + 1, domain_id="domain")
  columns = {name: _column(events, name) for name in ("item_id", "domain_id", "timestamp", "action")}
  columns["split"], split = filters.split(events, offsets, todo)
  _count_users(counts, offsets, columns["split"], columns["domain_id"], domain_names)
  meta = {
    "format": prepared_files.FORMAT,
    "source": source,
    "options": _plain({**reader_options, **dataclasses.asdict(todo)}),
    "num_users": len(kept_users),
    "num_items": len(items),
    "num_domains": len(domain_names),
    "num_events": len(item),
    "domain_names": list(domain_names),
    "split": split,
    "has_timestamps": "timestamp" in events.columns,
    "counts": counts,
  }
  tables = {"item_table": _item_table(items, columns), "user_table": _user_table(users[kept_users])}
  return PreparedData(**columns, offsets=offsets, meta=meta, **tables)


def _column(events: pl.DataFrame, name: str) -> np.ndarray:
  if name not in events.columns:
    return np.zeros(len(events), prepared.COLUMNS[name])
  return events[name].to_numpy().astype(prepared.COLUMNS[name])


def _count_users(counts: dict[str, Any], offsets, split, domain_id, domain_names: tuple[str, ...]) -> None:
  lengths = np.diff(offsets)
  counts["users_train_only"] = int((np.add.reduceat(split > 0, offsets[:-1]) == 0).sum())
  counts["events_per_user"] = {
    "least": int(lengths.min()),
    "median": float(np.median(lengths)),
    "most": int(lengths.max()),
  }
  num_domains = len(domain_names)
  if num_domains > 1:
    user = np.repeat(np.arange(len(lengths)), lengths)
    pairs = np.unique(user * num_domains + domain_id - 1)
    counts["users_in_several_domains"] = int((np.bincount(pairs // num_domains) > 1).sum())
    without_events = np.bincount(domain_id, minlength=num_domains + 1)[1:] == 0
    counts["domains_emptied_by_filters"] = [
      name for name, empty in zip(domain_names, without_events, strict=True) if empty
    ]


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
  return {
    name: value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
    for name, value in options.items()
  }


def _item_table(items: pl.DataFrame, columns: Mapping[str, np.ndarray]) -> pl.DataFrame:
  domain = prepared.first_domain(columns["item_id"], columns["domain_id"], len(items))[1:]
  if "domain" in items.columns:
    domain = items["domain"].to_numpy().astype(np.int32)
  title = pl.col("title").fill_null("") if "title" in items.columns else pl.lit("")
  raw_id = pl.col("raw_id" if "raw_id" in items.columns else "item")
  extra = [name for name in items.columns if name not in ("item", "raw_id", "title", "domain")]
  return items.with_columns(
    item_id=np.arange(1, len(items) + 1, dtype=np.int32), raw_id=raw_id.cast(pl.String), title=title, domain_id=domain
  ).select("item_id", "raw_id", "title", "domain_id", *extra)


def _user_table(users: pl.DataFrame) -> pl.DataFrame:
  raw_id = pl.col("raw_id") if "raw_id" in users.columns else pl.col("user").cast(pl.String)
  return users.select(raw_id=raw_id).with_columns(user=np.arange(len(users), dtype=np.int64)).select("user", "raw_id")
