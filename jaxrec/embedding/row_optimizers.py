"""Optimizers of table rows: they update the rows that a step looked up and leave all others unchanged.

A row optimizer is a frozen dataclass with `slots(width)`, the state it keeps for each row, and `update`. Arrays passed
to `update` are float32; `mean` takes the mean over the width, whose columns may be sharded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

Slots = dict[str, Array]
Mean = Callable[[Float[Array, "U D"]], Float[Array, " U"]]
LearningRate = float | Callable[[Int[Array, ""]], Float[Array, ""]]


@runtime_checkable
class RowOptimizer(Protocol):
  """The interface of `Table.optimizer`."""

  def slots(self, width: int) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
    """State of each row: name to (shape, dtype), initially zeros; a shape is `()` or `(width,)`."""
    ...

  def update(
    self, step: Int[Array, ""], row: Float[Array, "U D"], slots: Slots, gradient: Float[Array, "U D"], mean: Mean
  ) -> tuple[Float[Array, "U D"], Slots]:
    """Returns rows and slots after a step; `step` counts updates from 0."""
    ...


@dataclasses.dataclass(frozen=True)
class RowSGD:
  """Stochastic gradient descent, `w -= lr g`; weight decay acts when a row is looked up.

  learning_rate: a number, or a function of the number of updates made so far (an Optax schedule).

  >>> RowSGD(learning_rate=0.1).learning_rate
  0.1
  """

  learning_rate: LearningRate = 0.01
  weight_decay: float = 0.0

  def slots(self, width: int) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
    """Keeps no state."""
    return {}

  def update(self, step, row, slots, gradient, mean):
    """Returns rows and slots after a step; see `RowOptimizer`."""
    return row - _rate(self.learning_rate, step) * (gradient + self.weight_decay * row), slots


@dataclasses.dataclass(frozen=True)
class RowAdagrad:
  """Row-wise Adagrad, `s += mean(g^2); w -= lr g / (sqrt(s) + epsilon)`, with one number s per row.

  Source: row-wise Adagrad as in FBGEMM (`rowwise_adagrad`); Gupta et al. 2014.
  """

  learning_rate: LearningRate = 0.05
  epsilon: float = 1e-8
  weight_decay: float = 0.0

  def slots(self, width: int) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
    """Keeps the sum of mean squares, one number per row."""
    return {"sum_of_squares": ((), jnp.dtype(jnp.float32))}

  def update(self, step, row, slots, gradient, mean):
    """Returns rows and slots after a step; see `RowOptimizer`."""
    total = slots["sum_of_squares"] + mean(gradient**2)  # [U]
    move = gradient / (jnp.sqrt(total) + self.epsilon)[:, None] + self.weight_decay * row
    return row - _rate(self.learning_rate, step) * move, {"sum_of_squares": total}


@dataclasses.dataclass(frozen=True)
class RowAdamW:
  """AdamW on the rows that were looked up.

  second_moment: "row": one number per row, of the mean of g^2, which with `moment_dtype` bfloat16 leaves 2 bytes of
    state per parameter; "element": one per parameter, as in Adam.
  moment_dtype: stored dtype of the first moment, which is computed in float32. The second moment is always float32: it
    changes by less than a thousandth per step, which bfloat16 would round away, so it would never decrease.

  Source: Zhai et al. 2024, arXiv 2402.17152, section 3.3 (row-wise AdamW); rules of PyTorch's SparseAdam.
  Choice: moments and weight decay of a row do not change while it is not looked up, and bias correction counts the
    steps of the whole table.

  Raises:
    ValueError: another `second_moment`.

  >>> RowAdamW(learning_rate=1e-3, second_moment="element").second_moment
  'element'
  """

  learning_rate: LearningRate = 1e-3
  b1: float = 0.9
  b2: float = 0.999
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  second_moment: str = "row"
  moment_dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    if self.second_moment not in ("row", "element"):
      raise ValueError(f"{self.second_moment=} is not 'row' or 'element'")

  def slots(self, width: int) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
    """Keeps both moments."""
    is_per_row = self.second_moment == "row"
    second = ((), jnp.dtype(jnp.float32)) if is_per_row else ((width,), jnp.dtype(jnp.float32))
    return {"first_moment": ((width,), jnp.dtype(self.moment_dtype)), "second_moment": second}

  def update(self, step, row, slots, gradient, mean):
    """Returns rows and slots after a step; see `RowOptimizer`."""
    square = mean(gradient**2) if self.second_moment == "row" else gradient**2
    first = self.b1 * slots["first_moment"] + (1 - self.b1) * gradient
    second = self.b2 * slots["second_moment"] + (1 - self.b2) * square
    count = step.astype(jnp.float32) + 1
    scale = jnp.sqrt(second / (1 - self.b2**count)) + self.epsilon
    move = first / (1 - self.b1**count) / (scale[:, None] if scale.ndim == 1 else scale)
    row = row - _rate(self.learning_rate, step) * (move + self.weight_decay * row)
    return row, {"first_moment": first, "second_moment": second}


def _rate(learning_rate, step):
  return jnp.asarray(learning_rate(step) if callable(learning_rate) else learning_rate, jnp.float32)


def full_mean(x: Float[Array, "U D"]) -> Float[Array, " U"]:
  """Returns the mean over the width of rows that are whole on this device."""
  return jnp.mean(x, axis=-1)


def sharded_mean(axis: str) -> Mean:
  """Returns the function that takes the mean over the width of rows whose columns are sharded over a mesh axis."""
  return lambda x: jax.lax.pmean(jnp.mean(x, axis=-1), axis)
