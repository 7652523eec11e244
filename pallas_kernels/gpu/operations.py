"""Operations of the GPU: products, loads with a layout, tables; a second form of each for what the simulator lacks.

The second form is the branch on `spec.simulate`. No other module of the package touches MLIR or private parts of JAX.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax._src.lib.mlir.dialects import llvm  # jax.extend.mlir does not offer it
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, vector
from jaxtyping import Array, Float, Int

from pallas_kernels.bias import REACHED_BUCKETS
from pallas_kernels.gpu.problem import LANES, Spec


def simulator() -> Any:
  """The option that has `plgpu.kernel` execute in Pallas's simulator."""
  if hasattr(plgpu, "InterpretGPUParams"):
    return plgpu.InterpretGPUParams()
  from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # its only place in jax 0.10

  return InterpretGPUParams()


def products(
  spec: Spec, pairs: Sequence[tuple[Any, Any]], after_issue: Callable[[], None] = lambda: None
) -> list[Float[Array, "I J"]]:
  """`a @ b.T` for pairs of matrices in shared memory, in registers."""
  if spec.simulate:
    after_issue()
    return [jnp.dot(a[...], b[...].T, preferred_element_type=jnp.float32) for a, b in pairs]

  def multiply(*accumulators):
    for accumulator, (a, b) in zip(accumulators, pairs, strict=True):
      plgpu.wgmma(accumulator, a, b.transpose((1, 0)))
    after_issue()
    return [accumulator[...] for accumulator in accumulators]

  return pl.run_scoped(multiply, *(plgpu.ACC((a.shape[0], b.shape[0]), jnp.float32) for a, b in pairs))


def accumulate(spec: Spec, terms: Sequence[tuple[Array, Array, Any]]) -> tuple[Array, ...]:
  """`total + a @ b` for each `(total, a, b)`, with b in shared memory and the others in registers."""
  if spec.simulate:
    return tuple(total + jnp.dot(a, b[...], preferred_element_type=jnp.float32) for total, a, b in terms)

  def multiply(accumulators):
    for accumulator, (_, a, b) in zip(accumulators, terms, strict=True):
      plgpu.wgmma(accumulator, a, b)

  return pl.run_state(multiply)(tuple(plgpu.ACC.init(total) for total, _, _ in terms))


def vectors(spec: Spec, info: Any, axis: int, rows: Sequence[int]) -> list[Array]:
  """Some rows of `info` as vectors along `axis` of a tile."""
  if spec.simulate:
    return [info[i] for i in rows]
  layout = plgpu.Layout.WGMMA.reduce(1 - axis)
  idx = inspect.signature(plgpu.load).parameters.get("idx")
  index = ((),) if idx and idx.default is inspect.Parameter.empty else ()  # Needed in jax 0.10, deprecated in 0.11.
  return [plgpu.load(info.at[i], *index, layout=layout, optimized=False) for i in rows]


def iota(spec: Spec, shape: tuple[int, int], axis: int) -> Int[Array, "I J"]:
  """The index along `axis` of each element of a tile."""
  return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=None if spec.simulate else plgpu.Layout.WGMMA)


def filled(spec: Spec, shape: tuple[int, ...], value: float) -> Float[Array, "..."]:
  """A tile, or a vector along its first axis, of one number."""
  x = jnp.full(shape, value, jnp.float32)
  layout = plgpu.Layout.WGMMA
  return x if spec.simulate else plgpu.layout_cast(x, layout if len(shape) == 2 else layout.reduce(1))


def look_up(spec: Spec, table: Any, index: Int[Array, "I J"]) -> Array:
  """`table[index]` for a table of one axis in shared or global memory."""
  if spec.simulate:
    return table[...][index]

  @plgpu.inline_mgpu(
    arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA),
    return_type=plgpu.ShapeDtypeStruct(index.shape, table.dtype, plgpu.Layout.WGMMA),
  )
  def gather(_, table, index):
    read = lambda i, _: llvm.load(_element(table), _address(table, i))  # noqa: E731
    is_signed = None if isinstance(_element(table), ir.F32Type) else False
    return index.foreach(read, create_array=True, is_signed=is_signed)

  return gather(table, index)


def add_to_table(spec: Spec, table: Any, index: Int[Array, "I J"], values: Float[Array, "I J"]) -> None:
  """`table[index] += values`, atomically, for a table of one axis in global memory."""
  if spec.simulate:
    table[...] += _sum_by(index, values, table.shape[0])
    return

  @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA, plgpu.Layout.WGMMA))
  def scatter(_, table, index, values):
    for i, value in _elements(index, values):
      _add_atomically(_address(table, i), value)

  scatter(table, index, values)


def add_to_histogram(spec: Spec, histogram: Any, bucket: Int[Array, "I J"], values: Float[Array, "I J"]) -> None:
  """`histogram[bucket, thread] += values`: each thread of a warpgroup has a column of its own."""
  if spec.simulate:
    histogram[:, 0] += _sum_by(bucket, values, REACHED_BUCKETS)
    return

  @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA, plgpu.Layout.WGMMA))
  def scatter(_, histogram, bucket, values):
    thread = _thread_of_warpgroup()
    for i, value in _elements(bucket, values):
      address = _address(histogram, arith.addi(arith.muli(i, _constant(LANES)), thread))
      llvm.store(arith.addf(llvm.load(_element(histogram), address), value), address)

  scatter(histogram, bucket, values)


def add_to_bucket(spec: Spec, bucket: Any, values: Float[Array, "I J"]) -> None:
  """`bucket[thread] += the sum of the values that the thread holds`, for a row of a histogram."""
  if spec.simulate:
    bucket[0] += values.sum()
    return

  @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA))
  def add(_, bucket, values):
    terms = [value for _, value in _elements(values, values)]
    while len(terms) > 1:  # Pairs, as additions of a chain would wait for each other.
      terms = [arith.addf(*pair) for pair in zip(terms[::2], terms[1::2], strict=True)]
    address = _address(bucket, _thread_of_warpgroup())
    llvm.store(arith.addf(llvm.load(terms[0].type, address), terms[0]), address)

  add(bucket, values)


def sum_histogram(spec: Spec, histogram: Any, sums: Any) -> None:
  """`sums = histogram.sum(axis=1)`: a thread for each bucket."""
  if spec.simulate:
    sums[...] = histogram[...].sum(axis=1)
    return

  @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.RefType()))
  def reduce(_, histogram, sums):
    mgpu_utils.warpgroup_barrier()
    thread = _thread_of_warpgroup()
    with mgpu_utils.when(arith.cmpi(arith.CmpIPredicate.ult, thread, _constant(REACHED_BUCKETS))):
      first = arith.muli(thread, _constant(LANES))
      total = arith.constant(ir.F32Type.get(), 0.0)
      for i in range(LANES):  # Each thread starts elsewhere, so that no two read from the same bank.
        column = arith.andi(arith.addi(thread, _constant(i)), _constant(LANES - 1))
        total = arith.addf(total, llvm.load(total.type, _address(histogram, arith.addi(first, column))))
      llvm.store(total, _address(sums, thread))

  reduce(histogram, sums)


def plus_diagonals(spec: Spec, tile: Float[Array, "I J"], table: Any, first: Array, sign: int) -> Float[Array, "I J"]:
  """`tile[i, j] + table[first + sign * (i - j)]` for a table of one axis in global memory; no index is checked."""
  if spec.simulate:
    return tile + table[...][_diagonal_index(tile.shape, first, sign)]

  @plgpu.inline_mgpu(
    arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA),
    return_type=plgpu.ShapeDtypeStruct(tile.shape, jnp.float32, plgpu.Layout.WGMMA),
  )
  def add(_, table, tile):
    row, column, _ = _place_of_thread()
    corner = arith.muli(arith.subi(row, column), _constant(sign))
    offsets = (sign * (8 * (half - block) - lane) for block, half, lane in _places(tile.shape))
    loaded: dict[int, Any] = {}

    def plus(value, _):
      offset = next(offsets)
      if offset not in loaded:
        loaded[offset] = llvm.load(value.type, _address(table, arith.addi(corner, _constant(offset))))
      return arith.addf(value, loaded[offset])

    return tile.foreach(plus, create_array=True)

  return add(table.at[pl.ds(first, 1)], tile)


def add_diagonals_to_table(spec: Spec, table: Any, first: Array, values: Float[Array, "I J"]) -> None:
  """`table[first + i - j] += values[i, j]`, atomically, for a table of one axis in global memory.

  Each warp adds up its 16 rows along the diagonals, in registers, and sends one sum for each.
  """
  if spec.simulate:
    table[...] += _sum_by(_diagonal_index(values.shape, first, 1), values, table.shape[0])
    return

  @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA))
  def scatter(_, table, values):
    row, _, lane = _place_of_thread()
    pairs = zip(_places(values.shape), _elements(values, values), strict=True)
    totals = sums_along_diagonals(_Warp(lane), {place: value for place, (_, value) in pairs})
    with mgpu_utils.when(arith.cmpi(arith.CmpIPredicate.eq, arith.remui(lane, _constant(4)), _constant(0))):
      for m, total in totals.items():
        _add_atomically(_address(table, arith.addi(row, _constant(8 * m))), total)

  scatter(table.at[pl.ds(first, 1)], values)


def sums_along_diagonals(warp: Any, held: dict[tuple[int, int, int], Any]) -> dict[int, Any]:
  """Adds up 16 rows of a tile along the diagonals, in the registers of a warp.

  Args:
    warp: operations on numbers that each thread of a warp has; see `_Warp`.
    held: the elements of the tile, by `_places`. The thread in row r of 8 and column q of 4 holds those of rows r and
      r + 8, and of columns 8 block + 2 q + (0, 1).

  Returns:
    m -> the sum over the diagonal `row - column = r + 8 m`; valid in the threads of column 0.
  """
  sums: dict[tuple[int, int], Any] = {}  # (m, c): of the diagonal r - 2 q + 8 m - c, as far as the thread holds it
  for (block, half, column), value in held.items():
    place = half - block, column
    sums[place] = warp.add(sums[place], value) if place in sums else value
  diagonals = range(min(m for m, _ in sums) - 1, 2)

  def received(of, rows, columns):
    """What the thread `rows` further down and `columns` further right holds of the same diagonals."""
    wraps = warp.is_in_first(rows)  # It lies further up instead, by 8 rows.
    sent = {m: warp.select(wraps, of.get(m + 1, warp.zero), of.get(m, warp.zero)) for m in diagonals}
    return {m: warp.from_thread(value, rows, columns) for m, value in sent.items()}

  second = received({m: value for (m, column), value in sums.items() if column == 1}, 1, 0)
  totals = {m: warp.add(sums.get((m, 0), warp.zero), second[m]) for m in diagonals}
  for rows, columns in ((2, 1), (4, 2)):
    other = received(totals, rows, columns)
    totals = {m: warp.add(totals[m], other[m]) for m in diagonals}
  return totals


class _Warp:
  """A warp as 8 rows of 4 threads. Numbers are float32 registers, of which each thread has its own."""

  def __init__(self, lane):
    self._row, self._column = arith.divui(lane, _constant(4)), arith.remui(lane, _constant(4))
    self.zero = arith.constant(ir.F32Type.get(), 0.0)

  def add(self, a, b):
    """The sum."""
    return arith.addf(a, b)

  def select(self, condition, a, b):
    """a where the condition holds, else b."""
    return arith.select(condition, a, b)

  def is_in_first(self, rows: int):
    """Whether a thread is in one of the first rows."""
    return arith.cmpi(arith.CmpIPredicate.ult, self._row, _constant(rows))

  def from_thread(self, value, rows: int, columns: int):
    """The value of the thread `rows` further down, modulo 8, and `columns` further right."""
    row = arith.remui(arith.addi(self._row, _constant(rows)), _constant(8))
    lane = arith.addi(arith.muli(row, _constant(4)), arith.addi(self._column, _constant(columns)))
    return _from_lane(value, lane)


def _diagonal_index(shape, first, sign):
  i, j = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(2))
  return first + sign * (i - j)


def _places(shape):
  """(block of 8 columns, half of 16 rows, column) of the elements that a thread holds, in their order."""
  return itertools.product(range(shape[1] // 8), range(2), range(2))


def _place_of_thread():
  """The first row and column of a tile that a thread holds, and its number in its warp."""
  thread = _thread_of_warpgroup()
  lane = arith.remui(thread, _constant(32))
  row = arith.addi(arith.muli(arith.divui(thread, _constant(32)), _constant(16)), arith.divui(lane, _constant(4)))
  return row, arith.muli(arith.remui(lane, _constant(4)), _constant(2)), lane


def _from_lane(value, lane):
  shuffle = "shfl.sync.idx.b32 $0, $1, $2, 31, -1;"
  return llvm.inline_asm(value.type, [value, lane], shuffle, "=f,f,r", has_side_effects=True)


def _add_atomically(address, value):
  """LLVM's own atomic addition becomes a loop of compare and swap."""
  nothing, add = ir.Type.parse("!llvm.void"), "red.relaxed.gpu.global.add.f32 [$0], $1;"
  llvm.inline_asm(nothing, [address, value], add, "l,f", has_side_effects=True)


def _sum_by(index, values, size):
  """`jnp.zeros(size).at[index].add(values)` in operations that the simulator has."""
  is_entry = index.reshape(-1)[:, None] == jnp.arange(size)
  return jnp.where(is_entry, values.reshape(-1)[:, None], 0).sum(axis=0)


def _elements(index, values):
  """The pairs of elements that a thread holds."""
  for i, value in zip(index.registers.flat, values.registers.flat, strict=True):
    for lane in range(ir.VectorType(i.type).shape[0]):
      yield tuple(vector.extract(x, dynamic_position=[], static_position=[lane]) for x in (i, value))


def _element(ref):
  return ir.MemRefType(ref.type).element_type


def _address(ref, index):
  pointer = mgpu_utils.memref_ptr(ref)
  if not mgpu_utils.is_smem_ref(ref):
    pointer = llvm.addrspacecast(llvm.PointerType.get(1), pointer)  # global memory, known as such
  return mgpu_utils.getelementptr(pointer, [index], _element(ref))


def _constant(value):
  return mgpu_utils.c(value, ir.IntegerType.get_signless(32))


def _thread_of_warpgroup():
  return arith.remui(mgpu_utils.thread_idx(), _constant(LANES))
