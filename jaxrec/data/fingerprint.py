"""Fingerprints of prepared data: a hash of each part of its content, wherever the folder is."""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  import polars as pl

  from jaxrec.data.prepared import PreparedData

Fingerprint = Mapping[str, Mapping[str, Any]]

_EVENT_PARTS = ("item_id", "domain_id", "timestamp", "action", "split")
_ROWS = 1 << 20  # Of a text column that are hashed at a time.


def fingerprint(data: PreparedData, event_hashes: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
  """Returns the fingerprint of prepared data, as JSON: `counts`, and `hashes` of its parts.

  The parts are the raw ids of the users and of the items, titles and further columns of the items, domain names,
  offsets, and the columns of the events. It depends on nothing else: neither on paths and times of files, nor on the
  version of the library that wrote them.

  Args:
    data: in a folder or in memory; all of it is read.
    event_hashes: those of the columns of events, where they are known; `data` needs no columns then.

  >>> from jaxrec.data.prepared import PreparedData
  >>> one, other = (PreparedData.from_columns(user=[0, 0], item_id=[1, item]) for item in (2, 3))
  >>> fingerprint(one)["counts"]
  {'users': 1, 'items': 2, 'domains': 1, 'events': 2}
  >>> differences(fingerprint(one), fingerprint(other))
  'items: 2 when trained, 3 now; other values in item_id, items, titles, items.domain_id'
  """
  parts = {"domains": list(data.domain_names), "offsets": np.asarray(data.offsets, np.int64)}
  if event_hashes is None:
    parts |= {name: getattr(data, name) for name in _EVENT_PARTS}
    parts |= {f"action.{name}": values for name, values in data.actions.items()}
  parts |= {f"names of {column}": list(names) for column, names in data.action_names.items()}
  parts |= table_parts(data)
  counts = {"users": data.num_users, "items": data.num_items, "domains": data.num_domains, "events": data.num_events}
  return {"counts": counts, "hashes": {**hashes(parts), **(event_hashes or {})}}


def table_parts(data: PreparedData) -> dict[str, pl.Series]:
  """Returns the parts that are columns of the id tables, by name."""
  items = {_item_part(name): data.items[name] for name in data.items.columns if name not in ("item_id", "raw_id")}
  return {"users": data.users["raw_id"], "items": data.items["raw_id"], **items}


def hashes(parts: Mapping[str, Any]) -> dict[str, str]:
  """Returns the hash of each array, list or column, by its name."""
  with concurrent.futures.ThreadPoolExecutor() as threads:  # Hashing large buffers needs no interpreter lock.
    return dict(zip(parts, threads.map(_hash, parts.values()), strict=True))


def hashes_of_blocks(blocks: Iterable[Mapping[str, np.ndarray]]) -> dict[str, str]:
  """Returns the hashes of arrays that come in blocks, one after another, as `hashes` does of arrays in one piece."""
  digests: dict[str, Any] = {}
  for block in blocks:
    for name, values in block.items():
      digests.setdefault(name, hashlib.sha256()).update(_bytes(values))
  return {name: digest.hexdigest()[:16] for name, digest in digests.items()}


def differences(before: Fingerprint, now: Fingerprint) -> str:
  """Returns what differs between two fingerprints, by name; "" where nothing does.

  >>> differences({"counts": {"items": 3416}, "hashes": {}}, {"counts": {"items": 3417}, "hashes": {}})
  'items: 3,416 when trained, 3,417 now'
  """
  old, new = before["counts"], now["counts"]
  lines = [f"{name}: {old[name]:,} when trained, {new[name]:,} now" for name in old if old[name] != new.get(name)]
  changed = changed_parts(before, now)
  return "; ".join([*lines, *([f"other values in {', '.join(changed)}"] if changed else [])])


def missing_from(data: PreparedData, before: Fingerprint) -> list[str]:
  """Returns which of items, users and domains of earlier data are not, in their order, the first ones of `data`.

  >>> from jaxrec.data.prepared import PreparedData
  >>> one, other = (PreparedData.from_columns(user=[0, 0], item_id=[1, item]) for item in (2, 3))
  >>> missing_from(other, fingerprint(one)), missing_from(one, fingerprint(other))
  ([], ['items'])
  """
  now = {"items": data.items["raw_id"], "users": data.users["raw_id"], "domains": list(data.domain_names)}
  counts, hashes = before["counts"], before["hashes"]
  return [
    name for name, values in now.items() if counts[name] > len(values) or _hash(values[: counts[name]]) != hashes[name]
  ]


def changed_parts(before: Fingerprint, now: Fingerprint) -> list[str]:
  """Returns the names of the parts that are not the same in two fingerprints."""
  old, new = before["hashes"], now["hashes"]
  return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def _item_part(column):
  return "titles" if column == "title" else f"items.{column}"


def _hash(values: Any) -> str:
  """Returns 16 hexadecimal digits of SHA-256 for an array, or for the texts of a column or a list."""
  digest, values = hashlib.sha256(), _plain(values)
  if isinstance(values, np.ndarray):
    digest.update(_bytes(values))
    return digest.hexdigest()[:16]
  for start in range(0, len(values), _ROWS):
    texts = values.slice(start, _ROWS)
    lengths = texts.str.len_bytes().fill_null(2**32 - 1)  # So that neither a null nor a moved boundary is the same.
    digest.update(lengths.to_numpy().astype("<u4").data)
    digest.update((texts.str.join("").item() or "").encode())
  return digest.hexdigest()[:16]


def _bytes(values: np.ndarray) -> memoryview:
  return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data


def _plain(values) -> np.ndarray | pl.Series:
  """Returns numbers as an array and everything else as a column of texts."""
  import polars as pl

  if isinstance(values, np.ndarray):
    return values
  series = pl.Series(values, dtype=pl.String) if isinstance(values, list) else values
  if series.dtype.is_integer() and not series.null_count():
    return series.cast(pl.Int64).to_numpy()
  if isinstance(series.dtype, pl.Array) and not series.null_count():
    return series.to_numpy()
  if series.dtype.is_nested():
    return pl.Series([str(value) for value in series.to_list()], dtype=pl.String)
  return series.cast(pl.String)
