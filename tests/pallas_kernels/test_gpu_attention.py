"""The Hopper kernels: executed by Pallas's simulator on the CPU against the definition, and compiled for an H100.

The simulator needs more threads than XLA takes on a small machine, and it compiles the kernel again for each point of
the grid in jax 0.10. So a case runs in a process of its own: `python tests/test_gpu_attention.py NUMBER_OF_THE_CASE`.
"""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import PYTHON_PATH, xla_flags
from golden_checks.compile import quick_jit

from pallas_kernels import IntervalMask, RelativeBias, aot, gpu, reference
from pallas_kernels.gpu.operations import sums_along_diagonals
from pallas_kernels.gpu.problem import query_rows, tile_kinds, tile_lists

MASK = {
  "causal": lambda ids: IntervalMask.causal(ids),
  "window": lambda ids: IntervalMask.causal(ids).limited(40),
  "targets": lambda ids: IntervalMask.hstu(
    (ids != 0).sum(1), ids.shape[1], num_targets=(ids != 0).sum(1) // 4, max_attention_length=50, contextual_length=3
  ),
  "both_ways": lambda ids: IntervalMask.hstu((ids != 0).sum(1), ids.shape[1], causal=False),
  "last_queries": lambda ids: IntervalMask.causal(ids).queries(ids.shape[1] - 70, 70),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One problem for the simulator; the default has two tiles a side of each kernel, packed rows and padding."""

  length: int = 200
  mask: str = "causal"
  activation: str = "silu"
  tables: str = ""
  per_head: bool = False
  rows: int = 1
  heads: int = 1
  width: int = 64
  value_width: int = 64
  dtype: str = "bfloat16"
  blocks: tuple[tuple[str, int], ...] = ()
  entries: int = 21  # of the position table

  def __str__(self):
    changed = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
    return ",".join(f"{name}={value}" for name, value in changed) or "default"


# Between them: each mask, activation, number of consumers and of stages, no table and both, shared and not, padding.
CASES = [
  Case(activation="softmax", tables="time position", per_head=True, heads=2),
  Case(activation="softmax", tables="time position", entries=399),  # Entries of the table lie along diagonals.
  Case(mask="last_queries", tables="time position", heads=2, width=25, value_width=50, rows=2),
  Case(
    mask="targets",
    tables="position",
    blocks=(("forward_stages", 3), ("dkv_queries", 128), ("dq_keys", 128), ("dq_stages", 3)),
  ),
  Case(
    mask="window",
    activation="softmax",
    length=300,
    blocks=(("forward_stages", 1), ("dq_stages", 1), ("dkv_stages", 1), ("forward_keys", 64)),
  ),
  Case(mask="both_ways", length=130, width=136, value_width=200, dtype="float16"),  # one consumer, dk apart from dv
]

# Length, width, tables and activation, for the compiler; the last has the most to hold in registers.
REST = pytest.mark.exhaustive  # `make test-all` compiles all of them.
COMPILED = [
  *(
    pytest.param(n, d, "time position", "silu", marks=() if (n, d) == (16384, 128) else REST)
    for n in (1024, 8192, 16384)
    for d in (64, 128)
  ),
  pytest.param(1024, 64, "", "silu", marks=REST),
  (16384, 128, "", "silu"),
  (1024, 256, "time position", "softmax"),
]


def problem(case):
  """Differentiable inputs, the mask, and the integers of the bias."""
  rng = np.random.default_rng(0)
  n = case.length
  ids = np.ones((case.rows, n), np.int32)
  ids[0, n // 3 : 4 * n // 5], ids[0, 4 * n // 5 :] = 2, 0
  mask = MASK[case.mask](jnp.asarray(ids))
  shapes = {"q": (mask.shape[1], case.width), "k": (n, case.width), "v": (n, case.value_width)}
  inputs = {name: rng.normal(size=(case.rows, m, case.heads, width)) for name, (m, width) in shapes.items()}
  inputs = {name: jnp.asarray(x, case.dtype) for name, x in inputs.items()}
  heads = (case.heads,) if case.per_head else ()
  for name, size in (("time", 129), ("position", case.entries)):
    if name in case.tables:
      inputs[f"{name}_table"] = jnp.asarray(rng.normal(size=(*heads, size)), jnp.float32)
  time = np.cumsum(rng.integers(0, 10**5, (case.rows, n)), axis=1).astype(np.int32)
  position = np.broadcast_to(np.arange(n, dtype=np.int32), (case.rows, n))
  integers = {"query_time": time[:, -mask.shape[1] :] + 5000, "key_time": time}
  integers |= {"query_position": position[:, -mask.shape[1] :], "key_position": position}
  return inputs, mask, jax.tree.map(jnp.asarray, integers)


def output_and_gradients(case, attention, options, inputs, mask, integers):
  """The output, and the gradients of all inputs for one fixed direction."""

  def loss(inputs):
    bias = {name: inputs[name] for name in ("time_table", "position_table") if name in inputs}
    bias |= {name: x for name, x in integers.items() if f"{name.split('_')[1]}_table" in bias}
    bias = RelativeBias(**bias) if bias else None
    out = attention(inputs["q"], inputs["k"], inputs["v"], mask, bias, activation=case.activation, scale=0.3, **options)
    direction = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    return (out.astype(jnp.float32) * direction).sum(), out

  (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(inputs)
  return {"out": out, **gradients}


def simulate(case):
  """Raises AssertionError where the simulated kernels leave the definition."""
  arguments = problem(case)
  options = {"interpret": True, "block_sizes": gpu.BlockSizes(**dict(case.blocks)) if case.blocks else None}
  actual = quick_jit(lambda *args: output_and_gradients(case, gpu.attention, options, *args))(*arguments)
  expected = quick_jit(lambda *args: output_and_gradients(case, reference.attention, {}, *args))(*arguments)
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    one, other = np.asarray(actual[name], np.float32), np.asarray(value, np.float32)
    assert actual[name].dtype == value.dtype and np.abs(other).max() > 0
    tolerance = 2e-2 if case.dtype == "bfloat16" else 3e-3
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max(), err_msg=name)


def compile_once_for_the_whole_grid():
  """In jax 0.10 the simulator compiles the same program for each thread of each point of the grid."""
  from jax._src.pallas.mosaic.interpret import thread_map

  compiled = {}

  def run(jaxpr, consts, *args):
    if id(jaxpr) not in compiled:
      evaluate = quick_jit(lambda consts, *args: jax.core.eval_jaxpr(jaxpr, consts, *args))
      compiled[id(jaxpr)] = jaxpr, evaluate.lower(consts, *args).compile()
    compiled[id(jaxpr)][1](consts, *args)

  thread_map._run_jaxpr = run


@pytest.mark.slow
def test_simulated_kernels_give_the_outputs_and_gradients_of_the_definition():
  """All cases in one process, which starts and loads the simulator once."""
  environment = dict(os.environ)
  environment["XLA_FLAGS"] = xla_flags(16)  # 16 threads: blocked ones hold theirs
  environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  environment["PYTHONPATH"] = PYTHON_PATH
  result = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=900)
  assert result.stdout.splitlines() == [str(case) for case in CASES], result.stderr[-3000:]
  assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("name", MASK)
def test_lists_hold_every_allowed_pair_once_and_only_full_tiles_skip_the_mask(name):
  ids = np.zeros((2, 500), np.int32)
  ids[0, :130], ids[0, 130:450], ids[1] = 1, 2, 1
  mask = MASK[name](jnp.asarray(ids))
  rows = query_rows(mask, RelativeBias(), 500)
  kinds = tile_kinds(rows, 512, 64, 128)
  lists = tile_lists(*kinds)
  dense = np.zeros((2, rows.shape[2], 512), bool)
  dense[:, : mask.shape[1], :500] = mask.to_dense(500)
  dense[:, mask.shape[1] :] = dense[:, mask.shape[1] - 1 : mask.shape[1]]  # added queries repeat the last one
  tiles = dense.reshape(2, -1, 64, 4, 128)
  some, all_ = tiles.any(axis=(2, 4)), tiles.all(axis=(2, 4))  # [B, Tq, Tk]
  for row, query_tile in np.ndindex(*some.shape[:2]):
    full, live = np.asarray(lists["counts"])[row, query_tile]
    order = np.asarray(lists["order"])[row, query_tile]
    assert sorted(order) == [0, 1, 2, 3]
    assert all_[row, query_tile][order[:full]].all()
    assert not some[row, query_tile][order[live:]].any()
  if name in ("causal", "both_ways"):
    assert np.asarray(lists["counts"])[..., 0].any(), "a test of nothing"


@pytest.mark.parametrize(
  "change, text",
  [
    ({"dtype": "float32"}, "multiply bfloat16 or float16, the same for q, k, v; got float32"),
    ({"width": 257}, "head widths 257 and 257: the GPU kernels take up to 256"),
  ],
)
def test_what_the_kernels_cannot_do_is_refused_by_name(change, text):
  width = change.get("width", 64)
  x = jnp.zeros((1, 8, 1, width), change.get("dtype", "bfloat16"))
  mask = IntervalMask.causal(jnp.ones((1, 8), jnp.int32))
  with pytest.raises(NotImplementedError, match=text):
    gpu.attention(x, x, x, mask, None, activation="silu", scale=1.0)


class Warps:
  """Four warps in NumPy: numbers are `[4, 8, 4]`, as in `pallas_kernels.gpu.operations._Warp`."""

  zero = np.zeros((4, 8, 4))

  def add(self, a, b):
    return a + b

  def select(self, condition, a, b):
    return np.where(condition, a, b)

  def is_in_first(self, rows):
    return (np.arange(8) < rows)[:, None]

  def from_thread(self, value, rows, columns):
    return np.roll(np.roll(value, -rows, axis=1), -columns, axis=2)


@pytest.mark.parametrize("columns", [64, 128])
def test_registers_of_a_warp_add_up_to_the_sums_along_diagonals(columns):
  tile = np.random.default_rng(0).normal(size=(64, columns))
  by_thread = tile.reshape(4, 2, 8, columns // 8, 4, 2)  # warp, half, row, block, column, place in the column
  held = {(b, h, c): by_thread[:, h, :, b, :, c] for b in range(columns // 8) for h in range(2) for c in range(2)}
  sums = np.zeros(64 + columns)
  for m, total in sums_along_diagonals(Warps(), held).items():
    for warp, row in np.ndindex(4, 8):
      sums[16 * warp + row + 8 * m] += total[warp, row, 0]  # from the end where the column is larger than the row
  expected = np.zeros_like(sums)
  for i, j in np.ndindex(tile.shape):
    expected[i - j] += tile[i, j]
  np.testing.assert_allclose(sums, expected, atol=1e-12)


def test_tiles_have_sizes_that_the_tensor_cores_take():
  with pytest.raises(ValueError, match="needs 1 or 2 consumers, tiles of 64 or 128"):
    gpu.BlockSizes(dq_keys=32)


@pytest.mark.slow
@pytest.mark.skipif(aot.why_not("h100") is not None, reason=str(aot.why_not("h100")))
@pytest.mark.parametrize("length, width, tables, activation", COMPILED)
def test_forward_and_backward_compile_for_an_h100(length, width, tables, activation):
  case = Case(length=length, width=width, value_width=width, tables=tables, activation=activation, heads=4)
  shape = jax.ShapeDtypeStruct((1, length, 4, width), jnp.bfloat16)
  inputs = {"q": shape, "k": shape, "v": shape}
  sizes = {"time": 129, "position": 2 * length - 1}
  inputs |= {f"{x}_table": jax.ShapeDtypeStruct((4, n), jnp.float32) for x, n in sizes.items() if x in tables}
  tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
  integers = {f"{side}_{kind}": tokens for side in ("query", "key") for kind in ("time", "position")}

  def run(inputs, ids, integers):
    return output_and_gradients(case, gpu.attention, {}, inputs, IntervalMask.causal(ids), integers)

  compiled, _ = aot.compile_for(run, aot.target_devices("h100")[:1], inputs, tokens, integers)
  # Far from one number for each pair: tokens * (a few rows of the heads, and copies of the tables' gradients).
  assert compiled.memory_analysis().temp_size_in_bytes < length * 4 * width * 4 * 8 < length**2 * 4 * 4 * 8


if __name__ == "__main__":
  compile_once_for_the_whole_grid()
  for each in CASES:
    simulate(each)
    print(each)
