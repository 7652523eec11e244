"""Times segment attention on named workloads, after checking its results against the definition.

    python -m experiments.benchmarks.attention --workloads='silu_1024,silu_4096*' --implementations=xla,reference
    python -m experiments.benchmarks.attention --smoke

Prints a JSON line for each workload and implementation, and a table at the end. An implementation whose output or
gradients are not those of the definition gets the error instead of a time, and the program exits with status 1. One
that cannot run a workload gets the reason. Live tiles are counted for each implementation that skips the others, even
for one that cannot run here: with its default block sizes, in the forward pass, for one head.

TFLOP/s are those of the useful work: with P pairs of a query and a key that it may attend to, over all rows and heads,
2 P (D + E) operations forward, and backward 2 P (3 D + 2 E): the scores a second time and the products for the
gradients of weights, values, queries and keys. Masked pairs and padding count nothing, for the dense forms too.
"""

from __future__ import annotations

import fnmatch
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.benchmarks import torch_attention
from experiments.benchmarks.records import publish
from jaxrec import parallel
from pallas_kernels import (
  IntervalMask,
  RelativeBias,
  count_live_tiles,
  permute,
  segment_attention,
  sort_by_segment,
  tpu,
  xla,
)

FLAGS = flags.FLAGS
IMPLEMENTATIONS = ("xla", "reference", "tpu", "gpu", "torch")
TOLERANCE = {"float32": 2e-4, "bfloat16": 3e-2}  # of the largest number of each expected array
MAX_DENSE_BYTES = 8 * 2**30
CHUNK = 2**25  # scores of the definition that are computed at a time


class WrongResultError(Exception):
  """What was computed is not what the definition says."""


@dataclass(frozen=True)
class Workload:
  """What is computed: `batch` rows of `length` tokens, `heads` heads of width D for q and k and E for v.

  domains: 0 for causal attention inside each sequence; C for causal attention inside each of C balanced domains whose
    events lie interleaved; sorting by domain and back is part of the time.
  sequences: how many sequences of different lengths are packed in a row; with more than one, padding fills its end.
  bias: "none", "time", "position" or "both".
  backward: whether the gradients of q, k, v and the tables of the bias are computed too.
  """

  length: int
  batch: int
  heads: int = 4
  width: int = 64
  value_width: int = 64
  activation: str = "silu"
  domains: int = 0
  sequences: int = 1
  bias: str = "none"
  dtype: str = "float32"
  backward: bool = True


def workloads() -> dict[str, Workload]:
  """Returns all workloads by name: mostly 8,192 tokens each, in rows of 1,024 to 16,384."""
  plain = {
    f"{activation}_{n}": Workload(n, max(1, 8192 // n), heads=4 if n < 8192 else 2, activation=activation)
    for activation in ("silu", "softmax")
    for n in (1024, 2048, 4096, 8192, 16384)
  }
  named = dict(plain)
  for name, workload in plain.items():
    named[f"{name}_forward"] = replace(workload, backward=False)
    named |= {f"{name}_domains{c}": replace(workload, domains=c) for c in (2, 4, 8, 16)}
    named |= {f"{name}_{bias}": replace(workload, bias=bias) for bias in ("time", "position", "both")}
    named[f"{name}_packed"] = replace(workload, sequences=8)
    for width in (64, 128):
      tokens = {"batch": max(1, 2**17 // workload.length), "width": width, "value_width": width}
      half = replace(workload, dtype="bfloat16", **tokens)
      named |= {f"{name}_bfloat16_d{width}": half, f"{name}_bfloat16_d{width}_forward": replace(half, backward=False)}
  rows = Workload(256, 57, heads=2, width=25, value_width=25, sequences=3, bias="both")
  named["ml1m_hstu_large"] = rows
  named["ml1m_hstu"] = replace(rows, length=512, batch=28, heads=1, width=50, value_width=50)
  return named


def small(workload: Workload) -> Workload:
  """The same kind of workload in a size for tests."""
  domains = min(workload.domains, 4)
  return replace(workload, length=96, batch=2, heads=2, width=8, value_width=8, domains=domains)


def main(argv: list[str]) -> None:
  """Measures and prints what the flags ask for."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  known = workloads()
  patterns = FLAGS.workloads
  chosen = {name: known[name] for pattern in patterns for name in known if fnmatch.fnmatchcase(name, pattern)}
  for pattern in patterns:
    if not fnmatch.filter(known, pattern):
      sys.exit(f"--workloads={pattern} names none of: {', '.join(known)}")
  if FLAGS.smoke:
    chosen = {name: small(workload) for name, workload in chosen.items()}
  records = []
  for record in measure(chosen, FLAGS.implementations, 2 if FLAGS.smoke else FLAGS.repetitions):
    records.append(record)
    publish(record, FLAGS.out)
  print(table(records))
  if any("wrong" in record for record in records):
    sys.exit(1)


def measure(chosen: dict[str, Workload], implementations: Iterable[str], repetitions: int) -> Iterator[dict[str, Any]]:
  """Yields a record for each workload and implementation: its times, or why there are none."""
  about = parallel.machine()
  for name, workload in chosen.items():
    problem = make_problem(workload)
    expected = compute(workload, reference_by_chunks, problem)
    for implementation in implementations:
      print(f"{name}: {implementation}", file=sys.stderr, flush=True)
      record = {"benchmark": "attention", "workload": name, **asdict(workload), "implementation": implementation}
      record |= live_tiles(workload, implementation, problem)
      try:
        record |= _measure_one(workload, implementation, problem, expected, repetitions)
      except WrongResultError as error:
        record["wrong"] = str(error)
      except NotImplementedError as error:
        record["skipped"] = str(error)
      yield record | about


def _measure_one(workload, implementation, problem, expected, repetitions):
  """Checks, then times."""
  if implementation == "torch":
    run, wait, arrays, about = torch_attention.prepare(workload, problem)
  else:
    run, wait, arrays, about = _prepare(workload, implementation, problem)
  difference = check(arrays(run()), expected, TOLERANCE[workload.dtype])
  times = _times(run, wait, repetitions)
  flops = useful_flops(workload, problem)
  return about | {
    "difference": float(f"{difference:.2g}"),
    "median_ms": round(1e3 * statistics.median(times), 3),
    "least_ms": round(1e3 * min(times), 3),
    "most_ms": round(1e3 * max(times), 3),
    "repetitions": repetitions,
    "tflops": float(f"{flops / statistics.median(times) / 1e12:.4g}"),
  }


def _prepare(workload, implementation, problem):
  """Compiles one of our own implementations; see `torch_attention.prepare` for what is returned."""
  dense = 4 * workload.batch * workload.heads * workload.length**2 * (6 if workload.backward else 2)
  if implementation == "reference" and dense > MAX_DENSE_BYTES:
    raise NotImplementedError(f"dense arrays of {dense / 2**30:.0f} GiB")
  if implementation in ("tpu", "gpu") and jax.default_backend() != implementation:
    raise NotImplementedError(f"there is no {implementation.upper()}; interpreted, kernels have no times")
  attention = functools.partial(segment_attention, implementation=implementation)
  compiled = jax.jit(functools.partial(compute, workload, attention)).lower(problem).compile()
  about = {"temporary_bytes": compiled.memory_analysis().temp_size_in_bytes}
  return functools.partial(compiled, problem), jax.block_until_ready, dict, about


def live_tiles(workload: Workload, implementation: str, problem: dict[str, jax.Array]) -> dict[str, Any]:
  """Returns the size and the number of the tiles that an implementation computes; nothing for one without tiles."""
  sizes = _tile_sizes(workload).get(implementation)
  if sizes is None:
    return {}
  mask = sorted_tokens(workload, problem)[1]
  return {"tile": "{}x{}".format(*sizes), "tiles": count_live_tiles(mask, workload.length, *sizes)}


def _tile_sizes(workload):
  """Queries and keys of a tile, by implementation."""
  from pallas_kernels import gpu  # Its packages take a second to import.
  from pallas_kernels.gpu.problem import ROWS

  length = workload.length
  on_xla, on_tpu = xla.default_block_sizes(length, length, workload.heads), tpu.default_block_sizes(length, length)
  on_gpu = gpu.default_block_sizes(workload.width, workload.value_width, workload.bias in ("time", "both"))
  return {
    "xla": (on_xla.query, on_xla.key),
    "tpu": (on_tpu.query, on_tpu.key),
    "gpu": (ROWS * on_gpu.consumers, on_gpu.forward_keys),
  }


def make_problem(workload: Workload) -> dict[str, jax.Array]:
  """Returns all inputs, at random: q, k, v, the direction of the gradients, tables, and integers of the tokens."""
  w, rng = workload, np.random.default_rng(0)
  tokens = (w.batch, w.length)
  widths = {"q": w.width, "k": w.width, "v": w.value_width, "direction": w.value_width}
  problem = {name: jnp.asarray(rng.normal(size=(*tokens, w.heads, d)), w.dtype) for name, d in widths.items()}
  problem["sequence_id"] = jnp.asarray(np.stack([_packed_row(w, rng) for _ in range(w.batch)]))
  turns = np.arange(w.length) % max(w.domains, 1) + 1
  problem["domain_id"] = jnp.asarray(np.stack([rng.permutation(turns) for _ in range(w.batch)]).astype(np.int32))
  problem["time"] = jnp.asarray(np.cumsum(rng.integers(0, 20_000, tokens), axis=1).astype(np.int32))
  problem["position"] = jnp.broadcast_to(jnp.arange(w.length, dtype=jnp.int32), tokens)
  if w.bias in ("time", "both"):
    problem["time_table"] = jnp.asarray(rng.normal(size=129), jnp.float32)
  if w.bias in ("position", "both"):
    problem["position_table"] = jnp.asarray(rng.normal(size=2 * w.length - 1), jnp.float32)
  return problem


def _packed_row(workload, rng) -> np.ndarray:
  """Sequence ids of a row, 1 2 3 ... and 0 for padding."""
  if workload.sequences == 1:
    return np.ones(workload.length, np.int32)
  cuts = np.sort(rng.choice(np.arange(1, workload.length), workload.sequences, replace=False))
  ids = np.searchsorted(cuts, np.arange(workload.length), side="right") + 1
  return np.where(ids > workload.sequences, 0, ids).astype(np.int32)


def compute(workload: Workload, attention: Callable, problem: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Returns the output of `attention` on the problem and, if the workload says so, the gradients of its inputs."""
  names = [name for name in ("q", "k", "v", "time_table", "position_table") if name in problem]
  inputs = {name: problem[name] for name in names}

  def attend(inputs):
    return _attend(workload, attention, problem | inputs)

  if not workload.backward:
    return {"out": attend(inputs)}
  out, pull_back = jax.vjp(attend, inputs)
  return {"out": out, **pull_back(problem["direction"])[0]}


def _attend(workload, attention, problem):
  """Sorts by domain where there are some, attends, and sorts back."""
  tokens, mask, back = sorted_tokens(workload, problem)
  bias = {}
  if "time_table" in problem:
    bias |= {"time_table": problem["time_table"], "query_time": tokens["time"], "key_time": tokens["time"]}
  if "position_table" in problem:
    places = {"query_position": tokens["position"], "key_position": tokens["position"]}
    bias |= {"position_table": problem["position_table"], **places}
  out = attention(
    tokens["q"], tokens["k"], tokens["v"], mask, activation=workload.activation, scale=workload.width**-0.5,
    normalizer=float(workload.length) if workload.activation == "silu" else None,
    bias=RelativeBias(**bias) if bias else None,
  )  # fmt: skip
  return out if back is None else permute(out, *back)


def sorted_tokens(workload: Workload, problem: dict[str, jax.Array]):
  """Returns what belongs to tokens, sorted by domain where there are some; the mask; and the permutation back, or
  None."""
  tokens = {name: problem[name] for name in ("q", "k", "v", "sequence_id", "domain_id", "time", "position")}
  if not workload.domains:
    return tokens, IntervalMask.causal(tokens["sequence_id"]), None
  order, inverse = sort_by_segment(tokens["sequence_id"], tokens["domain_id"])
  tokens = {name: permute(value, order, inverse) for name, value in tokens.items()}
  return tokens, IntervalMask.intra_domain(tokens["sequence_id"], tokens["domain_id"]), (inverse, order)


def reference_by_chunks(q, k, v, mask: IntervalMask, *, normalizer=None, bias: RelativeBias | None = None, **options):
  """The definition for some queries at a time, so that it fits in memory for rows of any length."""
  most = max(1, CHUNK // (q.shape[0] * q.shape[2] * k.shape[1]))
  count = max(divisor for divisor in range(1, most + 1) if q.shape[1] % divisor == 0)
  bias = bias or RelativeBias()
  of_queries = (q, mask.queries(0, q.shape[1]), bias.query_time, bias.query_position)
  chunks = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, count, *x.shape[2:]), 1, 0), of_queries)

  @jax.checkpoint
  def attend(chunk):
    q, mask, time, position = chunk
    of_chunk = replace(bias, query_time=time, query_position=position)
    return segment_attention(q, k, v, mask, normalizer=normalizer, bias=of_chunk, implementation="reference", **options)

  out = jax.lax.map(attend, chunks)  # [N / count, B, count, H, E]
  return jnp.moveaxis(out, 0, 1).reshape(*q.shape[:3], -1)


def check(actual: dict[str, Any], expected: dict[str, Any], tolerance: float) -> float:
  """Returns the largest difference of any array, as a part of the largest expected number of that array.

  Raises:
    WrongResultError: if it exceeds `tolerance`, or an array is missing.
  """
  if actual.keys() != expected.keys():
    raise WrongResultError(f"got {sorted(actual)}, expected {sorted(expected)}")
  worst = 0.0
  for name, value in expected.items():
    one, other = np.asarray(actual[name], np.float32), np.asarray(value, np.float32)
    difference = np.abs(one - other).max() / np.abs(other).max()
    if not difference <= tolerance:
      raise WrongResultError(f"{name} differs by {difference:.2g} of its largest number, {tolerance} is allowed")
    worst = max(worst, float(difference))
  return worst


def _times(run, wait, repetitions) -> list[float]:
  """Seconds of a computation, `repetitions` times; where an accelerator is quick, each the mean of several in a row."""
  start = time.perf_counter()
  wait(run())
  once = time.perf_counter() - start
  in_a_row = 1 if jax.default_backend() == "cpu" else max(1, min(100, int(0.05 / once)))
  times = []
  for _ in range(repetitions):
    start = time.perf_counter()
    for _ in range(in_a_row):
      results = run()
    wait(results)
    times.append((time.perf_counter() - start) / in_a_row)
  return times


def useful_flops(workload: Workload, problem: dict[str, jax.Array]) -> float:
  """Operations that the live pairs need; the formula is at the top of this file."""
  mask = sorted_tokens(workload, problem)[1]
  in_a, in_b = (jnp.maximum(end - start, 0) for start, end in ((mask.start_a, mask.end_a), (mask.start_b, mask.end_b)))
  pairs = float(in_a.sum() + in_b.sum()) * workload.heads
  d, e = workload.width, workload.value_width
  return 2 * pairs * (d + e + (3 * d + 2 * e if workload.backward else 0))


def table(records: list[dict[str, Any]]) -> str:
  """Returns the records as a Markdown table.

  Columns "dense" and "causal": the time of the reference, and of the same workload without domains, divided by this
  one's.
  """
  times = {(r["workload"], r["implementation"]): r["median_ms"] for r in records if "median_ms" in r}
  lines = ["| workload | implementation | ms (least-most) | temp. MiB | tiles | TFLOP/s | dense | causal |"]
  lines.append("|---" * 8 + "|")
  for r in records:
    if "median_ms" not in r:
      reason = r.get("wrong") or r["skipped"]
      lines.append(f"| {r['workload']} | {r['implementation']} | {reason} | | {r.get('tiles', '')} | | | |")
      continue
    memory = "" if "temporary_bytes" not in r else f"{r['temporary_bytes'] / 2**20:.1f}"
    dense = times.get((r["workload"], "reference"))
    causal = times.get((r["workload"].split("_domains")[0], r["implementation"])) if r["domains"] else None
    ratios = " | ".join("" if x is None else f"{x / r['median_ms']:.2f}" for x in (dense, causal))
    spread = f"{r['median_ms']:.1f} ({r['least_ms']:.1f}-{r['most_ms']:.1f})"
    start = f"| {r['workload']} | {r['implementation']} | {spread} | {memory} | {r.get('tiles', '')} "
    lines.append(start + f"| {r['tflops']:.3g} | {ratios} |")
  return "\n".join(lines)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program; not on import, as other programs have flags of the same names."""
  default = ["silu_1024", "silu_4096", "silu_4096_domains*", "softmax_1024", "softmax_4096"]
  names_help = "Names of workloads, or patterns with * for them."
  flags.DEFINE_list("workloads", default, names_help, flag_values=values)
  implementations_help = f"Some of {', '.join(IMPLEMENTATIONS)}."
  flags.DEFINE_list("implementations", ["xla", "reference"], implementations_help, flag_values=values)
  flags.register_validator(
    "implementations",
    lambda names: set(names) <= set(IMPLEMENTATIONS),
    message=f"--implementations knows {', '.join(IMPLEMENTATIONS)}",
    flag_values=values,
  )
  repetitions_help = "Measurements of each, after one that warms up."
  flags.DEFINE_integer("repetitions", 7, repetitions_help, lower_bound=1, flag_values=values)
  flags.DEFINE_bool("smoke", False, "Small sizes, to see that all runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to which the JSON lines are appended as well.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
