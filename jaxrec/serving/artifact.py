"""A trained model as a folder that runs without its Python code: a StableHLO program, weights and id maps.

    write_artifact(jaxrec.load("runs/shop"), "artifact")
    load_artifact("artifact").recommend(histories=[[("tea", 1700000000)]], k=10)

Choice: the number of histories and their padded length are symbols of the program, so that one serves all sizes.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax import export
from ml_collections import ConfigDict

from jaxrec.evaluation.model import last_queries
from jaxrec.serving import artifact_loader
from jaxrec.serving.artifact_files import (
  FORMAT,
  PLATFORMS,
  check_target,
  described_data,
  described_weights,
  filled_readme,
  read_files,
  write_files,
)
from jaxrec.serving.ranking_artifact import RANKING, ExportedRanker
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.request_batch import request_batch

INPUTS = ("item", "domain", "time", "target_domain", "target_time")
_MULTIPLE = 32  # Padded lengths: domain states are looked up in blocks of so many tokens.
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


def load_artifact(folder: str | pathlib.Path) -> ExportedRecommender | ExportedRanker:
  """Returns the model of an artifact: `recommend(histories=...)` as that of a `Recommender`, or a ranker.

  Raises:
    ImportError: flatbuffers is missing.
    ValueError: no artifact, one of another format, or a file that has changed since.
  """
  found = read_files(folder)
  signature = found.signature
  if signature.get("task") == RANKING:
    return ExportedRanker(found)
  return ExportedRecommender(
    _Program(found.call, signature["needs_target_domain"]),
    found.weights,
    found.data,
    ConfigDict(signature["config"]),
    np.load(found.folder / "item_vectors.npy"),
    np.load(found.folder / "popularity.npy"),
  )


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
    "data": described_data(data),
  }


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
