"""What a table is, and where the planner puts it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxrec.embedding.rounding import ROUNDINGS
from jaxrec.embedding.row_optimizers import RowAdagrad, RowOptimizer

REPLICATED, SHARDED = "replicated", "sharded"
MAX_REPLICATED_BYTES = 16 * 2**20  # Of rows and optimizer state: a table up to this size is copied to each device.
MAX_STACK_ROWS = 2**32 - 2  # Rows are numbered in uint32 while they are exchanged.
MAX_DEVICE_ROWS = 2**31 - 2**26  # On a device in int32, and places after the last row stand for none.


@dataclasses.dataclass(frozen=True)
class Table:
  """An embedding table.

  num_rows: ids are 0..num_rows - 1.
  width: numbers in a row.
  dtype: of the stored rows; float32 or bfloat16. Optimizer state is float32 unless the optimizer says otherwise.
  optimizer: changes rows that were looked up, and no others; see `jaxrec.embedding.row_optimizers`.
  rounding: how an update, computed in float32, gets into bfloat16 rows: "nearest"; "stochastic", right on average; or
    "float32", which keeps the rest of each number in 2 more bytes, so that nothing is lost.
  initializer: (key, shape) -> values, as of `jax.nn.initializers`. It is called with shape (1, width) for each row, so
    that a row starts the same however many devices there are.
  padding_id: this id stands for nothing: it reads zeros and its row never changes. Negative ids always do so. None:
    row 0 is a row like others.
  admit_after: a row reads zeros and is not trained until it was looked up so many times. Choice: counted by row, each
    occurrence in a batch, from the end of the step on; hashed ids that share a row share its count.
  placement: "sharded", "replicated", or "auto": replicated up to `max_replicated_bytes` of `Tables`.
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
      raise ValueError(f"{self.rounding=} is for rows in bfloat16; float32 rows are not rounded")
    if self.placement not in (REPLICATED, SHARDED, "auto"):
      raise ValueError(f"{self.placement=} is not 'sharded', 'replicated' or 'auto'")
    if self.admit_after < 0:
      raise ValueError(f"{self.admit_after=} must not be negative")

  @property
  def slots(self) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
    """What is kept for each row beside it: name to (shape, dtype); a shape is `()` or `(width,)`."""
    slots = self.optimizer.slots(self.width)
    if self.rounding == "float32":
      slots["remainder"] = ((self.width,), jnp.dtype(jnp.int16))
    if self.admit_after:
      slots["requests"] = ((), jnp.dtype(jnp.int32))
    return slots

  @property
  def bytes_per_row(self) -> int:
    """Bytes of a row and of all that is kept for it."""
    slots = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.slots.values())
    return self.width * jnp.dtype(self.dtype).itemsize + slots

  @property
  def kind(self) -> tuple:
    """Tables of the same kind are kept in one array and looked up in one exchange."""
    return (self.width, jnp.dtype(self.dtype).name, self.optimizer, self.rounding, self.admit_after)


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where a table lies.

  placement: "replicated" or "sharded".
  stack: name of the array that holds it.
  rows_per_device: its rows on each device.
  first_row: where they begin in the stack's rows on a device.
  bytes_per_device: rows and optimizer state.
  """

  table: str
  placement: str
  stack: str
  rows_per_device: int
  first_row: int
  bytes_per_device: int


def place_tables(
  tables: Mapping[str, Table], num_shards: int, num_columns: int = 1, max_replicated_bytes: int = MAX_REPLICATED_BYTES
) -> dict[str, Placement]:
  """Decides which tables are copied to each device and which are spread by row, and which share an array.

  Args:
    tables: by name.
    num_shards: devices over which rows are spread.
    num_columns: devices over which the columns of a row are spread.
    max_replicated_bytes: a table up to this size, optimizer state included, is replicated.

  Raises:
    ValueError: columns that don't divide a width, more rows of one kind than can be numbered, or a table with the name
      of a stack.

  >>> places = place_tables({"item": Table(10**6, 64), "domain": Table(9, 64)}, num_shards=8)
  >>> places["item"].placement, places["item"].rows_per_device, places["domain"].placement
  ('sharded', 125000, 'replicated')
  """
  places, filled = {}, {}
  for name, table in tables.items():
    small = table.num_rows * table.bytes_per_row <= max_replicated_bytes
    if table.placement == REPLICATED or (table.placement == "auto" and small):
      size = table.num_rows * table.bytes_per_row
      places[name] = Placement(name, REPLICATED, name, table.num_rows, 0, size)
      continue
    if table.width % num_columns:
      raise ValueError(f"table {name!r}: width={table.width} must be divisible by the {num_columns} column shards")
    stack, first = filled.setdefault(table.kind, (f"stack{len(filled)}_{table.width}", 0))
    rows = -(-table.num_rows // num_shards)
    size = rows * table.bytes_per_row // num_columns
    places[name] = Placement(name, SHARDED, stack, rows, first, size)
    filled[table.kind] = (stack, first + rows)
  for kind, (stack, rows) in filled.items():
    if rows * num_shards > MAX_STACK_ROWS or rows > MAX_DEVICE_ROWS:
      limits = f"{MAX_STACK_ROWS} in all and {MAX_DEVICE_ROWS} a device"
      raise ValueError(f"{rows * num_shards} rows of kind {kind} on {num_shards} devices are too many ({limits})")
    if stack in tables:
      raise ValueError(f"table {stack!r} has the name of a stack: call it something else")
  return places


def describe(tables: Mapping[str, Table], places: Mapping[str, Placement], num_devices: int) -> str:
  """The plan as a table of text, a line for each embedding table, with bytes on each device."""
  lines = [("table", "rows", "width", "dtype", "size", "placement", "a device")]
  for name, table in tables.items():
    place = places[name]
    where = place.placement if place.placement == REPLICATED else f"{SHARDED} by {num_devices} ({place.stack})"
    size = _bytes(table.num_rows * table.bytes_per_row)
    dtype = jnp.dtype(table.dtype).name
    lines.append((name, f"{table.num_rows:,}", str(table.width), dtype, size, where, _bytes(place.bytes_per_device)))
  total = sum(place.bytes_per_device for place in places.values())
  lines.append(("all", "", "", "", "", "", _bytes(total)))
  return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _bytes(number: float) -> str:
  for unit in ("B", "KiB", "MiB", "GiB"):
    if number < 1024:
      return f"{number:.4g} {unit}"
    number /= 1024
  return f"{number:,.4g} TiB"


def num_shards_of(mesh: Mesh | None, axes: tuple[str, ...]) -> int:
  """Devices along these axes of the mesh."""
  return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)
