"""Which tables are replicated, which are sharded by row, and which share an array."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from jaxrec.embedding.table import REPLICATED, SHARDED, Table

MAX_REPLICATED_BYTES = 16 * 2**20  # Rows and slots: "auto" replicates a table up to this size.
MAX_STACK_ROWS = 2**32 - 2  # Rows are numbered in uint32 during the exchange.
MAX_DEVICE_ROWS = 2**31 - 2**26  # Rows of a device are int32, and numbers beyond the last row mean "no row".


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where the rows of one table are stored.

  placement: "replicated" or "sharded".
  stack: name of the array that holds the table.
  rows_per_device: rows of the table on each device.
  first_row: index of the table's first row in the stack, the same on every device.
  bytes_per_device: bytes of these rows and their slots.
  """

  table: str
  placement: str
  stack: str
  rows_per_device: int
  first_row: int
  bytes_per_device: int

  @property
  def is_replicated(self) -> bool:
    """Whether every device has all rows."""
    return self.placement == REPLICATED


def place_tables(
  tables: Mapping[str, Table], num_shards: int, num_columns: int = 1, max_replicated_bytes: int = MAX_REPLICATED_BYTES
) -> dict[str, Placement]:
  """Decides which tables are replicated or sharded; sharded tables of one kind share an array, a stack.

  Args:
    tables: tables by name.
    num_shards: number of row shards.
    num_columns: number of column shards of each row.
    max_replicated_bytes: "auto" replicates a table up to this size, slots included.

  Raises:
    ValueError: a width that `num_columns` does not divide, more rows of one kind than can be numbered, or a table with
      the name of a stack.

  >>> placements = place_tables({"item": Table(10**6, 64), "domain": Table(9, 64)}, num_shards=8)
  >>> placements["item"].placement, placements["item"].rows_per_device, placements["domain"].placement
  ('sharded', 125000, 'replicated')
  """
  placements, filled = {}, {}
  for name, table in tables.items():
    size = table.num_rows * table.bytes_per_row
    if table.placement == REPLICATED or (table.placement == "auto" and size <= max_replicated_bytes):
      placements[name] = Placement(name, REPLICATED, name, table.num_rows, 0, size)
      continue
    if table.width % num_columns:
      raise ValueError(f"table {name!r}: width={table.width} must be divisible by the {num_columns} column shards")
    stack, first = filled.setdefault(table.kind, (f"stack{len(filled)}_{table.width}", 0))
    rows = -(-table.num_rows // num_shards)
    placements[name] = Placement(name, SHARDED, stack, rows, first, rows * table.bytes_per_row // num_columns)
    filled[table.kind] = (stack, first + rows)
  _check_stacks(tables, filled, num_shards)
  return placements


def _check_stacks(tables, filled, num_shards):
  for kind, (stack, rows) in filled.items():
    if rows * num_shards > MAX_STACK_ROWS or rows > MAX_DEVICE_ROWS:
      limits = f"{MAX_STACK_ROWS} in total and {MAX_DEVICE_ROWS} per device"
      raise ValueError(
        f"{rows * num_shards} rows of kind {kind} on {num_shards} devices are too many (at most {limits}): use more"
        " devices, or another width or optimizer for one of the tables"
      )
    if stack in tables:
      raise ValueError(f"table {stack!r} has the name of a stack; rename the table")


def describe(tables: Mapping[str, Table], placements: Mapping[str, Placement], num_shards: int) -> str:
  """Formats the placements as text, one line per table, with the bytes that each device stores."""
  lines = [("table", "rows", "width", "dtype", "size", "placement", "per device")]
  for name, table in tables.items():
    placement = placements[name]
    where = REPLICATED if placement.is_replicated else f"{SHARDED} by {num_shards} ({placement.stack})"
    size = _bytes(table.num_rows * table.bytes_per_row)
    dtype = jnp.dtype(table.dtype).name
    lines.append(
      (name, f"{table.num_rows:,}", str(table.width), dtype, size, where, _bytes(placement.bytes_per_device))
    )
  total = sum(placement.bytes_per_device for placement in placements.values())
  lines.append(("total", "", "", "", "", "", _bytes(total)))
  return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _bytes(size: float) -> str:
  for unit in ("B", "KiB", "MiB", "GiB"):
    if size < 1024:
      return f"{size:.4g} {unit}"
    size /= 1024
  return f"{size:,.4g} TiB"
