"""The features of items among the parameters of a model: filled from the data, saved with a run, never trained."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Bool, Float

from jaxrec.layers.item_embedding import FEATURES, HAS_ID
from jaxrec.objectives.item import TABLE
from jaxrec.train.state import Params, TrainState


def with_item_features(
  state: TrainState, features: Float[np.ndarray, "V1 F"], has_id: Bool[np.ndarray, " V1"]
) -> TrainState:
  """Returns a state whose model reads these features; rows of the model beyond them have an id and no features.

  Args:
    state: of a model with features of items.
    features: of `jaxrec.data.item_features.feature_matrix`.
    has_id: which items have a row of the item table.
  """
  values = {FEATURES: (features, 0), HAS_ID: (has_id[:, None], 1)}

  def filled(name, old):
    rows = np.full(old.shape, values[name][1], np.float32)
    rows[: len(values[name][0])] = values[name][0]
    return jax.device_put(rows, old.sharding)

  return _replaced(state, filled)


def with_features_of(state: TrainState, fresh: TrainState) -> TrainState:
  """Returns a state with the features of another one of the same shapes, such as those of the data of today."""
  if FEATURES not in fresh.params.get(TABLE, {}):
    return state
  return _replaced(state, lambda name, old: fresh.params[TABLE][name])


def _replaced(state, value_of):
  """Features and `has_id` of the parameters, and of their average, are replaced by `value_of(name, old)`."""

  def replaced(params):
    if params is None:
      return None
    items = params[TABLE]
    return {**params, TABLE: {**items, **{name: value_of(name, items[name]) for name in (FEATURES, HAS_ID)}}}

  return state.replace(params=replaced(state.params), average=replaced(state.average))


def trained_only(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Returns an optimizer that has no state for features of items, and leaves them as they are."""
  return optax.masked(inner, _is_trained)


def _is_trained(params: Params) -> Any:
  data = tuple(f"{TABLE}/{name}" for name in (FEATURES, HAS_ID))

  def is_trained(path, _):
    return not jax.tree_util.keystr(path, simple=True, separator="/").endswith(data)

  return jax.tree_util.tree_map_with_path(is_trained, params)
