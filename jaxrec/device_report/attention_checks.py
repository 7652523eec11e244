"""Is attention right on this device? Outputs and gradients of each implementation against the dense reference."""

from __future__ import annotations

import functools
import itertools
import secrets
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import IntervalMask, RelativeBias, segment_attention

MASKS = {
  "causal": lambda ids: IntervalMask.causal(ids),
  "full": lambda ids: IntervalMask.full(ids),
  "window": lambda ids: IntervalMask.causal(ids).limited(37),
  "domains": lambda ids: IntervalMask.causal(_domains(ids)),
  "targets": lambda ids: IntervalMask.hstu(
    (ids != 0).sum(1), ids.shape[1], num_targets=(ids != 0).sum(1) // 4, max_attention_length=51, contextual_length=3
  ),
  "both_ways": lambda ids: IntervalMask.hstu((ids != 0).sum(1), ids.shape[1], max_attention_length=63, causal=False),
}
# Relative error allowed, |actual - expected| / |expected|: three roundings of bfloat16 (2^-8 each), float16 (2^-11) or
# float32 (2^-24), the last times the square root of what is summed.
TOLERANCE = {"bfloat16": 1.2e-2, "float16": 1.5e-3, "float32": 1e-5}


@dataclass(frozen=True)
class Case:
  """A problem; one program serves all masks.

  tables: which of "time" and "position" the bias has. per_head: whether each head has tables of its own.
  """

  length: int = 300
  width: int = 64
  value_width: int = 64
  heads: int = 2
  rows: int = 3
  activation: str = "silu"
  tables: str = ""
  per_head: bool = False
  dtype: str = "bfloat16"

  def __str__(self):
    widths = f"d{self.width}" + (f"/{self.value_width}" if self.value_width != self.width else "")
    bias = self.tables.replace(" ", "+") or "no bias"
    return f"{self.activation} {self.dtype} n{self.length} {widths} {bias}{' per head' if self.per_head else ''}"


def cases(quick: bool) -> list[Case]:
  """The problems: every activation, dtype and kind of bias; head widths that the matrix units do and do not like."""
  both = "time position"
  some = [
    Case(activation=a, dtype=d, tables=t, per_head=bool(t))
    for a, d, t in itertools.product(("silu", "softmax"), ("bfloat16", "float32"), ("", both))
  ]
  some += [
    Case(width=width, value_width=width, activation=activation, tables=both)
    for width, activation in ((25, "silu"), (32, "softmax"), (50, "silu"), (128, "silu"), (128, "softmax"))
  ]
  some += [Case(width=50, value_width=50, dtype="float32", tables=both), Case(length=257, width=128, value_width=128)]
  some += [Case(width=25, value_width=50, activation="softmax", length=129, tables="time")]
  if quick:
    return some
  return some + [
    Case(width=width, value_width=value_width, activation=activation, tables=tables, length=length)
    for length, width, value_width, activation, tables in (
      (1000, 64, 64, "silu", "position"), (1000, 128, 128, "softmax", "time"), (77, 25, 25, "silu", ""),
      (520, 256, 256, "silu", ""), (520, 192, 64, "softmax", both), (1, 64, 64, "silu", both),
      (2048, 128, 128, "silu", both),
    )
  ]  # fmt: skip


def check(case: Case, implementation: str, interpret: bool = False) -> dict[str, Any]:
  """Returns the largest relative error of the output and of each gradient over all masks, from fresh random inputs.

  Raises:
    AssertionError: an error is over the tolerance, or a result is not finite; names mask and array.
    NotImplementedError: what the implementation cannot compute.
  """
  seed = secrets.randbits(32)
  options = {"implementation": implementation, "interpret": interpret}
  with jax.default_matmul_precision("highest"):
    actual = jax.jit(functools.partial(_output_and_gradients, case, options))
    expected = jax.jit(functools.partial(_output_and_gradients, case, {"implementation": "reference"}))
    worst: dict[str, float] = {}
    wrong = []
    for name, make_mask in MASKS.items():
      inputs, ids, integers = problem(case, seed)
      arguments = inputs, make_mask(ids), integers
      found, right = actual(*arguments), expected(jax.tree.map(_widened, inputs), *arguments[1:])
      for array, error in relative_errors(found, right).items():
        worst[array] = max(worst.get(array, 0.0), error)
        if not error <= TOLERANCE[case.dtype]:
          wrong.append(f"{name} {array} {error:.2g}")
  if wrong:
    raise AssertionError(f"relative errors over {TOLERANCE[case.dtype]} (seed {seed}): {', '.join(wrong)}")
  return {"implementation": implementation, "errors": {name: float(f"{x:.2g}") for name, x in worst.items()}}


def relative_errors(actual: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
  """`|actual - expected| / |expected|` of each array; an expected array of zeros asks for zeros."""
  errors = {}
  for name, value in expected.items():
    one, other = np.asarray(actual[name], np.float64), np.asarray(value, np.float64)
    size = np.linalg.norm(other)
    difference = np.linalg.norm(one - other)
    errors[name] = float(difference / size if size else difference)
  return errors


def problem(case: Case, seed: int) -> tuple[dict[str, jax.Array], jax.Array, dict[str, jax.Array]]:
  """Differentiable inputs, sequence ids (a packed row with padding, full ones, an empty one), times and positions."""
  rng = np.random.default_rng(seed)
  n, rows = case.length, case.rows
  ids = np.ones((rows, n), np.int32)
  ids[0, n // 3 :], ids[0, 4 * n // 5 + 1 :] = 2, 0
  ids[-1] = 0
  widths = {"q": case.width, "k": case.width, "v": case.value_width, "direction": case.value_width}
  inputs = {x: jnp.asarray(rng.normal(size=(rows, n, case.heads, width)), case.dtype) for x, width in widths.items()}
  heads = (case.heads,) if case.per_head else ()
  if "time" in case.tables:
    inputs["time_table"] = jnp.asarray(rng.normal(size=(*heads, 129)), jnp.float32)
  if "position" in case.tables:
    entries = 101 if case.per_head else 2 * n - 1  # Too few for all differences, and one for each.
    inputs["position_table"] = jnp.asarray(rng.normal(size=(*heads, entries)), jnp.float32)
  times = np.cumsum(rng.integers(0, 10**5, (rows, n)), axis=1).astype(np.int32)
  positions = np.broadcast_to(np.arange(n, dtype=np.int32), (rows, n))
  integers = {"query_time": times + 5000, "key_time": times, "query_position": positions, "key_position": positions}
  return inputs, jnp.asarray(ids), jax.tree.map(jnp.asarray, integers)


def _output_and_gradients(case, options, inputs, mask, integers):
  direction = inputs["direction"]
  inputs = {name: x for name, x in inputs.items() if name != "direction"}

  def attend(inputs):
    bias = {name: inputs[name] for name in ("time_table", "position_table") if name in inputs}
    bias |= {name: x for name, x in integers.items() if f"{name.split('_')[1]}_table" in bias}
    return segment_attention(
      inputs["q"], inputs["k"], inputs["v"], mask, activation=case.activation, scale=case.width**-0.5,
      bias=RelativeBias(**bias) if bias else None, **options,
    )  # fmt: skip

  out, pull_back = jax.vjp(attend, inputs)
  return {"out": out, **{f"d_{name}": x for name, x in pull_back(direction)[0].items()}}


def _domains(ids):
  """Runs of 45 tokens as segments of their own."""
  return jnp.where(ids == 0, 0, ids + 2 * (jnp.arange(ids.shape[1]) // 45))


def _widened(x):
  return x.astype(jnp.float32)
