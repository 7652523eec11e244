"""Data by configuration: prepared on first use, loaded from disk afterwards."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.data import single_domain, time_window
from jaxrec.data.local_path import check_local, is_url
from jaxrec.data.preparation.download import cache_root
from jaxrec.data.preparation.prepare import generate, prepare, recorded_options, without_paths
from jaxrec.data.preparation.raw_state import files_state, raw_folder
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import GENERATED
from jaxrec.data.whole_folder import FolderExistsError


def load_data(settings: ConfigDict, part: tuple[int, int] = (0, 1)) -> PreparedData:
  """Returns the data that a config group describes, preparing it first if necessary.

  Generated data is made in memory, unless `prepared` names a folder; the latest is kept for the next call. Other data
  is loaded from the folder `prepared`, or from the cache ($JAXREC_CACHE, by default ~/.cache/jaxrec) if that is empty.
  A folder that does not exist is prepared first, from `raw`, else from the source's folder in $JAXREC_DATA, else from a
  download. On several hosts host 0 prepares and the others wait. The cache has a folder for each state of the raw
  files: they are prepared again when their sizes or times have changed. All columns and tables are read once and
  compared with the fingerprint that was taken when they were written.

  Args:
    settings: the group `data` of a config: `source`, `raw`, `prepared` (a folder, or the URL of one that is prepared),
      `options` (keyword arguments of `prepare`), `only_domain`, the name of the one domain to keep, or "" for all, and
      perhaps `domains_apart`, whether each domain's events are histories of their own, and `time_cuts` of
      `jaxrec.data.time_window`, or () for the split that the data was prepared with.
    part: which part of the shards to open, see `PreparedData.load`; one domain or a window of time needs all.

  Raises:
    ValueError: unknown source, option or domain, raw data that cannot be read, a folder that was prepared with other
      options than the config gives, or whose files have changed since.

  >>> group = {"source": "synthetic", "raw": "", "prepared": "", "options": {"num_users": 5}, "only_domain": ""}
  >>> load_data(ConfigDict(group)).num_users
  5
  """
  return _chosen_events(_all_domains(settings, part), settings)


def _chosen_events(data: PreparedData, settings: ConfigDict) -> PreparedData:
  if cuts := settings.get("time_cuts", ()):
    data = time_window.time_window(data, cuts)
  if settings.only_domain:
    return single_domain.only_domain(data, settings.only_domain)
  return single_domain.domains_apart(data) if settings.get("domains_apart", False) else data


def _all_domains(settings: ConfigDict, part: tuple[int, int]) -> PreparedData:
  if settings.source in GENERATED and not settings.prepared:
    return _generated(settings.source, json.dumps(settings.options.to_dict(), sort_keys=True))
  folder = _folder(settings)
  if not _exists(folder) and jax.process_index() == 0:
    _prepare(settings, folder)
  parallel.wait_for_all_hosts("prepare data")  # On every host, whether or not it found the folder.
  logging.info("data: %s", folder)
  data = PreparedData.load(folder, part)
  _check_described(settings, data, folder)
  data.check_content()
  return data


@functools.lru_cache(maxsize=1)
def _generated(source: str, options: str) -> PreparedData:
  """Returns the data of a generator, the same for the next run of a process: a sweep's, or one that is compared.

  Args:
    source: a name in `GENERATED`.
    options: of the generator, as JSON.
  """
  data = generate(source, json.loads(options))
  for column in (*vars(data).values(), *data.actions.values()):
    if isinstance(column, np.ndarray):
      column.flags.writeable = False  # As those of a folder are.
  return data


def saved_data(settings: ConfigDict) -> PreparedData | None:
  """Returns what `load_data` would load from a folder, without reading all of it.

  None where it would generate or prepare the data. It needs no device.

  Args:
    settings: the group `data` of a config.

  Raises:
    ValueError: as `load_data`.
  """
  if settings.source in GENERATED and not settings.prepared:
    return None
  folder = _folder(settings)
  if not _exists(folder):
    return None
  data = PreparedData.load(folder)
  _check_described(settings, data, folder)
  return _chosen_events(data, settings)


def _folder(settings: ConfigDict) -> str | os.PathLike:
  check_local("config.data.raw", settings.raw)
  if not settings.prepared:
    raw = settings.raw or raw_folder(settings.source)
    return prepared_folder(settings.source, raw, settings.options.to_dict())
  if not settings.source and not _exists(settings.prepared):
    raise ValueError(
      f"config.data.prepared={settings.prepared!r}: no such folder; create it with `python -m experiments.prepare`, or"
      " name a source in config.data.source to prepare it from"
    )
  return settings.prepared


def _exists(folder: str | os.PathLike) -> bool:
  """Returns whether there is a folder, or should be: one in an object store is not prepared on first use."""
  return is_url(folder) or os.path.exists(folder)


def _prepare(settings: ConfigDict, folder: str | os.PathLike) -> None:
  try:
    prepare(settings.source, settings.raw or None, folder, report=logging.info, **settings.options.to_dict())
  except FolderExistsError:
    logging.info("%s: another process has prepared it meanwhile", folder)


def _check_described(settings: ConfigDict, data: PreparedData, folder: str | os.PathLike) -> None:
  """Compares what the config says about a folder with what it was prepared from; what it does not say may be anything.

  Raises:
    ValueError: another value of an option, for the same source. Of another source any config may take the data; that is
      warned about.
  """
  source = data.meta["source"]
  if settings.source not in ("", source):
    logging.warning("%s was prepared from source %r, not config.data.source=%r", folder, source, settings.source)
    return
  recorded = recorded_options(data.meta)
  given = json.loads(json.dumps(without_paths(settings.options.to_dict()), default=str)) if settings.source else {}
  wrong = [
    f"its {name} is {recorded.get(name)!r}, config.data.options.{name} is {value!r}"
    for name, value in given.items()
    if recorded.get(name) != value
  ]
  if wrong:
    raise ValueError(
      f"{folder} was prepared otherwise: {'; '.join(wrong)}. Give the options that it was prepared with, none, or"
      " another folder in config.data.prepared"
    )
  before = data.meta.get("raw_files")
  if settings.raw and before and before != files_state(settings.raw):
    logging.warning("%s is not what it was when %s was prepared from it; prepare it again", settings.raw, folder)


def prepared_folder(source: str, raw: str | None, options: Mapping[str, Any]) -> pathlib.Path:
  """Returns the folder of the cache for prepared data.

  Its name depends on source, raw path, options, and on sizes and times of the raw files.
  """
  paths = [raw, *(entry.get("raw") for entry in options.get("sources", ()))]  # Those of "merge" are in its options.
  states = [files_state(path) for path in paths if path]
  key = json.dumps([raw and os.path.abspath(raw), options, states], sort_keys=True, default=str)
  return cache_root() / "prepared" / f"{source}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
