"""Data by configuration: prepared on first use, loaded from disk afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.data import single_domain
from jaxrec.data.preparation.download import cache_root
from jaxrec.data.preparation.prepare import generate, prepare
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import GENERATED

# Source -> its folder in $JAXREC_DATA: the names under which the official archives unpack, and a sample of Taobao.
RAW_FOLDERS: Mapping[str, str] = {
  "movielens-100k": "ml-100k", "movielens-1m": "ml-1m", "movielens-20m": "ml-20m", "movielens-25m": "ml-25m",
  "movielens-32m": "ml-32m", "kuairand-1k": "kuairand-1k", "amazon-5core": "amazon-5core", "abxi": "abxi-food-kitchen",
  "taobao": "taobao-sample",
}  # fmt: skip


def load_data(settings: ConfigDict) -> PreparedData:
  """Returns the data that a config group describes, preparing it first if necessary.

  Generated data is made in memory, unless `prepared` names a folder. Other data is loaded from the folder `prepared`,
  or from the cache ($JAXREC_CACHE, by default ~/.cache/jaxrec) if that is empty. A folder that does not exist is
  prepared first, from `raw`, else from the source's folder in $JAXREC_DATA, else from a download. On several hosts
  host 0 prepares and the others wait.

  Args:
    settings: the group `data` of a config: `source`, `raw`, `prepared`, `options` (keyword arguments of `prepare`), and
      `only_domain`, the name of the one domain to keep, or "" for all.

  Raises:
    ValueError: unknown source, option or domain, or raw data that cannot be read.

  >>> group = {"source": "synthetic", "raw": "", "prepared": "", "options": {"num_users": 5}, "only_domain": ""}
  >>> load_data(ConfigDict(group)).num_users
  5
  """
  data = _all_domains(settings)
  return single_domain.only_domain(data, settings.only_domain) if settings.only_domain else data


def _all_domains(settings: ConfigDict) -> PreparedData:
  options = settings.options.to_dict()
  if settings.source in GENERATED and not settings.prepared:
    return generate(settings.source, options)
  raw = settings.raw or raw_folder(settings.source)
  folder = settings.prepared or prepared_folder(settings.source, raw, options)
  if not os.path.exists(folder) and jax.process_index() == 0:
    prepare(settings.source, raw, folder, report=logging.info, **options)
  parallel.wait_for_all_hosts("prepare data")  # On every host, whether or not it found the folder.
  logging.info("data: %s", folder)
  return PreparedData.load(folder)


def raw_folder(source: str) -> str | None:
  """Returns the folder in $JAXREC_DATA with the raw data of a source, or None if there is none."""
  root, name = os.environ.get("JAXREC_DATA"), RAW_FOLDERS.get(source)
  path = os.path.join(root, name) if root and name else None
  return path if path and os.path.exists(path) else None


def prepared_folder(source: str, raw: str | None, options: Mapping[str, Any]) -> pathlib.Path:
  """Returns the folder of the cache for prepared data; its name depends on source, raw path and options."""
  key = json.dumps([raw and os.path.abspath(raw), options], sort_keys=True, default=str)
  return cache_root() / "prepared" / f"{source}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
