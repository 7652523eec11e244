"""Times the training step of each encoder with and without AutoCDSR on random events, interleaving the variants.

    python -m experiments.benchmarks.cross_domain_step --config_file=abxi --steps=20

The settings are those of experiments/configs/abxi.py or kuairand.py. The events are random with the sizes of these data
sets, so no data is needed. Every variant runs one step per round, so that other load on the machine affects all
variants equally. Prints JSON lines: `median_ms` is the median over the rounds; `ratio` is the median over the rounds of
the variant's time divided by the time of "base" in the same round.

Source: AutoCDSR, arXiv 2505.21811, Table 4, reports 9% more time for AutoCDSR and 20% for AutoCDSR+ (BERT4Rec).
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from experiments.benchmarks.records import publish
from experiments.benchmarks.training import Training
from experiments.configs import _cross_domain, abxi, kuairand
from jaxrec.data.prepared import PreparedData

FLAGS = flags.FLAGS

CONFIGS = {"abxi": abxi, "kuairand": kuairand}


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of the random data: users, items, events per user, and the fraction of items in each domain."""

  users: int
  items: int
  events: int
  domain_shares: tuple[float, ...]


# Measured on the data sets; enough users for two batches.
SIZES = {
  "abxi": Sizes(1024, 28_095, 24, (0.5, 0.5)),
  "kuairand": Sizes(128, 729_828, 600, (0.805, 0.133, 0.045, 0.01, 0.0065, 0.0003, 0.0002)),
}


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its records."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  for record in measure(FLAGS.config_file, FLAGS.encoders, FLAGS.variants, FLAGS.steps, FLAGS.smoke):
    publish(record, FLAGS.out)


def measure(
  config_file: str, encoders: Sequence[str], variants: Sequence[str], steps: int, smoke: bool = False
) -> Iterator[dict[str, Any]]:
  """Yields one record per variant and encoder; all variants of an encoder are timed together.

  Args:
    config_file: "abxi" or "kuairand".
    encoders: any of hstu, sasrec, bert4rec.
    variants: any of base, autocdsr, autocdsr_plus; without base there are no ratios.
    steps: timed rounds, after one that compiles.
    smoke: whether to use small sizes, to check that everything runs.
  """
  sizes = Sizes(8, 32, 8, SIZES[config_file].domain_shares[:2]) if smoke else SIZES[config_file]
  with tempfile.TemporaryDirectory() as folder:
    prepared = os.path.join(folder, "random")
    random_events(sizes).save(prepared)
    configs = {e: {v: config_of(config_file, f"{e}-{v}", prepared, smoke) for v in variants} for e in encoders}
    for encoder in encoders:
      trainings = {variant: Training.from_config(config) for variant, config in configs[encoder].items()}
      times = time_interleaved({variant: training.step for variant, training in trainings.items()}, steps)
      for variant, ms in times.items():
        about = {"benchmark": "cross_domain_step", "config_file": config_file, "encoder": encoder, "variant": variant}
        yield about | summary(ms, times.get("base")) | trainings[variant].describe()


def random_events(sizes: Sizes, seed: int = 0) -> PreparedData:
  """Returns training events of users with equally long histories; items and their domains are drawn independently.

  >>> random_events(Sizes(users=3, items=9, events=4, domain_shares=(0.5, 0.5))).offsets.tolist()
  [0, 4, 8, 12]
  """
  rng = np.random.default_rng(seed)
  item_domain = rng.choice(len(sizes.domain_shares), sizes.items + 1, p=_normalized(sizes.domain_shares)) + 1
  item_domain[0] = 0
  item = rng.integers(1, sizes.items + 1, sizes.users * sizes.events)
  return PreparedData.from_columns(
    item_id=item,
    domain_id=item_domain[item],
    offsets=sizes.events * np.arange(sizes.users + 1),
    timestamp=np.tile(3600 * np.arange(sizes.events), sizes.users),
    split=np.zeros(len(item), np.uint8),
    num_items=sizes.items,
    domain_names=[f"domain {d + 1}" for d in range(len(sizes.domain_shares))],
    item_domain=item_domain,
    source="random",
  )


def config_of(config_file: str, choice: str, prepared: str, smoke: bool = False) -> ConfigDict:
  """Returns the config of an encoder and a variant ("encoder-variant") on prepared data; small sizes with `smoke`."""
  config = CONFIGS[config_file].get_config(choice)
  config.data.prepared = prepared
  config.data.train_users = "all"  # No event is held out.
  if not smoke:
    return config
  config.data.max_length = config.data.row_length = 8
  config.train.batch_size = 4
  config.objective.num_negatives = 4
  config.model.update(width=4, num_layers=1, num_heads=1, max_positions=9)
  small = {"hidden": 4, "head_width": 4, "value_width": 4, "attention_length": 9, "bottleneck_stride": 4}
  config.model.update({name: value for name, value in small.items() if name in config.model})
  return config


def time_interleaved(steps: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, list[float]]:
  """Returns the milliseconds of each function in each round, after one call each that is not timed.

  The order is rotated every round, so that no function always runs after the same one.
  """
  for step in steps.values():
    jax.block_until_ready(step(0))
  times: dict[str, list[float]] = {name: [] for name in steps}
  names = list(steps)
  for i in range(rounds):
    first = i % len(names)
    for name in names[first:] + names[:first]:
      start = time.perf_counter()
      jax.block_until_ready(steps[name](i))
      times[name].append(1e3 * (time.perf_counter() - start))
  return times


def summary(ms: Sequence[float], base: Sequence[float] | None) -> dict[str, float | int | None]:
  """Returns median, mean and least time, the median over rounds of the ratio to `base`, and the ratio of the means.

  If the weights of the objectives are not solved in every step, the cost of a step is the mean, not the median.
  Without a base the ratios are None.

  >>> summary([3.0, 8.0, 31.0], [2.0, 4.0, 15.0])
  {'median_ms': 8.0, 'mean_ms': 14.0, 'least_ms': 3.0, 'ratio': 2.0, 'mean_ratio': 2.0, 'steps': 3}
  """
  ratios = {"ratio": None, "mean_ratio": None}
  if base is not None:
    median = statistics.median(a / b for a, b in zip(ms, base, strict=True))
    ratios = {"ratio": round(median, 4), "mean_ratio": round(sum(ms) / sum(base), 4)}
  times = {"median_ms": statistics.median(ms), "mean_ms": statistics.mean(ms), "least_ms": min(ms)}
  return {name: round(value, 2) for name, value in times.items()} | ratios | {"steps": len(ms)}


def _normalized(shares):
  return np.asarray(shares) / np.sum(shares)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_enum("config_file", "abxi", list(CONFIGS), "Config with the settings and sizes.", flag_values=values)
  encoders, variants = _cross_domain.ENCODERS, _cross_domain.VARIANTS
  flags.DEFINE_multi_enum("encoders", list(encoders), encoders, "Encoders to time; repeatable.", flag_values=values)
  default = ["base", *_cross_domain.AUTOCDSR]
  flags.DEFINE_multi_enum("variants", default, variants, "Variants to time; repeatable.", flag_values=values)
  steps_help = "Timed rounds, after one that compiles."
  flags.DEFINE_integer("steps", 20, steps_help, lower_bound=1, flag_values=values)
  flags.DEFINE_bool("smoke", False, "Small sizes, to check that everything runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
