"""Target attention where the candidates of a row share the events of one user: the events are read once.

The history of a candidate is the N columns of its row that end before the column of its target. Products with the
events are made for all columns of a row at once; what depends on a history, such as its softmax, on windows of them.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrec.batches import AnyArray


def windows(x: Float[Array, "B P S"], end: Int[Array, "B P"], length: int) -> Float[Array, "B P N"]:
  """Returns the `length` entries of each candidate that end before its column `end`.

  Args:
    x: a number for each candidate and column of its row.
    end: `length..S`.
    length: N.

  >>> windows(jnp.arange(5.0).reshape(1, 1, 5), jnp.array([[4]]), 3).tolist()
  [[[1.0, 2.0, 3.0]]]
  """
  return _windows(length, x.shape[-1], x, end)


def at_columns(window: Float[Array, "B P N"], end: Int[Array, "B P"], num_columns: int) -> Float[Array, "B P S"]:
  """Returns the entries of windows at the columns that they were taken from, and 0 elsewhere.

  >>> at_columns(jnp.array([[[1.0, 2.0, 3.0]]]), jnp.array([[4]]), 5).tolist()
  [[[0.0, 1.0, 2.0, 3.0, 0.0]]]
  """
  return _at_columns(window.shape[-1], num_columns, window, end)


def _columns(length, end):
  """The columns [B, P, N] of each candidate's history."""
  return (end - length)[..., None] + jnp.arange(length, dtype=end.dtype)[None, None]


# Each of the two is the transpose of the other. Derived by JAX, the transpose of a gather is a scatter, which CPUs make
# one window after another.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _windows(length, num_columns, x, end):
  return jnp.take_along_axis(x, _columns(length, end), axis=-1, mode="clip")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _at_columns(length, num_columns, window, end):
  index = jnp.arange(num_columns, dtype=end.dtype)[None, None] - (end - length)[..., None]  # [B, P, S]
  placed = jnp.take_along_axis(window, index, axis=-1, mode="clip")
  return jnp.where((index >= 0) & (index < length), placed, 0)


def _windows_backward(length, num_columns, end, gradient):
  return _at_columns(length, num_columns, gradient, end), None


def _at_columns_backward(length, num_columns, end, gradient):
  return _windows(length, num_columns, gradient, end), None


_windows.defvjp(lambda length, num_columns, x, end: (_windows(length, num_columns, x, end), end), _windows_backward)
_at_columns.defvjp(
  lambda length, num_columns, window, end: (_at_columns(length, num_columns, window, end), end), _at_columns_backward
)


def packed_scores(
  query: Float[Array, "B P M"],
  keys: Float[Array, "B S M"],
  age_keys: Float[Array, "N M"],
  end: Int[Array, "B P"],
  age_width: int,
) -> Float[Array, "B P N"]:
  """Returns the score of each event of each candidate's history; see `target_attention.target_scores`.

  Args:
    query: from `target_attention.scaled_query`.
    keys: of the events of the rows, whatever their age; zeros on padding.
    age_keys: of the ages N, N - 1, ..., 1; of keys and age_keys the last `age_width` entries are read in age_keys, the
      others in keys.
    end: column of each candidate's target.
    age_width: entries of a vector that are the age's.

  >>> keys, ages = jnp.array([[[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]]]), jnp.array([[9.0, 0.5], [9.0, 0.25]])
  >>> packed_scores(jnp.array([[[1.0, 1.0]]]), keys, ages, jnp.array([[2]]), age_width=1).tolist()
  [[[1.5, 2.25]]]
  """
  own = query.shape[-1] - age_width
  by_column = jnp.einsum("bpm,bsm->bps", query[..., :own], keys[..., :own])  # [B, P, S]
  by_age = jnp.einsum("bpm,nm->bpn", query[..., own:], age_keys[:, own:])  # [B, P, N]
  return windows(by_column, end, age_keys.shape[0]) + by_age


def packed_sum(
  weights: Float[Array, "B P N"],
  values: Float[Array, "B S M"],
  age_values: Float[Array, "N M"],
  end: Int[Array, "B P"],
  age_width: int,
) -> Float[Array, "B P M"]:
  """Returns the weighted sum of the vectors of each candidate's history; arguments as those of `packed_scores`.

  >>> values, ages = jnp.array([[[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]]]), jnp.array([[9.0, 0.5], [9.0, 0.25]])
  >>> packed_sum(jnp.array([[[0.5, 0.5]]]), values, ages, jnp.array([[2]]), age_width=1).tolist()
  [[[1.5, 0.375]]]
  """
  own = values.shape[-1] - age_width
  placed = at_columns(weights, end, values.shape[1])  # [B, P, S]
  by_column = jnp.einsum("bps,bsm->bpm", placed, values[..., :own])
  by_age = jnp.einsum("bpn,nm->bpm", weights, age_values[:, own:])
  return jnp.concatenate([by_column, by_age], axis=-1)  # [B, P, M]


def packed_products(
  matrix: Float[AnyArray, "M K"],
  keys: Float[Array, "B S M"],
  age_keys: Float[Array, "N M"],
  end: Int[Array, "B P"],
  age_width: int,
) -> Float[Array, "B P N K"]:
  """Returns the product of a matrix with each event of each candidate's history; other arguments as `packed_scores`.

  >>> keys, ages = jnp.array([[[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]]]), jnp.array([[9.0, 0.5], [9.0, 0.25]])
  >>> packed_products(jnp.array([[1.0], [2.0]]), keys, ages, jnp.array([[2]]), age_width=1).tolist()
  [[[[2.0], [2.5]]]]
  """
  own, length = keys.shape[-1] - age_width, age_keys.shape[0]
  matrix = jnp.asarray(matrix, keys.dtype)
  by_column = keys[..., :own] @ matrix[:own]  # [B, S, K]
  by_age = age_keys[:, own:] @ matrix[own:]  # [N, K]
  column = _columns(length, end)[..., None]  # [B, P, N, 1]
  return jnp.take_along_axis(by_column[:, None], column, axis=2, mode="clip") + by_age[None, None]
