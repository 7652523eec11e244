"""Which implementation "auto" takes on a GPU: rows of what was measured, and the safe choice where nothing was."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from pallas_kernels.bias import RelativeBias
from pallas_kernels.devices import on_one_device
from pallas_kernels.groups import WITHOUT_KERNEL
from pallas_kernels.sizes import is_known
from pallas_kernels.varying import axes_of

_MAX_DENSE_BYTES = 2**33  # of the arrays of the size of the attention matrix
_DENSE_ARRAYS = 4
_UNMEASURED = 2048  # tokens, up to which the dense form is taken where nothing was measured


@dataclasses.dataclass(frozen=True)
class Row:
  """What was fastest.

  capability: compute capability of the GPU. bits: of the dtype. longest: queries or keys, up to which it was.
  evidence: the numbers, and the file that they are from.
  """

  capability: str
  bits: int
  longest: int
  implementation: str
  evidence: str


_SOURCE = "NVIDIA H200, experiments/results/device_h200.md"
ROWS: tuple[Row, ...] = (
  Row(
    "9.0", 16, 2**30, "gpu",
    "forward + backward in ms, Pallas kernel against dense: 0.18 and 0.70 at 28 x 512 tokens with bias, 0.28 and 0.85"
    f" at 64 x 512 without, 1.1 and 4.1 at 8 x 4,096 ({_SOURCE})",
  ),
  Row(
    "9.0", 32, 4096, "dense",
    "forward + backward in ms, dense against xla: 0.50 and 7.0 at 57 x 256 tokens with bias, 2.0 and 5.3 at 32 x 1,024,"
    f" 6.3 and 15.8 at 8 x 4,096 ({_SOURCE})",
  ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Choice:
  """An implementation, and why it is taken."""

  implementation: str
  reason: str


def choose(
  q: Any, k: Any, v: Any, bias: RelativeBias | None, capability: str | None = None, group_sums: str = "signed"
) -> Choice:
  """What "auto" runs on GPUs; shapes and dtypes suffice.

  Args:
    q, k, v, bias, group_sums: as of `segment_attention`.
    capability: compute capability, "9.0" for Hopper; None: that of this process's GPU, if it has one.
  """
  if not is_known(q, k, v):
    return Choice("xla", "sizes are symbols")
  q, k, v = (on_one_device(x) for x in (q, k, v))
  capability = capability or _capability()
  bits, longest = 8 * q.dtype.itemsize, max(q.shape[1], k.shape[1])
  notes = []
  for row in ROWS:
    if (row.capability, row.bits) != (capability, bits) or longest > row.longest:
      continue
    obstacle = _obstacle(row.implementation, q, k, v, bias, group_sums)
    if obstacle is None:
      return Choice(row.implementation, "; ".join([*notes, row.evidence]))
    notes.append(f"not {row.implementation}: {obstacle}")
  what = f"{bits}-bit attention over {longest} tokens on " + (
    f"compute capability {capability}" if capability else "a GPU that is not here"
  )
  notes.append(f"not measured: {what}")
  is_short = longest <= _UNMEASURED and _obstacle("dense", q, k, v, bias, group_sums) is None
  return Choice("dense" if is_short else "xla", "; ".join(notes))


def _obstacle(implementation, q, k, v, bias, group_sums) -> str | None:
  if implementation == "dense":
    size = 4 * q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1] * _DENSE_ARRAYS
    return None if size <= _MAX_DENSE_BYTES else f"arrays of {size / 2**30:.0f} GiB"
  if implementation == "gpu":
    if group_sums == "absolute":
      return WITHOUT_KERNEL
    if isinstance(q, jax.Array) and axes_of((q, k, v)):
      return "under shard_map with check_vma=True"
    from pallas_kernels import gpu  # Its packages take a second to import.

    try:
      gpu.check(q, k, v, bias)
    except NotImplementedError as error:
      return str(error)
  return None


def _capability() -> str | None:
  """The compute capability of this process's first GPU."""
  try:
    return str(jax.devices("cuda")[0].compute_capability)
  except (RuntimeError, AttributeError):
    return None
