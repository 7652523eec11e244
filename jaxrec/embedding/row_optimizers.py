"""Optimizers of table rows: they see the rows that a step looked up, and leave all others as they are.

A row optimizer is a frozen dataclass with `slots(width)`, what it keeps for each row, and `update`. Arrays of its
arguments are float32; `mean` takes the mean over the width, which may be spread over devices.
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
  """What `Table.optimizer` must offer."""

  def slots(self, width: int) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
    """What is kept for each row: name to (shape, dtype), zeros at first; a shape is `()` or `(width,)`."""
    ...

  def update(
    self, step: Int[Array, ""], row: Float[Array, "U D"], slots: Slots, gradient: Float[Array, "U D"], mean: Mean
  ) -> tuple[Float[Array, "U D"], Slots]:
    """Rows and slots after a step; `step` counts updates from 0."""
    ...


@dataclasses.dataclass(frozen=True)
class RowSGD:
  """`w -= lr g`; weight decay, if any, acts when a row is looked up.

  learning_rate: a number, or a function of the number of updates made so far (an optax schedule).
  """

  learning_rate: LearningRate = 0.01
  weight_decay: float = 0.0

  def slots(self, width: int) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
    """None."""
    return {}

  def update(self, step, row, slots, gradient, mean):
    """See `RowOptimizer`."""
    return row - _rate(self.learning_rate, step) * (gradient + self.weight_decay * row), slots


@dataclasses.dataclass(frozen=True)
class RowAdagrad:
  """`s += mean(g^2); w -= lr g / (sqrt(s) + epsilon)`, with one number s a row.

  Source: row-wise Adagrad as in FBGEMM (`rowwise_adagrad`); Gupta et al. 2014.
  """

  learning_rate: LearningRate = 0.05
  epsilon: float = 1e-8
  weight_decay: float = 0.0

  def slots(self, width: int) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
    """The sum of mean squares."""
    return {"sum_of_squares": ((), jnp.dtype(jnp.float32))}

  def update(self, step, row, slots, gradient, mean):
    """See `RowOptimizer`."""
    total = slots["sum_of_squares"] + mean(gradient**2)  # [U]
    move = gradient / (jnp.sqrt(total) + self.epsilon)[:, None] + self.weight_decay * row
    return row - _rate(self.learning_rate, step) * move, {"sum_of_squares": total}


@dataclasses.dataclass(frozen=True)
class RowAdamW:
  """AdamW on the rows that were looked up.

  second_moment: "row": one number a row, of the mean of g^2, which with `moment_dtype` bfloat16 leaves 2 bytes a
    parameter; "element": one a parameter, as in Adam, in float32.
  moment_dtype: of the first moment where it is kept; it is computed in float32. The second is always float32: a mean
    over 1000 steps changes by less in each than a bfloat16 can tell, and would never fall.

  Source: Zhai et al. 2024, arXiv 2402.17152, section 3.3 (row-wise AdamW); rules of PyTorch's SparseAdam.
  Choice: moments and weight decay of a row stand still while it is not looked up, and the correction for the start
    counts the steps of the whole table.
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
    """Both moments."""
    of_row = self.second_moment == "row"
    second = ((), jnp.dtype(jnp.float32)) if of_row else ((width,), jnp.dtype(jnp.float32))
    return {"first_moment": ((width,), jnp.dtype(self.moment_dtype)), "second_moment": second}

  def update(self, step, row, slots, gradient, mean):
    """See `RowOptimizer`."""
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
  """The mean over the width of rows that lie on one device."""
  return jnp.mean(x, axis=-1)


def spread_mean(axis: str) -> Mean:
  """The mean over the width of rows whose columns are spread over the devices of a mesh axis."""
  return lambda x: jax.lax.pmean(jnp.mean(x, axis=-1), axis)
