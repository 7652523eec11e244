"""Between the references' jagged rows (one sequence after another, no padding) and our padded `[B, N]` rows."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, Shaped


@dataclasses.dataclass(frozen=True)
class Layout:
  """Rows of `lengths` tokens, padded on the right to `width`.

  >>> layout = Layout(np.array([2, 0, 1]), 3)
  >>> layout.pad(np.array([7, 8, 9])).tolist()
  [[7, 8, 0], [0, 0, 0], [9, 0, 0]]
  >>> layout.unpad(layout.pad(np.array([7, 8, 9]))).tolist()
  [7, 8, 9]
  """

  lengths: Int[np.ndarray, "B"]
  width: int

  @classmethod
  def of_offsets(cls, offsets: Int[np.ndarray, " B1"], width: int | None = None) -> Layout:
    lengths = np.diff(offsets)
    return cls(lengths, int(lengths.max()) if width is None else width)

  def grown(self, rows: int = 4, columns: int = 16) -> Layout:
    """Returns the layout with empty rows and padding added up to multiples, so that files share compiled functions."""
    extra = -len(self.lengths) % rows
    return Layout(np.pad(self.lengths, (0, extra)), self.width + -self.width % columns)

  @property
  def is_real(self) -> Bool[np.ndarray, "B N"]:
    return np.arange(self.width) < self.lengths[:, None]

  def pad(self, jagged: Shaped[np.ndarray, " L *rest"]) -> Shaped[np.ndarray, "B N *rest"]:
    padded = np.zeros((len(self.lengths), self.width) + jagged.shape[1:], jagged.dtype)
    padded[self.is_real] = jagged
    return padded

  def unpad(self, padded: Shaped[np.ndarray, "B N *rest"]) -> Shaped[np.ndarray, " L *rest"]:
    return np.asarray(padded)[self.is_real]

  def pad_rows(self, per_row: Shaped[np.ndarray, " R *rest"]) -> Shaped[np.ndarray, " B *rest"]:
    """Returns `per_row` with zeros for the rows that `grown` added."""
    extra = len(self.lengths) - len(per_row)
    return np.pad(per_row, [(0, extra)] + [(0, 0)] * (per_row.ndim - 1))
