"""The files of an artifact, which are the same for models of every task."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import polars as pl
from jax import export

from jaxrec.data.action_columns import DTYPES
from jaxrec.data.local_path import check_local
from jaxrec.data.prepared import PreparedData
from jaxrec.data.whole_folder import FolderExistsError, remove_leftovers, whole_folder

PLATFORMS = ("cpu", "cuda", "tpu")
FORMAT = 1
_NO_USERS = pl.DataFrame(schema={"user": pl.Int64, "raw_id": pl.String})


class Artifact(NamedTuple):
  """What a folder holds.

  folder: where it is.
  signature: of `signature.json`.
  call: the program, compiled for each size on first use; its first argument are the weights.
  weights: on the device.
  data: items, domains and actions, without users and events.
  """

  folder: pathlib.Path
  signature: Mapping[str, Any]
  call: Callable[..., Any]
  weights: Sequence[jax.Array]
  data: PreparedData


def check_target(folder: pathlib.Path, overwrite: bool) -> None:
  """Raises unless an artifact can be written into a folder; see `write_artifact`."""
  _check_flatbuffers()
  _check_free(folder, overwrite)


def write_files(
  folder: pathlib.Path, overwrite: bool, program: bytes, leaves: Sequence[Any], arrays: Mapping[str, np.ndarray],
  items: pl.DataFrame, readme: str, signature: dict[str, Any],
) -> None:  # fmt: skip
  """Writes the files of an artifact, all or none.

  Args:
    folder, overwrite: see `write_artifact`.
    program: serialized.
    leaves: its first argument.
    arrays: further ones, by the name of the file.
    items: of the data.
    readme: text of README.md.
    signature: gets the checksums of the other files.
  """
  with whole_folder(folder, overwrite) as unfinished:
    (unfinished / "program.bin").write_bytes(program)
    (unfinished / "weights").mkdir()
    for index, leaf in enumerate(leaves):
      np.save(unfinished / _weight_file(index), np.asarray(leaf))
    for name, array in arrays.items():
      np.save(unfinished / f"{name}.npy", array)
    items = items.select("item_id", "raw_id", "title", "domain_id").to_dict(as_series=False)
    (unfinished / "items.json").write_text(json.dumps(items), encoding="utf-8")
    (unfinished / "README.md").write_text(readme, encoding="utf-8")
    text = json.dumps({**signature, "sha256": _checksums(unfinished)}, indent=1)
    (unfinished / "signature.json").write_text(text, encoding="utf-8")


def read_files(folder: str | pathlib.Path) -> Artifact:
  """Returns an artifact, whose files are those that were written.

  Raises:
    ImportError: flatbuffers is missing.
    ValueError: no artifact, one of another format, or a file that has changed since.
  """
  folder = pathlib.Path(folder)
  _check_flatbuffers()
  if not (folder / "signature.json").is_file():
    raise ValueError(f"{folder} has no signature.json; give a folder that `jaxrec export` wrote")
  signature = json.loads((folder / "signature.json").read_text(encoding="utf-8"))
  if signature["format"] != FORMAT:
    raise ValueError(f"{folder}: format {signature['format']} is unknown, this version reads {FORMAT}; export again")
  found = _checksums(folder)
  changed = [name for name, value in signature["sha256"].items() if found.get(name) != value]
  if changed:
    raise ValueError(f"{folder}: {', '.join(changed)} missing or changed after the export; export again")
  program = export.deserialize(bytearray((folder / "program.bin").read_bytes()))
  items = pl.DataFrame(json.loads((folder / "items.json").read_text(encoding="utf-8")))
  items = items.with_columns(pl.col("item_id", "domain_id").cast(pl.Int32), pl.col("title").cast(pl.String))
  columns = {name: np.zeros(0, np.int32) for name in ("item_id", "domain_id", "timestamp", "action", "split")}
  kinds = {name: meta["kind"] for name, meta in signature["data"].get("actions", {}).items()}
  data = PreparedData(
    **columns, offsets=np.zeros(1, np.int64), meta=signature["data"], item_table=items, user_table=_NO_USERS,
    actions={name: np.zeros(0, DTYPES[kind]) for name, kind in kinds.items()},
  )  # fmt: skip
  weights = [jax.device_put(np.load(folder / entry["file"])) for entry in signature["weights"]]
  return Artifact(folder, signature, jax.jit(program.call), weights, data)


def described_data(data: PreparedData, *more: str) -> dict[str, Any]:
  """Returns what a signature says of the data: no users, no events, and entries of `PreparedData.meta`."""
  known = ("num_items", "num_domains", "domain_names", "has_timestamps", *more)
  return {**{name: data.meta[name] for name in known if name in data.meta}, "num_users": 0, "num_events": 0}


def described_weights(leaves: Sequence[Any]) -> list[dict[str, Any]]:
  """Returns file, shape and type of each of the parameters, for the signature."""
  return [
    {"file": _weight_file(index), "shape": leaf.shape, "dtype": str(leaf.dtype)} for index, leaf in enumerate(leaves)
  ]


def _weight_file(index):
  return f"weights/{index:03}.npy"


def _checksums(folder):
  files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "signature.json")
  return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def filled_readme(template: str, loader: types.ModuleType, multiple: int) -> str:
  """Returns the README.md of an artifact.

  Args:
    template: text with fields for versions and platforms, the multiple, and the source of the loader.
    loader: module whose source the README shows.
    multiple: padded lengths are multiples of it.
  """
  source = pathlib.Path(loader.__file__).read_text(encoding="utf-8")
  return template.format(version=jax.__version__, multiple=multiple, loader=source, platforms=", ".join(PLATFORMS))


def _check_flatbuffers():
  if importlib.util.find_spec("flatbuffers") is None:
    raise ImportError("flatbuffers is not installed; jax.export needs it (pip install 'jaxrec[export]')")


def _check_free(folder, overwrite):
  check_local("out", folder)
  remove_leftovers(folder)
  if not folder.exists():
    return
  if not overwrite:
    raise FolderExistsError(f"{folder} exists; choose another folder, or replace it with --overwrite (overwrite=True)")
  if not (folder / "signature.json").is_file():
    raise ValueError(f"{folder} exists and is no artifact; it is not replaced: choose another folder")
