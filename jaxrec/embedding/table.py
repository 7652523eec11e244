"""The description of one embedding table: its size, its dtype, its optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxrec.embedding.rounding import ROUNDINGS
from jaxrec.embedding.row_optimizers import RowAdagrad, RowOptimizer

REPLICATED, SHARDED = "replicated", "sharded"


@dataclasses.dataclass(frozen=True)
class Table:
  """Configuration of an embedding table; `Tables` makes and updates its rows.

  num_rows: valid ids are 0..num_rows - 1.
  width: length of each embedding vector.
  dtype: dtype of the stored rows, float32 or bfloat16. Optimizer state is float32 unless the optimizer says otherwise.
  optimizer: updates the rows that a step looked up and no others; see `jaxrec.embedding.row_optimizers`.
  rounding: how float32 updates are stored in bfloat16 rows: "nearest"; "stochastic", unbiased; or "float32", which
    stores the float32 remainder alongside in 2 more bytes per element, so that nothing is lost.
  initializer: (key, shape) -> values, as in `jax.nn.initializers`. It is called with shape (1, width) for each row, so
    that initial rows don't depend on the number of devices.
  padding_id: this id and negative ids read zeros and are never updated. None: only negative ids are.
  admit_after: a row reads zeros and is not trained until it was looked up this many times. Choice: counted per row, not
    per id, each occurrence in a batch, and effective from the next step; hashed ids that share a row share its count.
  placement: "sharded", "replicated", or "auto": replicated up to `max_replicated_bytes` of `Tables`.

  Raises:
    ValueError: a size, dtype, rounding or placement that is not one of these.

  >>> Table(num_rows=1000, width=64).rounding
  'nearest'
  """

  num_rows: int
  width: int
  dtype: DTypeLike = jnp.float32
  optimizer: RowOptimizer = RowAdagrad()
  rounding: str = "nearest"
  initializer: Callable[..., jax.Array] = jax.nn.initializers.truncated_normal(0.02)
  padding_id: int | None = 0
  admit_after: int = 0
  placement: str = "auto"

  def __post_init__(self):
    if self.num_rows < 1 or self.width < 1:
      raise ValueError(f"{self.num_rows=} and {self.width=} must be at least 1")
    if jnp.dtype(self.dtype) not in (jnp.float32, jnp.bfloat16):
      raise ValueError(f"{self.dtype=} must be float32 or bfloat16")
    if self.rounding not in ROUNDINGS:
      raise ValueError(f"{self.rounding=} is not one of {ROUNDINGS}")
    if self.rounding != "nearest" and jnp.dtype(self.dtype) == jnp.float32:
      raise ValueError(f"{self.rounding=} applies to bfloat16 rows only; float32 rows are not rounded")
    if self.placement not in (REPLICATED, SHARDED, "auto"):
      raise ValueError(f"{self.placement=} is not 'sharded', 'replicated' or 'auto'")
    if self.admit_after < 0:
      raise ValueError(f"{self.admit_after=} must not be negative")

  @property
  def slots(self) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
    """State stored with each row: name to (shape, dtype); a shape is `()` or `(width,)`."""
    slots = self.optimizer.slots(self.width)
    if self.rounding == "float32":
      slots["remainder"] = ((self.width,), jnp.dtype(jnp.int16))
    if self.admit_after:
      slots["requests"] = ((), jnp.dtype(jnp.int32))
    return slots

  @property
  def bytes_per_row(self) -> int:
    """Bytes of a row and its slots."""
    slots = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.slots.values())
    return self.width * jnp.dtype(self.dtype).itemsize + slots

  @property
  def kind(self) -> tuple:
    """What tables must agree in to be stored in one array and looked up in one exchange."""
    return (self.width, jnp.dtype(self.dtype).name, self.optimizer, self.rounding, self.admit_after)
