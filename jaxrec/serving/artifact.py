"""A trained model as a folder that runs without its Python code: a StableHLO program, weights and id maps.

    write_artifact(jaxrec.load("runs/shop"), "artifact")
    load_artifact("artifact").recommend(histories=[[("tea", 1700000000)]], k=10)

Choice: the number of histories and their padded length are symbols of the program, so that one serves all sizes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import polars as pl
from jax import export
from ml_collections import ConfigDict

from jaxrec.data.local_path import check_local
from jaxrec.data.prepared import PreparedData
from jaxrec.data.whole_folder import FolderExistsError, remove_leftovers, whole_folder
from jaxrec.evaluation.model import last_queries
from jaxrec.serving import artifact_loader
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.request_batch import request_batch

PLATFORMS = ("cpu", "cuda", "tpu")
INPUTS = ("item", "domain", "time", "target_domain", "target_time")
FORMAT = 1
_MULTIPLE = 32  # Padded lengths: domain states are looked up in blocks of so many tokens.
_NO_USERS = pl.DataFrame(schema={"user": pl.Int64, "raw_id": pl.String})
_DATA_SETTINGS = ("max_length", "task", "request_time", "reveal_domain")


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedRecommender(Recommender):
  """A `Recommender` for new histories whose model is an exported program; it knows no users.

  vectors: [V + 1, M] scoring vectors of the items.
  popularity: [V + 1] number of events of each item.
  """

  vectors: np.ndarray = None
  popularity: np.ndarray = None

  @functools.cached_property
  def _vectors(self):
    return self.vectors

  @functools.cached_property
  def _popularity(self):
    return self.popularity

  def _queries(self, batch, users):
    return self.model.call(self.params, *_inputs(batch.batch, self.data.num_items))

  def _users(self, users):
    raise ValueError(f"{users=}: an artifact holds no users; give histories=")


class _Program(nn.Module):
  call: Any
  needs_target_domain: bool


def write_artifact(recommender: Recommender, folder: str | pathlib.Path, overwrite: bool = False) -> pathlib.Path:
  """Writes the artifact of a model and returns its folder, which appears complete or not at all.

  Args:
    recommender: model, parameters and data.
    folder: where to write.
    overwrite: whether to replace the folder if it exists; it must be an artifact.

  Raises:
    FolderExistsError: the folder exists and `overwrite` is False.
    ImportError: flatbuffers is missing.
    NotImplementedError: a model that reads actions.
    ValueError: a folder to replace that is no artifact, or a model that is an artifact already.
  """
  folder = pathlib.Path(folder)
  check_target(folder, overwrite)
  if isinstance(recommender, ExportedRecommender):
    raise ValueError("the model is an exported program already; copy its folder")
  if getattr(recommender.model, "num_actions", 0):
    raise NotImplementedError("a model that reads actions cannot be exported")
  leaves, program = _program(recommender)
  arrays = {"item_vectors": recommender._vectors, "popularity": recommender._popularity}
  signature = _signature(recommender, leaves)
  write_files(
    folder,
    overwrite,
    program,
    leaves,
    arrays,
    recommender.data.items,
    filled_readme(_README, artifact_loader, _MULTIPLE),
    signature,
  )
  return folder


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


def load_artifact(folder: str | pathlib.Path) -> ExportedRecommender:
  """Returns the model of an artifact; `recommend(histories=...)` as that of a `Recommender`.

  Raises:
    ImportError: flatbuffers is missing.
    ValueError: no artifact, one of another format or of a ranking model, or a file that has changed since.
  """
  folder = pathlib.Path(folder)
  _check_flatbuffers()
  if not (folder / "signature.json").is_file():
    raise ValueError(f"{folder} has no signature.json; give a folder that `jaxrec export` wrote")
  signature = json.loads((folder / "signature.json").read_text(encoding="utf-8"))
  if signature["format"] != FORMAT:
    raise ValueError(f"{folder}: format {signature['format']} is unknown, this version reads {FORMAT}; export again")
  if task := signature.get("task"):
    raise ValueError(f"{folder} holds a model of task {task!r}, which has no user vectors; its README.md has a loader")
  found = _checksums(folder)
  changed = [name for name, value in signature["sha256"].items() if found.get(name) != value]
  if changed:
    raise ValueError(f"{folder}: {', '.join(changed)} missing or changed after the export; export again")
  program = export.deserialize(bytearray((folder / "program.bin").read_bytes()))
  none = np.zeros(0, np.int32)
  items = pl.DataFrame(json.loads((folder / "items.json").read_text(encoding="utf-8")))
  items = items.with_columns(pl.col("item_id", "domain_id").cast(pl.Int32), pl.col("title").cast(pl.String))
  columns = {name: none for name in ("item_id", "domain_id", "timestamp", "action", "split")}
  data = PreparedData(
    **columns, offsets=np.zeros(1, np.int64), meta=signature["data"], item_table=items, user_table=_NO_USERS
  )
  return ExportedRecommender(
    _Program(jax.jit(program.call), signature["needs_target_domain"]),
    [jax.device_put(np.load(folder / entry["file"])) for entry in signature["weights"]],
    data,
    ConfigDict(signature["config"]),
    np.load(folder / "item_vectors.npy"),
    np.load(folder / "popularity.npy"),
  )


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


def _program(recommender) -> tuple[list, bytes]:
  """Returns the parameters as a list, and the serialized program that reads them and `INPUTS`."""
  model, settings = recommender.model, recommender.config.data
  if hasattr(model, "implementation"):
    model = model.clone(implementation="auto")  # A kernel that was asked for by name may lack a platform.
  leaves, tree = jax.tree.flatten(recommender.params)
  mask_token = recommender.data.num_items + 1

  def queries(weights, *inputs):
    return last_queries(model, jax.tree.unflatten(tree, weights), request_batch(*inputs, settings, mask_token))

  rows, blocks = export.symbolic_shape("rows, blocks")
  shapes = [(rows, _MULTIPLE * blocks)] * 3 + [(rows,)] * 2
  weights = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
  inputs = [jax.ShapeDtypeStruct(shape, np.int32) for shape in shapes]
  return leaves, export.export(jax.jit(queries), platforms=PLATFORMS)(weights, *inputs).serialize()


def _inputs(batch, num_items):
  """Returns the inputs of the program for the batch of a request, which is `request_batch` backwards."""
  is_asked = np.asarray(batch.target_weight) > 0
  asked = [np.max(np.where(is_asked, x, 0), axis=1) for x in (batch.target_domain, batch.target_time)]
  is_event = batch.item_id <= num_items
  more = -is_event.shape[1] % _MULTIPLE
  events = (batch.item_id, batch.domain_id, batch.timestamp)
  return [*(np.pad(np.where(is_event, x, 0), ((0, 0), (0, more))) for x in events), *asked]


def _signature(recommender, leaves):
  config, data = recommender.config, recommender.data
  settings = {name: config.data[name] for name in _DATA_SETTINGS}
  extra = int(config.data.task == "masked_item")
  known = ("num_items", "num_domains", "domain_names", "has_timestamps")
  return {
    "format": FORMAT,
    "jax": jax.__version__,
    "platforms": PLATFORMS,
    "model": type(recommender.model).__name__,
    "needs_target_domain": bool(getattr(recommender.model, "needs_target_domain", False)),
    "inputs": INPUTS,
    "longest_history": config.data.max_length - extra,
    "extra_positions": extra,
    "length_multiple": _MULTIPLE,
    "weights": described_weights(leaves),
    "config": {"data": settings, "eval": {"batch_size": config.eval.batch_size}},
    "data": {**{name: data.meta[name] for name in known}, "num_users": 0, "num_events": 0},
  }


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


_README = """\
# An exported model

| file | |
|---|---|
| `program.bin` | the model as StableHLO for {platforms}, written by `jax.export` of jax {version} |
| `weights/` | its parameters, the first argument of the program |
| `item_vectors.npy` | [V + 1, M] row i is item i; row 0 is padding. A score is the dot product with a query vector |
| `popularity.npy` | [V + 1] events of each item in the data: the order for an empty history |
| `items.json` | entry i - 1 of each list belongs to item i: id in the raw data, title, domain id |
| `signature.json` | inputs, sizes, names of the domains, checksums of the other files |

The program reads `(weights, item, domain, time, target_domain, target_time)` and returns the query vectors
`[rows, M]`. `item`, `domain` and `time` are int32 `[rows, N]`, oldest event first, padded on the right with 0; N is a
multiple of {multiple}, and at least `extra_positions` of it are padding. Give the latest `longest_history` events of a
user. Times are seconds since any moment that all events of a row share; 0 if the data has none (`has_timestamps`).
`target_domain` and `target_time` are int32 `[rows]`.

With jaxrec: `jaxrec.serving.load_artifact(folder).recommend(histories=...)`. Without it, this needs jax, numpy and
flatbuffers. JAX promises to read a program with versions up to six months newer than the one that wrote it.

```python
{loader}```
"""
