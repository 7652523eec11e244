"""Embeddings of actions, and the small networks that predict them.

Source: Zhai et al. 2024, arXiv 2402.17152, section 2.2: action tokens, and a multi-task head at content tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.batches import REGRESSION, ActionType
from pallas_kernels.dtypes import at_least_float32


class ActionEmbedding(nn.Module):
  """The sum of the embeddings of an event's actions: a row of a table, or a small network of a number.

  actions: the actions that are read.
  width: M.

  >>> import jax
  >>> embedding = ActionEmbedding((ActionType("like", "binary"), ActionType("seconds", "regression")), width=4)
  >>> values = {"like": jnp.array([[0, 1]]), "seconds": jnp.array([[2.0, 3.5]])}
  >>> embedding.init_with_output(jax.random.key(0), values)[0].shape
  (1, 2, 4)
  """

  actions: tuple[ActionType, ...]
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, values: Mapping[str, Array]) -> Float[Array, "B N M"]:
    """Returns the sum over the actions of `values`, name -> `[B, N]`."""
    return sum(self._embed(action, values[action.name]) for action in self.actions)

  def _embed(self, action: ActionType, value: Array) -> Array:
    if action.kind != REGRESSION:
      init = nn.initializers.truncated_normal(0.02)
      table = self.param(f"{action.name}_table", init, (action.classes, self.width), jnp.float32)
      return jnp.take(table, value, axis=0, mode="clip").astype(self.dtype)
    x = standardized(action, value)[..., None].astype(self.dtype)
    hidden = nn.silu(nn.Dense(self.width, dtype=self.dtype, name=f"{action.name}_hidden")(x))
    init = nn.initializers.truncated_normal(0.02)
    return nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name=f"{action.name}_output")(hidden)


def standardized(action: ActionType, value: Array) -> Float[Array, "..."]:
  """Returns a regression action in standard deviations from its mean.

  >>> standardized(ActionType("seconds", "regression", mean=10.0, scale=2.0), jnp.array([13.0])).tolist()
  [1.5]
  """
  return (value.astype(at_least_float32(value.dtype)) - action.mean) / action.scale


class ActionHeads(nn.Module):
  """A small network for each action, on activations that all of them share.

  actions: the actions that are predicted.
  hidden: width of the hidden layer; 0: none.

  >>> import jax
  >>> heads = ActionHeads((ActionType("like", "binary"), ActionType("kind", "multi_class", classes=3)), hidden=4)
  >>> out, params = heads.init_with_output(jax.random.key(0), jnp.ones((1, 2, 8)))
  >>> out["like"].shape, out["kind"].shape, sorted(params["params"])
  ((1, 2), (1, 2, 3), ['kind_hidden', 'kind_output', 'like_hidden', 'like_output'])
  """

  actions: tuple[ActionType, ...]
  hidden: int = 64

  @nn.compact
  def __call__(self, x: Float[Array, "B N M"]) -> dict[str, Array]:
    """Returns log-odds `[B, N]` of binary actions, logits `[B, N, K]` of multi_class ones, and `standardized` values.

    All in float32.
    """
    x = x.astype(at_least_float32(x.dtype))
    return {action.name: self._predict(action, x) for action in self.actions}

  def _predict(self, action: ActionType, x: Array) -> Array:
    if self.hidden:
      x = nn.silu(nn.Dense(self.hidden, name=f"{action.name}_hidden")(x))
    is_vector = action.kind == "multi_class"
    init = nn.initializers.truncated_normal(0.02)
    y = nn.Dense(action.classes if is_vector else 1, kernel_init=init, name=f"{action.name}_output")(x)
    return y if is_vector else y[..., 0]
