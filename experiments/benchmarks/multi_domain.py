"""Times forward and backward of encoders with intra-domain attention, compared with attention over all events.

    python -m experiments.benchmarks.multi_domain --out=experiments/results/multi_domain_cpu.jsonl

Encoders: "full" is HSTU with the target domain as input, "intra" attends inside each domain only, "intra_tape_ddsr" is
the complete `MultiDomainHSTU`. The input for each length N and number of domains C is one row of N events with equally
many events per domain in random order; attention has time and position bias. The variants of a length are interleaved.
`pairs` is the number of query-key pairs of a layer, the sum over domains of n_d (n_d + 1) / 2; `tiles_tpu` is the
number of tiles in the schedule of the TPU kernel.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.benchmarks.records import publish
from jaxrec import parallel
from jaxrec.batches import SequenceBatch
from jaxrec.cli.text_table import text_table
from jaxrec.layers.intra_domain import intra_domain_context
from jaxrec.models import build
from pallas_kernels import IntervalMask, count_live_tiles, tpu

LENGTHS, DOMAINS = (512, 1024, 2048, 4096, 8192), (2, 4, 8, 16)
ENCODERS = {
  "full": {"name": "hstu", "target_domain": True},
  "intra": {"name": "multi_domain_hstu", "tape": False, "states": "none"},
  "intra_tape_ddsr": {"name": "multi_domain_hstu"},
}
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its records and a table."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  lengths, domains = ((32,), (2,)) if FLAGS.smoke else (map(int, FLAGS.lengths), [int(c) for c in FLAGS.domains])
  records = []
  for length in lengths:
    for record in measure(length, domains, FLAGS.width, FLAGS.repetitions):
      records.append(record)
      publish(record, FLAGS.out)
  print(table(records))


def measure(length: int, domains: Sequence[int], width: int, repetitions: int) -> Iterator[dict[str, Any]]:
  """Yields one record for full attention, and one per number of domains for each of the other two encoders.

  Args:
    length: number of events N.
    domains: numbers of domains C.
    width: model width M; four heads of width M / 4.
    repetitions: timed rounds; compilation is not timed.
  """
  cases = [("full", max(domains)), *((name, c) for c in domains for name in ("intra", "intra_tape_ddsr"))]
  programs = {case: _program(*case, length, width) for case in cases}
  times: dict[tuple, list[float]] = {case: [] for case in cases}
  for _ in range(repetitions):
    for case, (run, inputs, _) in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(run(*inputs))
      times[case].append(1e3 * (time.perf_counter() - start))
  full = statistics.median(times["full", max(domains)])
  for (name, c), (run, _, count) in programs.items():
    ms = times[name, c]
    median = statistics.median(ms)
    yield {
      "benchmark": "multi_domain", "encoder": name, "length": length, "width": width,
      "domains": 1 if name == "full" else c,
      "median_ms": round(median, 2), "least_ms": round(min(ms), 2), "most_ms": round(max(ms), 2),
      "full_by_this": round(full / median, 3), "temporary_bytes": run.memory_analysis().temp_size_in_bytes,
      **count, "repetitions": repetitions, **parallel.machine(),
    }  # fmt: skip


def random_row(length: int, num_domains: int, seed: int = 0) -> SequenceBatch:
  """Returns a batch of one user with `length` events, equally many per domain in random order.

  >>> np.bincount(random_row(8, 2).domain_id[0]).tolist()
  [0, 4, 4]
  """
  rng = np.random.default_rng(seed)
  domain = rng.permutation(np.arange(length) % num_domains + 1)
  item, seconds = rng.integers(1, 1000, length), np.cumsum(rng.integers(1, 10**4, length))
  fields = {
    "item_id": item, "domain_id": domain, "timestamp": seconds, "sequence_id": np.ones(length),
    "position": np.arange(length), "target_item": np.roll(item, -1), "target_domain": np.roll(domain, -1),
    "target_time": seconds,
  }  # fmt: skip
  fields = {name: jnp.asarray(value, jnp.int32)[None] for name, value in fields.items()}
  return SequenceBatch(**fields, target_weight=jnp.ones((1, length)))


def _program(name, num_domains, length, width):
  """Returns the compiled gradient of an encoder by its parameters, its arguments, and the work of attention."""
  batch = random_row(length, num_domains)
  config = ENCODERS[name] | dict(
    width=width, num_layers=2, num_heads=4, head_width=width // 4, value_width=width // 4, max_positions=length,
    attention_length=length,
  )  # fmt: skip
  model = build(config, num_items=1000, num_domains=num_domains)
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  direction = jax.random.normal(jax.random.key(1), (1, length, width))

  def loss(params, batch):
    return (model.apply({"params": params}, batch) * direction).sum()

  run = jax.jit(jax.grad(loss)).lower(params, batch).compile()
  return run, (params, batch), _count(name, batch, num_domains)


def _count(name, batch, num_domains):
  mask = IntervalMask.causal(batch.sequence_id)
  mask = mask if name == "full" else intra_domain_context(batch, num_domains).mask
  sizes = tpu.default_block_sizes(*2 * (batch.item_id.shape[1],))
  return {
    "pairs": int((mask.end_a - mask.start_a).sum()),
    "tile_tpu": f"{sizes.query}x{sizes.key}",
    "tiles_tpu": count_live_tiles(mask, batch.item_id.shape[1], sizes.query, sizes.key),
  }


def table(records: list[dict[str, Any]]) -> str:
  """Formats the records as a Markdown table; "full / this" is the speedup over full attention."""
  rows = [["N", "encoder", "C", "ms (least-most)", "full / this", "temp. MiB", "pairs", "TPU tiles"]]
  for r in records:
    times = f"{r['median_ms']:.1f} ({r['least_ms']:.1f}-{r['most_ms']:.1f})"
    ratio, memory = f"{r['full_by_this']:.2f}", f"{r['temporary_bytes'] / 2**20:.1f}"
    case, work = (r["length"], r["encoder"], r["domains"]), (r["pairs"], r["tiles_tpu"])
    rows.append([*map(str, case), times, ratio, memory, *map(str, work)])
  return text_table(rows, "-", markdown=True)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_list("lengths", [str(n) for n in LENGTHS], "Numbers of events N.", flag_values=values)
  flags.DEFINE_list("domains", [str(c) for c in DOMAINS], "Numbers of domains C.", flag_values=values)
  flags.DEFINE_integer("width", 128, "Model width; four heads.", lower_bound=4, flag_values=values)
  flags.DEFINE_integer("repetitions", 7, "Timed rounds, after compilation.", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("smoke", False, "One small size, to check that everything runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
