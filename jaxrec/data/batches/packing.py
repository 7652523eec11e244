"""Sequence packing: several sequences share a row of fixed length, end to end.

Positions without an event cost as much computation as others. On MovieLens-1M, rows of 200 positions with one user each
are 46% padding, packed rows of 512 positions about 1%.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class Packing:
  """The positions of K sequences in a grid of rows.

  row: the row of each sequence, 0..num_rows-1.
  column: the position in that row at which it starts.
  sequence_id: 1, 2, ... for the sequences of a row, from left to right.
  num_rows: rows used.
  """

  row: Int[np.ndarray, " K"]
  column: Int[np.ndarray, " K"]
  sequence_id: Int[np.ndarray, " K"]
  num_rows: int


def pack(lengths: Int[np.ndarray, " K"], row_length: int) -> Packing:
  """Returns positions for all sequences in rows of `row_length`, by best fit in the given order.

  Each sequence goes to the row with the least sufficient free space, or to a new row if none has enough. All rows stay
  open until the end, so short sequences fill the gaps that longer ones left.

  Args:
    lengths: positions that each sequence needs, at least 1.
    row_length: positions in a row.

  Raises:
    ValueError: a sequence is longer than a row, or shorter than 1.

  Source: best-fit bin packing, e.g. Johnson et al. 1974. The open rows with r free positions form a stack; the bits of
  one integer record which of these stacks are not empty, so that the best fit costs a shift and no search.

  >>> packing = pack(np.array([3, 2, 2, 1]), row_length=4)
  >>> packing.row.tolist(), packing.column.tolist(), packing.sequence_id.tolist(), packing.num_rows
  ([0, 1, 1, 0], [0, 0, 2, 3], [1, 1, 2, 2], 2)
  """
  _check_lengths(lengths, row_length)
  row, column, sequence_id = [], [], []
  rows_with_free: list[list[int]] = [[] for _ in range(row_length + 1)]
  non_empty = 0  # Bit r is set while rows_with_free[r] holds a row.
  sequences_in_row: list[int] = []
  for length in lengths.tolist():
    fitting = non_empty >> length
    if fitting:
      free = length + (fitting & -fitting).bit_length() - 1
      chosen = rows_with_free[free].pop()
      if not rows_with_free[free]:
        non_empty &= ~(1 << free)
    else:
      free, chosen = row_length, len(sequences_in_row)
      sequences_in_row.append(0)
    sequences_in_row[chosen] += 1
    row.append(chosen)
    column.append(row_length - free)
    sequence_id.append(sequences_in_row[chosen])
    if free > length:
      rows_with_free[free - length].append(chosen)
      non_empty |= 1 << (free - length)
  return Packing(_int64(row), _int64(column), _int64(sequence_id), len(sequences_in_row))


def separate_rows(lengths: Int[np.ndarray, " K"], row_length: int) -> Packing:
  """Returns positions with one sequence per row, in the given order.

  >>> separate_rows(np.array([3, 2]), row_length=4).row.tolist()
  [0, 1]
  """
  _check_lengths(lengths, row_length)
  row = np.arange(len(lengths))
  return Packing(row, np.zeros_like(row), np.ones_like(row), len(lengths))


def reshuffle(
  packing: Packing, lengths: Int[np.ndarray, " K"], seed: tuple[int, ...]
) -> tuple[Packing, Int[np.ndarray, " K"]]:
  """Returns the packing with its rows in another order, and the index of the sequence at each of its K positions.

  Rows are permuted, and sequences of equal length are swapped. The number of rows and their fill never change, so all
  epochs have the same number of batches. The result is sorted by row.

  Choice: packing every epoch anew would mix a little more (a sequence whose length is unique keeps its neighbours'
  lengths here), but epochs would differ in size and each would have to wait for its packing.

  Args:
    packing: positions of sequences 0..K-1.
    lengths: their lengths.
    seed: integers; the same integers give the same order.
  """
  rng = np.random.default_rng(seed)
  shuffled = rng.permutation(len(lengths))
  sequence = np.empty_like(shuffled)
  sequence[np.argsort(lengths, kind="stable")] = shuffled[np.argsort(lengths[shuffled], kind="stable")]
  rows = dataclasses.replace(packing, row=rng.permutation(packing.num_rows)[packing.row])
  reordered, order = sorted_by_row(rows)
  return reordered, sequence[order]


def sorted_by_row(packing: Packing) -> tuple[Packing, Int[np.ndarray, " K"]]:
  """Returns the packing sorted by row, and the index of the sequence at each of its K positions.

  >>> packing, sequence = sorted_by_row(pack(np.array([3, 2, 2, 1]), row_length=4))
  >>> packing.row.tolist(), sequence.tolist()
  ([0, 0, 1, 1], [0, 3, 1, 2])
  """
  order = np.lexsort((packing.sequence_id, packing.row))
  columns = (packing.row[order], packing.column[order], packing.sequence_id[order])
  return Packing(*columns, packing.num_rows), order


def _check_lengths(lengths, row_length):
  if len(lengths) and lengths.max() > row_length:
    raise ValueError(f"a sequence of length {lengths.max()} does not fit into {row_length=}; use longer rows")
  if len(lengths) and lengths.min() < 1:
    raise ValueError(f"a sequence of length {lengths.min()} cannot be packed; every length must be at least 1")


def _int64(values):
  return np.asarray(values, dtype=np.int64)
