"""A ranking model as a folder that runs without its Python code: a StableHLO program, weights and id maps.

    write_ranking_artifact(ranker, "artifact")   # the folder's README.md has a loader without jaxrec
    ranker = load_artifact("artifact")
    ranker.rank_history(ranker.histories([[("f3", 1700000000, {"like": 1})]]))

Choice: one program encodes histories and scores candidates against their keys and values (M-FALCON). The numbers of
  histories, events and candidates are symbols of it, so that one program serves all sizes.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, Int

from jaxrec.batches import ACTION, BINARY, CANDIDATE, EVENT, REGRESSION, ActionType, RankingBatch
from jaxrec.data.action_columns import PREFIX
from jaxrec.data.prepared import PreparedData
from jaxrec.serving import ranking_loader
from jaxrec.serving.action_ranker import ActionRanker
from jaxrec.serving.artifact_files import (
  FORMAT,
  PLATFORMS,
  Artifact,
  check_target,
  described_data,
  described_weights,
  filled_readme,
  write_files,
)
from jaxrec.serving.given_events import request_seconds
from jaxrec.serving.histories import Histories
from jaxrec.serving.item_ranker import ItemRanker, check_filled
from jaxrec.serving.mfalcon import encode_histories, in_microbatches, score_microbatch
from pallas_kernels.integers import as_integers

RANKING = "ranking"
_MULTIPLE = 32
_MOST_CANDIDATES = 2**16  # Scored at once: the history is encoded again for each such block.


def write_ranking_artifact(ranker: ActionRanker, folder: str | pathlib.Path, overwrite: bool = False) -> pathlib.Path:
  """Writes the artifact of a ranking model and returns its folder, which appears complete or not at all.

  Args:
    ranker: model, parameters and data.
    folder: where to write.
    overwrite: whether to replace the folder if it exists; it must be an artifact.

  Raises:
    FolderExistsError: the folder exists and `overwrite` is False.
    ImportError: flatbuffers is missing.
    NotImplementedError: a model that reads features of the users or of requests.
    ValueError: a folder to replace that is no artifact.
  """
  folder = pathlib.Path(folder)
  check_target(folder, overwrite)
  if ranker.columns.num_context:
    raise NotImplementedError("a ranking model with config.data.context reads users of its data; it cannot be exported")
  if ranker.columns.request_features:
    raise NotImplementedError(
      "a ranking model with config.data.request reads events of its data; it cannot be exported"
    )
  leaves, program = _program(ranker)
  write_files(
    folder,
    overwrite,
    program,
    leaves,
    {},
    ranker.data.items,
    filled_readme(_README, ranking_loader, _MULTIPLE),
    _signature(ranker, leaves),
  )
  return folder


@dataclasses.dataclass(frozen=True)
class ExportedRanker(ItemRanker):
  """Ranks with an exported program; it knows no users.

  artifact: of a ranking model.

  Raises:
    ValueError: an artifact of an earlier version, which does not describe the actions.
  """

  artifact: Artifact

  def __post_init__(self):
    if "actions" not in self.artifact.signature["data"]:
      raise ValueError(f"{self.artifact.folder} was written by an earlier version, without its actions; export again")

  @property
  def data(self) -> PreparedData:
    """See `ItemRanker`."""
    return self.artifact.data

  @property
  def max_length(self) -> int:
    """See `ItemRanker`."""
    return self.artifact.signature["longest_history"] + 1

  @property
  def value_names(self) -> tuple[str, ...]:
    """See `ItemRanker`."""
    return tuple(self.artifact.signature["values"])

  @property
  def read_actions(self) -> tuple[str, ...]:
    """See `ItemRanker`."""
    return tuple(entry["name"].removeprefix(PREFIX) for entry in self.artifact.signature["inputs"][2:-2])

  def default_weights(self) -> Mapping[str, float]:
    """See `ItemRanker`."""
    if self.artifact.signature["score"] is None:
      raise ValueError(f"weights must name classes of an action, such as {self.value_names[0]!r}")
    return self.artifact.signature["score"]

  def values_after(
    self, histories: Histories, items: Int[np.ndarray, "B K"], at: Any = None
  ) -> dict[str, Float[np.ndarray, "B K"]]:
    """See `ItemRanker`. Lengths and numbers of candidates are padded to powers of two: each size is a program."""
    check_filled(histories)
    read = np.minimum(histories.lengths, self.max_length - 1)
    length = _MULTIPLE << (-(-int(read.max()) // _MULTIPLE) - 1).bit_length()
    last = histories.timestamp[histories.offsets[1:] - 1]
    origin = histories.timestamp[histories.offsets[1:] - read]
    asked = np.array([request_seconds(self.data, at, int(time)) for time in last]) - origin
    time = histories.timestamp - np.repeat(origin, histories.lengths)
    columns = [histories.item_id, time, *(histories.actions[name] for name in self.read_actions)]
    dtypes = [entry["dtype"] for entry in self.artifact.signature["inputs"]]
    inputs = [
      _latest(values, histories.offsets[1:], read, length).astype(dtype)
      for values, dtype in zip(columns, dtypes, strict=False)
    ]

    asked = as_integers("at", asked)

    def values(candidates):
      return self.artifact.call(self.artifact.weights, *inputs, candidates.astype(np.int32), asked)

    count = max(_MULTIPLE, 1 << (items.shape[1] - 1).bit_length())
    found = in_microbatches(values, (items,), min(count, _MOST_CANDIDATES))  # [B, K, values]
    return {name: found[..., index] for index, name in enumerate(self.value_names)}


def _latest(values, end, count, length) -> np.ndarray:
  """Returns the last `count` values before each end, a row each, padded on the right with 0."""
  place = np.arange(length)
  index = np.minimum((end - count)[:, None] + place, len(values) - 1)
  return np.where(place < count[:, None], values[index], 0)


def history_tokens(
  layout: str,
  item: Int[Array, "B N"],
  time: Int[Array, "B N"],
  actions: Mapping[str, Array],
  features: Mapping[str, Int[Array, " V1"]],
) -> RankingBatch:
  """Returns histories without targets as tokens, one history a row: `history_batch` in JAX, without context.

  Args:
    layout: of the tokens, see `jaxrec.data.batches.ranking_rows`.
    item, time: of the events, oldest first, padded on the right with 0.
    actions: name -> `[B, N]`.
    features: name -> category of each item.
  """
  kinds = (CANDIDATE, ACTION) if layout == "interleaved" else (EVENT,)

  def tokens(values):
    """`[B, N]` for each kind of token of an event -> `[B, T]`."""
    return jnp.stack(values, axis=2).reshape(item.shape[0], len(kinds) * item.shape[1])

  is_event = item != 0
  is_token = tokens([is_event] * len(kinds))
  index = jnp.broadcast_to(jnp.arange(item.shape[1], dtype=jnp.int32), item.shape)
  place = jnp.arange(is_token.shape[1], dtype=jnp.int32)[None]  # [1, T]
  of_event = lambda x: jnp.where(is_token, tokens([x] * len(kinds)), 0)  # noqa: E731
  item_id = tokens([jnp.zeros_like(item) if kind == ACTION else item for kind in kinds])
  none = jnp.zeros_like(item_id)
  return RankingBatch(
    kind=tokens([jnp.where(is_event, kind, 0).astype(jnp.int32) for kind in kinds]),
    sequence_id=is_token.astype(jnp.int32), position=of_event(index), item_id=item_id,
    features={name: values[item_id] for name, values in features.items()}, context_id=none, timestamp=of_event(time),
    actions={name: of_event(values) for name, values in actions.items()}, start=none,
    end=jnp.where(is_token, place, 0), weight=none.astype(jnp.float32), user_id=none,
  )  # fmt: skip


def _program(ranker) -> tuple[list, bytes]:
  """Returns the parameters as a list, and the serialized program that reads them and the inputs of the signature."""
  model = ranker.model.clone(implementation="auto")  # A kernel that was asked for by name may lack a platform.
  leaves, tree = jax.tree.flatten(ranker.params)
  features = {name: np.asarray(ranker.columns.item_features[name], np.int32) for name, _ in model.features}

  def values(weights, item, time, *inputs):
    *actions, candidates, at = inputs
    params, categories = jax.tree.unflatten(tree, weights), {name: jnp.asarray(x) for name, x in features.items()}
    named = {action.name: values for action, values in zip(model.actions, actions, strict=True)}
    tokens = history_tokens(ranker.layout, item, time, named, categories)
    histories = encode_histories(model, tokens.kind.shape[1] + candidates.shape[1], params, tokens)
    of_candidates = {name: values[candidates] for name, values in categories.items()}
    found = score_microbatch(model, params, histories, candidates, of_candidates, at)
    return jnp.concatenate([_values(head, found[head.name]) for head in model.heads], axis=-1)

  rows, blocks, count = export.symbolic_shape("rows, blocks, candidates")
  shapes = [(rows, _MULTIPLE * blocks)] * (2 + len(model.actions)) + [(rows, count), (rows,)]
  weights = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
  inputs = [jax.ShapeDtypeStruct(shape, dtype) for shape, (_, dtype) in zip(shapes, _inputs(model), strict=True)]
  return leaves, export.export(jax.jit(values), platforms=PLATFORMS)(weights, *inputs).serialize()


def _inputs(model) -> list[tuple[str, str]]:
  actions = [(f"action.{action.name}", "float32" if action.kind == REGRESSION else "int32") for action in model.actions]
  return [("item", "int32"), ("time", "int32"), *actions, ("candidates", "int32"), ("at", "int32")]


def _values(head: ActionType, prediction: Array) -> Float[Array, "B K _"]:
  """Returns `action_values` of a head, one after the other."""
  if head.kind == BINARY:
    return jax.nn.sigmoid(prediction)[..., None]
  if head.kind == REGRESSION:
    return (prediction * head.scale + head.mean)[..., None]
  return jax.nn.softmax(prediction, axis=-1)


def _signature(ranker, leaves):
  data = ranker.data
  try:
    weights = dict(ranker.check_weights(None))
  except ValueError:
    weights = None  # Classes alone have no weights of their own.
  return {
    "format": FORMAT,
    "task": RANKING,
    "jax": jax.__version__,
    "platforms": PLATFORMS,
    "model": type(ranker.model).__name__,
    "inputs": [{"name": name, "dtype": dtype} for name, dtype in _inputs(ranker.model)],
    "values": ranker.value_names,
    "score": weights,
    "class_names": {name: list(names) for name, names in data.action_names.items()},
    "longest_history": ranker.max_length - 1,
    "length_multiple": _MULTIPLE,
    "weights": described_weights(leaves),
    "data": described_data(data, "actions", "action_names"),
  }


_README = """\
# An exported ranking model

| file | |
|---|---|
| `program.bin` | the model as StableHLO for {platforms}, written by `jax.export` of jax {version} |
| `weights/` | its parameters, the first argument of the program |
| `items.json` | entry i - 1 of each list belongs to item i: id in the raw data, title, domain id |
| `signature.json` | inputs, names of the values, weights of the score, sizes, checksums of the other files |

The program reads `(weights, *inputs)`, where the inputs are those of the signature: `item`, `time` and an array for
each action, `[rows, N]`, oldest event first, padded on the right with 0; N is a multiple of {multiple}. Then
`candidates` `[rows, K]`, item ids, and `at` `[rows]`, the time of the request. It returns `[rows, K, values]`, what the
user would do with each candidate: probabilities of binary actions and of classes, and numbers, in the order of `values`
in the signature. Candidates do not depend on each other. The score that jaxrec ranks by is the sum of values times
their weights in `score`. Each size is compiled when it is first used: pad candidates where their number varies.

Give the latest `longest_history` events of a user, at least one. Times are seconds since any moment that all events of
a row share; 0 if the data has none. Actions are numbers as in the prepared data; `class_names` has the names of those
that the source wrote as text, in the order of their numbers.

With jaxrec: `jaxrec.serving.load_artifact(folder)`, or `jaxrec serve --artifact`. Without it, this needs jax, numpy and
flatbuffers. JAX promises to read a program with versions up to six months newer than the one
that wrote it.

```python
{loader}```
"""
