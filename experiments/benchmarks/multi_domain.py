"""What attention inside a domain saves: forward and backward of an encoder, against attention among all events.

    python -m experiments.benchmarks.multi_domain --out=experiments/results/multi_domain_cpu.jsonl

Encoders: "full" is HSTU told the domain that is asked for, "intra" reads inside a domain only, "intra_tape_ddsr" is the
whole `MultiDomainHSTU`. For each length N and number of domains C, one row of N events whose domains are drawn anew and
equally often, with time and position bias. The variants of a length are timed in turns. `pairs` is what attention of a
layer reads, the sum over domains of n_d (n_d + 1) / 2; `tiles_tpu` the tiles of the TPU kernel's schedule.
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

from experiments.benchmarks.records import machine, publish
from jaxrec.batches import SequenceBatch
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
  """Measures and prints."""
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
  """Yields a record for full attention and for the two other encoders with each number of domains.

  Args:
    length: N.
    domains: values of C.
    width: M; four heads of M / 4.
    repetitions: timed rounds, after one that compiles.
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
      **count, "repetitions": repetitions, **machine(),
    }  # fmt: skip


def random_row(length: int, num_domains: int, seed: int = 0) -> SequenceBatch:
  """One user of `length` events in equally many of each domain, in random order.

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
  """The compiled gradient of an encoder in its parameters, its arguments, and what attention has to do."""
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
  """Returns the records as a Markdown table; "full / this" is by how much less time it takes than full attention."""
  lines = ["| N | encoder | C | ms (least-most) | full / this | temp. MiB | pairs | TPU tiles |", "|---" * 8 + "|"]
  for r in records:
    spread = f"{r['median_ms']:.1f} ({r['least_ms']:.1f}-{r['most_ms']:.1f})"
    lines.append(
      f"| {r['length']} | {r['encoder']} | {r['domains']} | {spread}"
      f" | {r['full_by_this']:.2f} | {r['temporary_bytes'] / 2**20:.1f} | {r['pairs']} | {r['tiles_tpu']} |"
    )
  return "\n".join(lines)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program; not on import, as other programs have flags of the same names."""
  flags.DEFINE_list("lengths", [str(n) for n in LENGTHS], "Values of N.", flag_values=values)
  flags.DEFINE_list("domains", [str(c) for c in DOMAINS], "Values of C.", flag_values=values)
  flags.DEFINE_integer("width", 128, "Of the model; four heads.", lower_bound=4, flag_values=values)
  flags.DEFINE_integer("repetitions", 7, "Rounds, after one that compiles.", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("smoke", False, "One small size, to see that it runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to which JSON lines are appended.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
