"""Times the training step of each encoder with and without AutoCDSR, the variants in turn, on random events.

    python -m experiments.benchmarks.cross_domain_step --config_file=abxi --steps=20

The settings are those of experiments/configs/abxi.py or kuairand.py; the events are drawn at random with the sizes of
those data sets, so that no data are needed. In each round every variant makes one step, so that whatever else the
machine does falls on all of them alike. Prints JSON lines: `median_ms` over the rounds, and `ratio`, the median over
the rounds of a variant's time divided by that of "base" in the same round.

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
  """How much there is to train on: users, items and events a user, of which domain each is drawn from."""

  users: int
  items: int
  events: int
  domain_shares: tuple[float, ...]


# As measured on the data sets; users enough for two batches.
SIZES = {
  "abxi": Sizes(1024, 28_095, 24, (0.5, 0.5)),
  "kuairand": Sizes(128, 729_828, 600, (0.805, 0.133, 0.045, 0.01, 0.0065, 0.0003, 0.0002)),
}


def main(argv: list[str]) -> None:
  """Measures and prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  for record in measure(FLAGS.config_file, FLAGS.encoders, FLAGS.variants, FLAGS.steps, FLAGS.smoke):
    publish(record, FLAGS.out)


def measure(
  config_file: str, encoders: Sequence[str], variants: Sequence[str], steps: int, smoke: bool = False
) -> Iterator[dict[str, Any]]:
  """Yields a record for each variant of each encoder, those of an encoder at once.

  Args:
    config_file: "abxi" or "kuairand".
    encoders: some of hstu, sasrec, bert4rec.
    variants: some of base, autocdsr, autocdsr_plus; without base there are no ratios.
    steps: rounds, after one that compiles.
    smoke: whether to shrink everything, to see that it runs.
  """
  sizes = Sizes(8, 32, 8, SIZES[config_file].domain_shares[:2]) if smoke else SIZES[config_file]
  with tempfile.TemporaryDirectory() as folder:
    prepared = os.path.join(folder, "random")
    random_events(sizes).save(prepared)
    configs = {e: {v: config_of(config_file, f"{e}-{v}", prepared, smoke) for v in variants} for e in encoders}
    for encoder in encoders:
      made = {variant: Training.from_config(config) for variant, config in configs[encoder].items()}
      times = time_in_turn({variant: training.step for variant, training in made.items()}, steps)
      for variant, ms in times.items():
        about = {"benchmark": "cross_domain_step", "config_file": config_file, "encoder": encoder, "variant": variant}
        yield about | summary(ms, times.get("base")) | made[variant].describe()


def random_events(sizes: Sizes, seed: int = 0) -> PreparedData:
  """Returns users with as many events each, all for training; items and their domains are drawn independently.

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
  """Returns the settings of an encoder and a variant, on prepared data; small ones for a smoke test."""
  config = CONFIGS[config_file].get_config(choice)
  config.data.prepared = prepared
  config.data.train_users = "all"  # Nothing is held out.
  if not smoke:
    return config
  config.data.max_length = config.data.row_length = 8
  config.train.batch_size = 4
  config.objective.num_negatives = 4
  config.model.update(width=4, num_layers=1, num_heads=1, max_positions=9)
  small = {"hidden": 4, "head_width": 4, "value_width": 4, "attention_length": 9, "bottleneck_stride": 4}
  config.model.update({name: value for name, value in small.items() if name in config.model})
  return config


def time_in_turn(steps: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, list[float]]:
  """Returns the milliseconds of each function in each round; all are called once before, and each is waited for.

  Each round begins with another one, so that none always runs behind the same.
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
  """Returns median, mean and least time; and to `base` the median ratio, round by round, and the ratio of the means.

  Where weights are solved for in some steps only, the mean is the time of a step; ratios are None without a base.

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
  """Defines the flags of this program; not on import, as other programs have flags of the same names."""
  flags.DEFINE_enum("config_file", "abxi", list(CONFIGS), "Whose settings and sizes.", flag_values=values)
  encoders, variants = _cross_domain.ENCODERS, _cross_domain.VARIANTS
  flags.DEFINE_multi_enum("encoders", list(encoders), encoders, "Which; may be repeated.", flag_values=values)
  default = ["base", *_cross_domain.AUTOCDSR]
  flags.DEFINE_multi_enum("variants", default, variants, "Which; may be repeated.", flag_values=values)
  steps_help = "Rounds, after one that compiles."
  flags.DEFINE_integer("steps", 20, steps_help, lower_bound=1, flag_values=values)
  flags.DEFINE_bool("smoke", False, "Small sizes, to see that it runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to which the lines are appended as well.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
