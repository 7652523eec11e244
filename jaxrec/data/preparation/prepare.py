"""Raw files -> prepared data: read, filter, number the ids, sort, split, write.

data = prepare("movielens-1m", raw="ml-1m", out="prepared/ml1m")
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import inspect
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxrec.data import prepared_files
from jaxrec.data.item_features import with_item_file
from jaxrec.data.preparation import extend, filters, log_checks
from jaxrec.data.preparation.assemble import assemble, json_values
from jaxrec.data.preparation.filters import PrepareOptions
from jaxrec.data.preparation.number_ids import number_ids
from jaxrec.data.preparation.raw_state import files_state, raw_folder
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import GENERATED, InteractionLog, generator, source_names, source_reader
from jaxrec.data.sources.text_format import PARSER_ERRORS

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
  extends: str | os.PathLike | None = None,
  shards: int = 1,
  item_features: str | os.PathLike | None = None,
  report: Callable[[str], None] | None = None,
  **options: Any,
) -> PreparedData:
  """Returns the prepared data of a source, written to the folder `out`, or only in memory if `out` is None.

  Args:
    source: a name from `jaxrec.data.sources.source_names()`.
    raw: the file or folder of raw data; None takes the source's folder in $JAXREC_DATA, or downloads the official files
      ("merge" and generators need none).
    out: the folder to write; it appears complete or not at all.
    overwrite: whether to replace an existing prepared folder.
    extends: a prepared folder, of a day before, whose events come first: its users, items and domains keep their ids,
      new ones come after them. Options that are not given are those of that folder. Limits on events drop new users and
      items only, counted over the events of both. The folder stays as it is, unless it is `out`.
    shards: folders inside `out` that users are dealt out to, so that each host of a training opens its own; 1: none.
    item_features: a Parquet file with further columns of the items; see `jaxrec.data.item_features.with_item_file`.
    report: called with a line of text at each stage; None for no reports.
    **options: the fields of `PrepareOptions` and the keyword arguments of the source's reader.

  Raises:
    ValueError: unknown source or option; bad data (the message names file, line, column and text); no event is left
      after filtering; the folder exists.
    OSError: the folder cannot be written.

  >>> data = prepare("synthetic", num_users=8, num_items=24)  # In memory, as no folder is given.
  >>> data.num_users, data.num_items
  (8, 24)
  """
  report = report or _ignore
  if out is None and shards != 1:
    raise ValueError(f"{shards=} needs out, the folder to write")
  if out is not None:
    prepared_files.check_free(pathlib.Path(out), overwrite)
  raw = raw_folder(source) if raw is None else raw
  before = files_state(raw)  # Files that change while they are read count as changed.
  base = None if extends is None else extend.load_base(extends, source)
  if source in GENERATED:
    data = generate(source, options)
  else:
    options = options if base is None else extend.inherited_options(base, source, options)
    prepare_options, reader_options = split_options(source, options)
    report(f"reading {source}" + (f" from {raw}" if raw is not None else ""))
    log = read_log(source, raw, reader_options, report)
    try:
      how = {"source": source, "reader_options": reader_options, "report": report, "base": base}
      data = prepare_log(log, prepare_options, **how)
    except ValueError as error:  # About all events, so that no reader has named a file.
      raise ValueError(f"{raw}: {error}" if raw is not None else str(error)) from error
  if before is not None:
    data = dataclasses.replace(data, meta={**data.meta, "raw_files": before})
  if item_features is not None:
    report(f"reading {item_features}")
    data = with_item_file(data, item_features)
  if out is None:
    return data
  report(f"writing {out}")
  return data.save(out, overwrite=overwrite, shards=shards)


def _ignore(line: str) -> None:
  pass


def generate(source: str, options: Mapping[str, Any]) -> PreparedData:
  """Returns the data of a generator, in memory.

  Args:
    source: a name in `jaxrec.data.sources.GENERATED`.
    options: keyword arguments of the generator.

  Raises:
    ValueError: an unknown option, or one out of range.
  """
  known = reader_parameters(source)
  _check_known(source, options, known)
  return generator(source)(**options)


def split_options(source: str, options: Mapping[str, Any]) -> tuple[PrepareOptions, dict[str, Any]]:
  """Returns the options of filters and split, with the source's defaults, and the options of the source's reader.

  Raises:
    ValueError: an unknown option.
  """
  filter_names = {field.name for field in dataclasses.fields(PrepareOptions)}
  reader_names = reader_parameters(source)
  _check_known(source, options, sorted({*filter_names, *reader_names}))
  given = {name: value for name, value in options.items() if name in filter_names}
  prepare_options = PrepareOptions(**{**_DEFAULTS.get(source, {}), **given})
  return prepare_options, {name: value for name, value in options.items() if name in reader_names}


def recorded_options(meta: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options that prepared data was made with, those of the reader that were not given among them.

  Args:
    meta: of the prepared data.
  """
  source = meta["source"]
  known = reader_parameters(source) if source in source_names() else {}
  defaults = {name: x.default for name, x in known.items() if x.default is not inspect.Parameter.empty}
  return without_paths({**json_values(defaults), **meta["options"]})


def without_paths(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns options without the paths of raw files, which may move: those of "merge" have some in `sources`."""
  if not isinstance(options.get("sources"), list | tuple):
    return dict(options)
  sources = [{key: value for key, value in entry.items() if key != "raw"} for entry in options["sources"]]
  return {**options, "sources": sources}


def reader_parameters(source: str) -> dict[str, inspect.Parameter]:
  """Returns the options of the source's own reader or generator, by name.

  Raises:
    ValueError: an unknown source.
  """
  if source == "merge":
    from jaxrec.data.sources import merge

    parameters = inspect.signature(merge.read_merge).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "read"}
  if source in GENERATED:
    return dict(inspect.signature(generator(source)).parameters)
  parameters = dict(inspect.signature(source_reader(source)).parameters)
  return {
    name: parameter
    for name, parameter in parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "report"
  }


def _check_known(source: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
  known = list(known)
  if unknown := sorted(set(options) - set(known)):
    raise ValueError(f"unknown option(s) {unknown} for source {source!r}; known: {', '.join(known)}")


def read_log(
  source: str, raw: str | os.PathLike | None, options: Mapping[str, Any], report: Callable[[str], None] | None = None
) -> InteractionLog:
  """Returns the interaction log of a source, downloaded first if `raw` is None.

  Args:
    source: a name in `jaxrec.data.sources.SOURCES`, or "merge".
    raw: the file or folder of raw data.
    options: keyword arguments of the source's reader.
    report: called with a line of text before a download.

  Raises:
    ValueError: an unknown source, no such file, or bad data.
  """
  if source == "merge":
    from jaxrec.data.sources import merge

    options = {"sources": (), **options}
    return merge.read_merge(**options, read=lambda entry: _read_merged(entry, report))
  reader = source_reader(source)
  if raw is None:
    from jaxrec.data.preparation import download

    accepted = inspect.signature(reader).parameters
    which = {key: options.get(key, accepted[key].default) for key in ("name", "edition") if key in accepted}
    raw = download.fetch(source, report=report, **which)
  if not pathlib.Path(raw).exists() and not glob.glob(os.fspath(raw), recursive=True):
    raise ValueError(f"{raw}: no such file or folder (raw data of source {source!r})")
  if "report" in inspect.signature(reader).parameters:
    options = {**options, "report": report}
  return _read(reader, raw, options)


def _read(reader: Callable[..., InteractionLog], raw: str | os.PathLike, options: Mapping[str, Any]) -> InteractionLog:
  """Returns what a reader reads; whatever a library raises on the way becomes an error that names the raw data."""
  try:
    return reader(raw, **options)
  except (
    *PARSER_ERRORS,
    csv.Error,
    zipfile.BadZipFile,
    zlib.error,
    ArithmeticError,
    LookupError,
    EOFError,
    OSError,
    UnicodeError,
    json.JSONDecodeError,
    RecursionError,
    MemoryError,
  ) as error:
    raise ValueError(f"{raw}: cannot be read: {type(error).__name__}: {error}") from error


def _read_merged(entry: Mapping[str, Any], report: Callable[[str], None] | None) -> InteractionLog:
  source = entry.get("source", "")
  known = reader_parameters(source) if source not in ("merge", *GENERATED) else {}
  # `name` is the domain of the merge, and an option of some readers too.
  options = {
    key: value for key, value in entry.items() if key not in ("source", "raw") and (key != "name" or key in known)
  }
  _check_known(source, options, sorted(known))
  return read_log(source, entry.get("raw"), options, report)


def prepare_log(
  log: InteractionLog,
  options: PrepareOptions,
  *,
  source: str,
  reader_options: Mapping[str, Any] | None = None,
  report: Callable[[str], None] = _ignore,
  base: PreparedData | None = None,
) -> PreparedData:
  """Returns the prepared data of an interaction log, in memory.

  Args:
    log: events, and the items, users and domains that the source lists.
    options: filters and split.
    source: name of the source, for `meta`.
    reader_options: options of the source's reader, for `meta`.
    report: called with a line of text at each stage.
    base: earlier data, whose events come first and whose ids stay; see `prepare`.

  Raises:
    ValueError: a log without events or with a value that is no id, time, action or split, options that do not fit it,
      or no event is left after filtering.
  """
  log = log_checks.checked(log)
  report(f"filtering {len(log.events):,} events")
  counts: dict[str, Any] = {"raw_rows": log.raw_rows or len(log.events), "dropped": dict(log.dropped)}
  events = filters.drop_events(log.events, log.in_order, options, counts)
  report("numbering users, items and domains")
  numbered = number_ids(events, log, items_per_domain=options.item_identity == "per_domain")
  time_unit = log.time_unit
  if base is not None:
    numbered, time_unit = extend.extended(base, numbered, log, options, counts), "s"
  known = numbered.known_users, numbered.known_items
  events = filters.k_core(numbered.events, len(numbered.domain_names), options, counts, report, known)
  report(f"sorting {len(events):,} events")
  events = filters.in_seconds(filters.sort_events(events, log.in_order, counts), time_unit)
  data = assemble(dataclasses.replace(numbered, events=events), options, counts, source, reader_options or {})
  if base is None:
    return data
  return dataclasses.replace(data, meta={**data.meta, "extends": extend.description(base, data)})
