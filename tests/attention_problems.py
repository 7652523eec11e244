"""Attention problems that all implementations are held to: random inputs of any shape, outputs and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import BlockSizes, IntervalMask, RelativeBias, segment_attention, tpu

MASK = {
  "causal": lambda ids: IntervalMask.causal(ids),
  "full": lambda ids: IntervalMask.full(ids),
  "window": lambda ids: IntervalMask.causal(ids).limited(9),
  "targets": lambda ids: IntervalMask.hstu(
    (ids != 0).sum(1), ids.shape[1], num_targets=(ids != 0).sum(1) // 4, max_attention_length=11, contextual_length=3
  ),
  "both_ways": lambda ids: IntervalMask.hstu((ids != 0).sum(1), ids.shape[1], max_attention_length=13, causal=False),
  "last_queries": lambda ids: IntervalMask.causal(ids).queries(20, 9),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A point of the grid; the default has several tiles a side, packed rows, padding and both biases."""

  length: int = 40
  mask: str = "causal"
  activation: str = "silu"
  blocks: tuple[int, int, int] | None = (16, 8, 4)
  tables: str = "time position"  # which parts of the bias there are
  per_head: bool = False
  heads: int = 2
  width: int = 6
  value_width: int = 6
  normalizer: str = "none"  # or "number", "each_query"
  gaps: bool = False  # between the positions, as where only the events of a domain are left
  scale: float = 0.7
  dtype: str = "float32"

  def __str__(self):
    changed = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
    return ",".join(f"{name}={value}" for name, value in changed) or "default"


def problem(case, seed=0):
  """Differentiable inputs (a dict), the mask, and times and positions, all of `case`'s shapes."""
  rng = np.random.default_rng(seed)
  n = case.length
  ids = np.zeros((3, n), np.int32)  # A packed row with padding, a full one, and one without a token.
  ids[0, : n // 3], ids[0, n // 3 : 4 * n // 5 + 1] = 1, 2
  ids[1] = 1
  mask = MASK[case.mask](jnp.asarray(ids))
  queries = mask.shape[1]
  heads = (case.heads,) if case.per_head else ()

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), case.dtype)

  inputs = {
    "q": normal(3, queries, case.heads, case.width),
    "k": normal(3, n, case.heads, case.width),
    "v": normal(3, n, case.heads, case.value_width),
  }
  if "time" in case.tables:
    inputs["time_table"] = jnp.asarray(rng.normal(size=(*heads, 129)), jnp.float32)
  if "position" in case.tables:
    inputs["position_table"] = jnp.asarray(rng.normal(size=(*heads, 21)), jnp.float32)  # Shorter than the sequences.
  if case.normalizer == "each_query":
    inputs["normalizer"] = jnp.asarray(rng.uniform(1, 3, (3, queries)), jnp.float32)
  key_time = np.cumsum(rng.integers(0, 10**5, (3, n)), axis=1).astype(np.int32)
  query_time = np.cumsum(rng.integers(0, 10**5, (3, queries)), axis=1).astype(np.int32)
  position = np.broadcast_to(np.arange(n, dtype=np.int32), (3, n))
  if case.gaps:
    position = np.sort(rng.permutation(4 * n)[:n])[None].astype(np.int32).repeat(3, axis=0) // 3
  times = {"query_time": query_time, "key_time": key_time}
  positions = {"query_position": position[:, n - queries :], "key_position": position}
  return inputs, mask, jax.tree.map(jnp.asarray, (times, positions))


def attend(case, implementation, inputs, mask, integers):
  """`segment_attention` of a case; the tables and the normalizer come as inputs, so that they have gradients."""
  (times, positions), bias = integers, {}
  if "time" in case.tables:
    bias |= {"time_table": inputs["time_table"], **times}
  if "position" in case.tables:
    bias |= {"position_table": inputs["position_table"], **positions}
  normalizer = {"none": None, "number": 40.0, "each_query": inputs.get("normalizer")}[case.normalizer]
  return segment_attention(
    inputs["q"], inputs["k"], inputs["v"], mask, activation=case.activation, scale=case.scale, normalizer=normalizer,
    bias=RelativeBias(**bias) if bias else None, implementation=implementation, interpret=implementation == "tpu",
    block_sizes=_block_sizes(case.blocks, implementation),
  )  # fmt: skip


def _block_sizes(blocks, implementation):
  if not blocks or implementation in ("reference", "dense"):
    return None
  return (tpu.BlockSizes if implementation == "tpu" else BlockSizes)(*blocks)


# The grid compiles far longer than it computes.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK_COMPILATION)
def output_and_gradients(case, implementation, inputs, mask, integers):
  """The output, and the gradients of all inputs for one fixed direction."""

  def loss(inputs):
    out = attend(case, implementation, inputs, mask, integers)
    direction = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    return (out.astype(jnp.float32) * direction).sum(), out

  (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(inputs)
  return {"out": out, **gradients}


def assert_close(actual, expected, tolerance):
  """Equal up to `tolerance` times the largest expected number of each array."""
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    one, other = np.asarray(actual[name], np.float32), np.asarray(value, np.float32)
    assert actual[name].dtype == value.dtype
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(np.abs(other).max(), 1e-6), err_msg=name)
