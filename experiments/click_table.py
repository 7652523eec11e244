"""The table of click-through models on a data set: each at its best initial scale, chosen on validation.

    python -m experiments.click_table --config_file=experiments/configs/ctr_taobao.py --variants=twin,din,dare \
      --scales=0.01,0.1,0.3,1 --scale_seeds=1,2 --seeds=1,2,3,4,5 --out=runs/click_taobao

1. Trains each variant with each initial scale (with tables of their own for attention: each pair of scales) and the
   seeds of --scale_seeds, and takes the scale with the best mean validation metric.
2. Trains the rest of --seeds at that scale.
3. Writes <out>/table.json and <out>/table.md: metrics, baselines of counts, differences with intervals from --base and
   from the counts, and the quality of the searches; see `jaxrec.analysis.click_comparison`.

The same command resumes: finished runs are in <out>/results.jsonl, an interrupted one resumes from its checkpoint.
--dry_run lists the runs of the first step with their commands, and estimates the minutes of both.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from jaxrec.analysis.click_comparison import InformationOptions, compare_click_models
from jaxrec.cli import sweep
from jaxrec.cli.process import describe
from jaxrec.cli.sweep_results import read_results
from jaxrec.cli.text_table import text_table
from jaxrec.models.ctr import VARIANTS
from jaxrec.train.checkpoint import check_path
from jaxrec.train.lock import FolderLock
from jaxrec.train.writers import write_json

FLAGS = flags.FLAGS
SCALES = ("model.init_scale", "model.attention_init_scale")
ROWS = ("din", "twin", "twin_latest", "twin_hard_item", "twin_projection", "twin_projection_small", "twin_4e", "eta",
        "sdim", "dare")  # fmt: skip


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  try:
    check_path("--out", FLAGS.out)
    seeds, scale_seeds = sweep.parse_seeds(FLAGS.seeds), sweep.parse_seeds(FLAGS.scale_seeds)
    jobs = scale_jobs(FLAGS.config_file, FLAGS.variants, FLAGS.scales, FLAGS.override, scale_seeds)
    if FLAGS.dry_run:
      print(plan(jobs, FLAGS.variants, seeds, scale_seeds))
      return
    os.makedirs(FLAGS.out, exist_ok=True)
    with FolderLock(FLAGS.out):
      record = make_table(jobs, seeds)
    write_json(os.path.join(FLAGS.out, "table.json"), record)
  except (OSError, ValueError, RuntimeError) as error:
    sys.exit(describe(error))
  except sweep.Stopped as stop:
    logging.warning("%s", stop)
    sys.exit(143)
  text = as_table(record)
  with open(os.path.join(FLAGS.out, "table.md"), "w", encoding="utf-8") as file:
    file.write(text + "\n")
  print(text)


def make_table(jobs: Mapping[str, Sequence[sweep.Job]], seeds: Sequence[int]) -> dict[str, Any]:
  """Trains what is missing and returns the record of the table.

  Raises:
    RuntimeError: a run failed.
    ValueError: the base is not among the variants, or runs cannot be compared.
  """
  if FLAGS.base not in jobs:
    raise ValueError(f"--base={FLAGS.base} is none of --variants={','.join(jobs)}")
  train = sweep.train_here if FLAGS.in_process else sweep.train_in_subprocess
  _train([job for of_variant in jobs.values() for job in of_variant], train)
  done = read_results(FLAGS.out)
  chosen = {name: best_overrides(of_variant, done, FLAGS.metric) for name, of_variant in jobs.items()}
  final = {name: [_with_seed(jobs[name][0], changes, seed) for seed in seeds] for name, changes in chosen.items()}
  _train([job for of_variant in final.values() for job in of_variant], train)
  runs = {name: [os.path.join(FLAGS.out, "runs", job.name) for job in found] for name, found in final.items()}
  ages = tuple(int(age) for age in FLAGS.first_ages) or None
  options = InformationOptions(ages, FLAGS.min_samples, FLAGS.min_count, FLAGS.max_rare)
  record = compare_click_models(runs, FLAGS.base, resamples=FLAGS.resamples, options=options)
  settings = {"config": FLAGS.config_file, "overrides": FLAGS.override, "seeds": list(seeds), "base": FLAGS.base}
  settings |= {"scales": FLAGS.scales, "scale_seeds": [int(seed) for seed in FLAGS.scale_seeds], "metric": FLAGS.metric}
  settings["information"] = dataclasses.asdict(options)
  scales = {name: {key: value for key, value in changes if key in SCALES} for name, changes in chosen.items()}
  done = read_results(FLAGS.out)
  validation = {name: [_validated(done[job.key], FLAGS.metric) for job in found] for name, found in final.items()}
  return {"settings": settings, "scales": scales, "validation": validation, **record}


def scale_jobs(
  config: str, variants: Sequence[str], scales: Sequence[str], overrides: Sequence[str], seeds: Sequence[int]
) -> dict[str, list[sweep.Job]]:
  """Returns the runs that choose an initial scale, by variant.

  Args:
    config: a config file whose argument is a variant, optionally with widths after it.
    variants: names of `jaxrec.models.ctr.VARIANTS`, with widths after a hyphen if wanted: "dare-4".
    scales: initial scales; with tables of their own for attention all pairs.
    overrides: settings of all runs, "group.key=value".
    seeds: of each scale.

  Raises:
    ValueError: an unknown variant or setting.
  """
  jobs = {}
  for variant in variants:
    name = variant.split("-")[0]
    if name not in VARIANTS:
      raise ValueError(f"--variants: {name!r} is not one of {sorted(VARIANTS)}")
    keys = SCALES[:1] if VARIANTS[name]["tables"] == "shared" else SCALES
    grid = [f"{key}={','.join(scales)}" for key in keys]
    jobs[variant] = sweep.make_jobs([f"{config}:{variant}"], [*overrides, *grid], seeds)
  return jobs


def best_overrides(
  jobs: Sequence[sweep.Job], results: Mapping[str, Mapping[str, Any]], metric: str
) -> tuple[tuple[str, str], ...]:
  """Returns the overrides of the runs with the best mean validation metric over their seeds; the first of equals.

  Args:
    jobs: of one variant.
    results: key of a run -> its line in results.jsonl.
    metric: "AUC", "GAUC" or "GAUC_category"; larger is better.
  """
  values: dict[tuple, list[float]] = {}
  for job in jobs:
    values.setdefault(job.overrides, []).append(_validated(results[job.key], metric))
  return max(values, key=lambda changes: statistics.fmean(values[changes]))


def _validated(result, metric) -> float:
  return result["summary"]["select"]["validation"][metric]


def plan(
  jobs: Mapping[str, Sequence[sweep.Job]], variants: Sequence[str], seeds: Sequence[int], scale_seeds: Sequence[int]
) -> str:
  """Returns the runs of the first step, how many there are in all, and what they take at --minutes each."""
  first = [job for of_variant in jobs.values() for job in of_variant]
  rest = len(variants) * len(set(seeds) - set(scale_seeds))
  minutes = (len(first) + rest) * FLAGS.minutes
  lines = [sweep.plan(first, FLAGS.out), f"then {rest} runs of the other seeds at the best scales"]
  return "\n".join([*lines, f"{len(first) + rest} runs, {minutes:.0f} minutes at {FLAGS.minutes:g} minutes each"])


def as_table(record: Mapping[str, Any]) -> str:
  """Returns the table as Markdown: a row for each baseline and model, means and standard deviations over seeds.

  "validation" is the metric that chose the scales; all others are of the test.
  """
  names = ("AUC", "GAUC", "log_loss")
  settings, search = record["settings"], record["search"]
  differences = [f"AUC - {settings['base']}", "AUC - counts"]
  head = ["model", "scales", f"validation {settings['metric']}", *names, *differences, "NDCG planted", "NDCG published"]
  rows = [
    [name, "", "", *(f"{values[metric]:.4f}" for metric in names)] for name, values in record["baselines"].items()
  ]
  rows.append(["recency", *[""] * 7, *(_mean(search["recency"], key) for key in ("planted", "information"))])
  for name, seeds in record["models"].items():
    scales = " / ".join(record.get("scales", {}).get(name, {}).values())
    differences = [_interval(record[key].get(name)) for key in ("minus_base", "minus_counts")]
    quality = [_mean(search[name], key) for key in ("planted", "information")]
    validation = _mean([{"metric": value} for value in record["validation"][name]], "metric")
    rows.append([name, scales, validation, *(_mean(seeds, metric) for metric in names), *differences, *quality])
  return text_table([head, *rows], "l", markdown=True)


def _mean(seeds, key) -> str:
  values = [values[key] for values in seeds if key in values]
  if not values:
    return ""
  return f"{statistics.fmean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def _interval(found) -> str:
  return "" if found is None else "{mean:+.4f} ({low:+.4f} to {high:+.4f})".format(**found["AUC"])


def _train(jobs, train):
  if failed := sweep.run_jobs(jobs, FLAGS.out, train):
    raise RuntimeError(f"{len(failed)} runs failed: {', '.join(job.name for job in failed)}; run the command again")


def _with_seed(job, changes, seed) -> sweep.Job:
  return sweep.Job(job.config, changes, seed, sweep.resolve(job.config, changes, seed))


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  first_ages = "First age of each bin of the published measure, from 1; empty: each age for itself, as published."
  flags.DEFINE_string("config_file", None, "Config file whose argument is a variant.", flag_values=values)
  flags.DEFINE_list("variants", list(ROWS), "Variants, with widths after a hyphen if wanted.", flag_values=values)
  flags.DEFINE_list("scales", ["0.01", "0.1", "0.3", "1.0"], "Initial scales of tables.", flag_values=values)
  flags.DEFINE_list("scale_seeds", ["1"], "Seeds that choose the scale.", flag_values=values)
  flags.DEFINE_list("seeds", ["1", "2", "3", "4", "5"], "Seeds of the table.", flag_values=values)
  flags.DEFINE_multi_string("override", [], "group.key=value of all runs; repeatable.", flag_values=values)
  flags.DEFINE_string("base", "twin", "The variant that the others are compared with.", flag_values=values)
  flags.DEFINE_string("metric", "AUC", "Validation metric that chooses the scale.", flag_values=values)
  flags.DEFINE_integer("resamples", 2000, "Draws of the intervals.", lower_bound=100, flag_values=values)
  flags.DEFINE_list("first_ages", [], first_ages, flag_values=values)
  flags.DEFINE_integer("min_samples", 700, "Training candidates of a category, at least.", flag_values=values)
  flags.DEFINE_integer("min_count", 50, "An event seen less often is rare.", flag_values=values)
  flags.DEFINE_integer("max_rare", 20, "Rare events of a candidate, at most.", flag_values=values)
  flags.DEFINE_float("minutes", 1.0, "Minutes of a run, for the estimate of --dry_run.", flag_values=values)
  flags.DEFINE_bool("dry_run", False, "List the runs without running them.", flag_values=values)
  flags.DEFINE_bool("in_process", False, "Train in this process: saves the start-up time.", flag_values=values)
  flags.DEFINE_string("out", None, "Folder of the results and runs.", flag_values=values)
  flags.mark_flags_as_required(["config_file", "out"], flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
