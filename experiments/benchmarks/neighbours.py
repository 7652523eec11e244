"""Times the operations around attention: the gate of an HSTU layer, and the softmax loss over all items.

    python -m experiments.benchmarks.neighbours --workloads='hstu_*'
    python -m experiments.benchmarks.neighbours --smoke

Prints one JSON line per workload and variant, and a table at the end; all times are forward and backward. Results are
checked against the first variant; a wrong output or gradient gets the error instead of a time, and the program exits
with status 1.

hstu_*: one HSTU layer. "library": layer norm of the attention output, multiplication by u and dropout, as in the
library. "fused": these in one function whose gradient rule saves only the attention output and u, and recomputes the
rest. "without": no gate; the attention output is the input of the output projection.

softmax_*: the loss of T tokens over V items. "dense": `log_softmax` of all scores. "checkpoint": a scan over chunks of
items with rematerialization. "library": `item_losses.full_softmax`, whose gradient rule saves the log-sum-exp.
"""

from __future__ import annotations

import fnmatch
import functools
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from experiments.benchmarks.attention import WrongResultError, check
from experiments.benchmarks.records import publish
from jaxrec import parallel
from jaxrec.cli.text_table import text_table
from jaxrec.layers.hstu import gate, split_uvqk
from jaxrec.layers.norm import layer_norm
from jaxrec.objectives import item_losses
from pallas_kernels import IntervalMask, segment_attention

FLAGS = flags.FLAGS
TOLERANCE = 2e-4  # relative to the largest value of each expected array
DROP = 51  # elements dropped out of 256


@dataclass(frozen=True)
class Layer:
  """Sizes of an HSTU layer: `batch` rows of `length` tokens, `heads` heads of width `width`."""

  batch: int
  length: int
  heads: int
  width: int


@dataclass(frozen=True)
class Catalogue:
  """Sizes of a softmax loss: `tokens` queries of width `width` over `items` items."""

  tokens: int
  items: int
  width: int = 64


WORKLOADS = {
  "hstu_256": Layer(57, 256, 2, 25),
  "hstu_1024": Layer(8, 1024, 4, 64),
  "softmax_2048_4k": Catalogue(2048, 4_000),
  "softmax_2048_30k": Catalogue(2048, 30_000),
  "softmax_4096_100k": Catalogue(4096, 100_000),
}
SMALL = {"hstu": Layer(2, 32, 2, 8), "softmax": Catalogue(32, 100, 8)}


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its records and a table."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  chosen = {name: w for name, w in WORKLOADS.items() if any(fnmatch.fnmatchcase(name, p) for p in FLAGS.workloads)}
  if not chosen:
    sys.exit(f"--workloads={','.join(FLAGS.workloads)} names none of: {', '.join(WORKLOADS)}")
  if FLAGS.smoke:
    chosen = {name: SMALL[name.split("_")[0]] for name in chosen}
  records = []
  for record in measure(chosen, 2 if FLAGS.smoke else FLAGS.repetitions):
    records.append(record)
    publish(record, FLAGS.out)
  print(table(records))
  if any("wrong" in record for record in records):
    sys.exit(1)


def measure(chosen: dict[str, Layer | Catalogue], repetitions: int) -> Iterator[dict[str, Any]]:
  """Yields one record per workload and variant; the variants of a workload are interleaved."""
  about = parallel.machine()
  for name, workload in chosen.items():
    inputs, functions = (_layers if isinstance(workload, Layer) else _softmaxes)(workload)
    programs = {variant: jax.jit(_with_gradients(f)).lower(inputs).compile() for variant, f in functions.items()}
    results = {variant: program(inputs) for variant, program in programs.items()}
    expected = results[next(iter(programs))]
    times = _times(programs, inputs, repetitions)
    for variant, program in programs.items():
      record = {"benchmark": "neighbours", "workload": name, **asdict(workload), "variant": variant}
      try:
        difference = 0.0 if variant == "without" else check(results[variant], expected, TOLERANCE)
      except WrongResultError as error:
        yield record | {"wrong": str(error)} | about
        continue
      yield (
        record
        | {
          "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
          "difference": float(f"{difference:.2g}"),
          "median_ms": round(1e3 * statistics.median(times[variant]), 3),
          "least_ms": round(1e3 * min(times[variant]), 3),
          "most_ms": round(1e3 * max(times[variant]), 3),
          "repetitions": repetitions,
        }
        | about
      )


def _with_gradients(function):
  def run(inputs):
    out, vjp = jax.vjp(function, inputs)
    return {"out": out, **vjp(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))[0]}

  return run


def _times(programs, inputs, repetitions):
  times = {variant: [] for variant in programs}
  for _ in range(repetitions):
    for variant, program in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program(inputs))
      times[variant].append(time.perf_counter() - start)
  return times


def _layers(w: Layer):
  """Returns the inputs of an HSTU layer, and its variants by name."""
  keys = jax.random.split(jax.random.key(0), 3)
  model = w.heads * w.width
  shapes = {"x": (w.batch, w.length, model), "uvqk": (model, 4 * model), "output": (model, model)}
  scale = {"x": 1.0, "uvqk": model**-0.5, "output": model**-0.5}
  arrays = {name: scale[name] * jax.random.normal(key, shapes[name]) for key, name in zip(keys, shapes, strict=True)}
  mask = IntervalMask.causal(jnp.ones((w.batch, w.length), jnp.int32))
  gates = {"library": _unfused_gate, "fused": _fused_gate, "without": lambda u, attended, key: attended}
  return arrays, {name: functools.partial(_layer, w, mask, function) for name, function in gates.items()}


def _layer(w, mask, gate_function, arrays):
  x = arrays["x"]
  projected = jax.nn.silu(layer_norm(x) @ arrays["uvqk"])
  u, v, q, k = split_uvqk(projected, w.heads, w.width, w.width)
  attended = segment_attention(q, k, v, mask, normalizer=w.length, implementation="xla")
  y = gate_function(u, attended.reshape(u.shape), jax.random.key(1))  # [B, N, H * E]
  return x + y @ arrays["output"]


def _drop(y, key):
  """Applies dropout as `jaxrec.layers.item_embedding.dropout` does."""
  keep = jax.random.bits(key, y.shape, jnp.uint8) >= DROP
  return jnp.where(keep, y * (256 / (256 - DROP)), 0)


def _unfused_gate(u, attended, key):
  return _drop(gate(u, layer_norm(attended), concat_ua=False), key)


@jax.custom_vjp
def _fused_gate(u, attended, key):
  return _unfused_gate(u, attended, key)


def _fused_backward(residuals, d_y):
  u, attended, key = residuals
  d_y = _drop(d_y, key)
  centred = attended - attended.mean(axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-6)
  normalized, d_normalized = centred * inverse, d_y * u
  projection = (d_normalized * normalized).mean(axis=-1, keepdims=True)
  d_attended = inverse * (d_normalized - d_normalized.mean(axis=-1, keepdims=True) - normalized * projection)
  return d_y * normalized, d_attended, None


_fused_gate.defvjp(lambda u, attended, key: (_fused_gate(u, attended, key), (u, attended, key)), _fused_backward)


def _softmaxes(w: Catalogue):
  """Returns the inputs of the loss, and its variants by name."""
  keys = jax.random.split(jax.random.key(0), 3)
  arrays = {"query": jax.random.normal(keys[0], (w.tokens, w.width))}
  arrays["items"] = jax.random.normal(keys[1], (w.items + 1, w.width))
  target = jax.random.randint(keys[2], (w.tokens,), 1, w.items + 1)
  variants = {"dense": _dense_softmax, "checkpoint": _checkpoint_softmax, "library": item_losses.full_softmax}
  return arrays, {
    name: lambda x, f=f: f(x["query"], x["items"], target, temperature=8.0) for name, f in variants.items()
  }


def _dense_softmax(query, items, target, temperature):
  log_weight = jax.nn.log_softmax(query @ items[1:].T / temperature)  # [T, V]
  return -jnp.take_along_axis(log_weight, target[:, None] - 1, axis=1)[:, 0]


def _checkpoint_softmax(query, items, target, temperature, chunk_size=4096):
  num_items = items.shape[0] - 1
  chunk_size = min(chunk_size, num_items)
  table = jnp.pad(items[1:], ((0, -num_items % chunk_size), (0, 0))).reshape(-1, chunk_size, items.shape[1])
  is_item = (jnp.arange(table.shape[0] * chunk_size) < num_items).reshape(-1, chunk_size)

  @jax.checkpoint
  def add_chunk(log_sum, chunk):
    vectors, real = chunk
    scores = jnp.where(real, query @ vectors.T / temperature, -jnp.inf)  # [T, chunk]
    return jnp.logaddexp(log_sum, jax.nn.logsumexp(scores, axis=-1)), None

  log_sum, _ = jax.lax.scan(add_chunk, jnp.full(query.shape[:1], -jnp.inf), (table, is_item))
  return log_sum - (query * items[target]).sum(axis=-1) / temperature


def table(records: list[dict[str, Any]]) -> str:
  """Formats the records as a Markdown table; "ratio" is the speedup over the first variant of the workload."""
  rows = [["workload", "variant", "ms (least-most)", "temp. MiB", "ratio"]]
  first = {}
  for r in records:
    if "wrong" in r:
      rows.append([r["workload"], r["variant"], r["wrong"]])
      continue
    ratio = first.setdefault(r["workload"], r["median_ms"]) / r["median_ms"]
    times = f"{r['median_ms']:.1f} ({r['least_ms']:.1f}-{r['most_ms']:.1f})"
    rows.append([r["workload"], r["variant"], times, f"{r['temporary_bytes'] / 2**20:.1f}", f"{ratio:.2f}"])
  return text_table(rows, "-", markdown=True)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_list("workloads", ["*"], "Names of workloads, or patterns with *.", flag_values=values)
  flags.DEFINE_integer("repetitions", 7, "Timed repetitions.", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("smoke", False, "Small sizes, to check that everything runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
