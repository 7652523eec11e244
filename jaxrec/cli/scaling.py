"""Trains a grid over depth, width, length and share of the data, and fits power laws of loss against compute.

    jaxrec scaling --configs=experiments/configs/streaming.py:hstu,experiments/configs/streaming.py:sasrec \
      --layers=1,2,4 --widths=16,32,64 --shares=0.03,0.3,1 --out=runs/scaling

Each config is one curve. Depth is config.model.num_layers; a width scales config.model.width and the widths of heads
and hidden layers with it; a length sets config.data.max_length, with rows and tables of positions as much longer than
in the config; a share is config.data.train_share. What is not given stays as in the config.
--sizes=1x8x64x0.01,2x16x64x0.1 (layers x width x length x share) names single points in place of the grid. --override
changes other settings of all runs.

Compute is the FLOPs of a training step, counted by the compiler (`jaxrec.train.step_flops`), times the steps that the
evaluated parameters took. The loss is the log-perplexity of the test targets over all items; see
`jaxrec.evaluation.log_perplexity`. Laws are fitted to the frontier: the runs that no other run beats with as much
compute or less. The largest run is predicted from the others. The last lines say whether the points support a law.

The same command resumes, as `jaxrec sweep` does. Writes <out>/results.jsonl (a line for each run), <out>/scaling.json
(points and laws), <out>/table.md, <out>/scaling.png (with matplotlib) and <out>/runs/<run>.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from jaxrec import parallel
from jaxrec.analysis import scaling_report
from jaxrec.cli import sweep
from jaxrec.cli.config_argument import config_file
from jaxrec.cli.process import describe
from jaxrec.cli.sweep_results import read_results
from jaxrec.data.prepared import TEST
from jaxrec.evaluation.log_perplexity import log_perplexity
from jaxrec.evaluation.model import model_ranker
from jaxrec.train.checkpoint import check_path
from jaxrec.train.config import SEQUENTIAL
from jaxrec.train.lock import FolderLock
from jaxrec.train.runs import load_run
from jaxrec.train.step_flops import step_cost
from jaxrec.train.task import SELECT
from jaxrec.train.writers import write_json

FLAGS = flags.FLAGS
MEASURED = "scaling"  # Next to what the summary of a run says.


@dataclasses.dataclass(frozen=True)
class Size:
  """A point of the grid: depth, width, longest history, share of the users; None stays as in the config."""

  layers: int | None = None
  width: int | None = None
  length: int | None = None
  share: float | None = None


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  try:
    check_path("--out", FLAGS.out)
    configs = [config_file(config, FLAGS.data) for config in FLAGS.configs]
    jobs = scaling_jobs(configs, sizes_of_flags(), FLAGS.override, sweep.parse_seeds(FLAGS.seeds))
    if FLAGS.dry_run:
      print(sweep.plan(jobs, FLAGS.out))
      return
    os.makedirs(FLAGS.out, exist_ok=True)
    train = sweep.train_here if FLAGS.in_process else sweep.train_in_subprocess
    with FolderLock(FLAGS.out):
      failed = sweep.run_jobs(jobs, FLAGS.out, measuring(train))
    print(write_outcome(jobs, FLAGS.out, FLAGS.metric))
  except (OSError, ValueError) as error:
    sys.exit(describe(error))
  except sweep.Stopped as stop:
    logging.warning("%s", stop)
    sys.exit(143)
  if failed:
    sys.exit(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(job.name for job in failed)}; run the same again")


def sizes_of_flags() -> list[Size]:
  """Returns the points of --sizes, or of the grid of the other flags."""
  if FLAGS.sizes:
    return [parse_size(text) for text in FLAGS.sizes]
  texts = (FLAGS.layers, FLAGS.widths, FLAGS.lengths, FLAGS.shares)
  return [parse_size("x".join(size)) for size in itertools.product(*(given or [""] for given in texts))]


def parse_size(text: str) -> Size:
  """Returns a point from layers x width x length x share; an empty part stays as in the config.

  Raises:
    ValueError: other than four parts, or one that is no number.

  >>> parse_size("2x16x64x0.1"), parse_size("2xxx")
  (Size(layers=2, width=16, length=64, share=0.1), Size(layers=2, width=None, length=None, share=None))
  """
  parts = text.split("x")
  try:
    if len(parts) != 4:
      raise ValueError
    numbers = [(float if i == 3 else int)(part) if part else None for i, part in enumerate(parts)]
  except ValueError:
    raise ValueError(f"{text!r} must be LAYERSxWIDTHxLENGTHxSHARE, such as 2x16x64x0.1; parts may be empty") from None
  if any(number is not None and number <= 0 for number in numbers):
    raise ValueError(f"{text!r}: layers, width, length and share must be above 0")
  return Size(*numbers)


def scaling_jobs(
  configs: Sequence[str], sizes: Sequence[Size], overrides: Sequence[str], seeds: Sequence[int]
) -> list[sweep.Job]:
  """Returns the runs of all sizes, configs and seeds, seeds innermost.

  Args:
    configs: config files.
    sizes: of each.
    overrides: "group.key=value", of all runs.
    seeds: of each size.

  Raises:
    ValueError: a wrong override, a size that the model cannot have, or two runs that are the same.
  """
  fixed = tuple(pair for job in sweep.make_jobs(configs[:1], overrides, seeds[:1]) for pair in job.overrides)
  jobs: dict[str, sweep.Job] = {}
  for size, config, seed in itertools.product(sizes, configs, seeds):
    base = sweep.resolve(config, fixed, seed)
    changes = (*fixed, *scaled(base, size))
    job = sweep.Job(config, changes, seed, sweep.resolve(config, changes, seed))
    if job.key in jobs:
      raise ValueError(f"{job.flags} and {jobs[job.key].flags} are the same run; give each size and seed once")
    jobs[job.key] = job
  return list(jobs.values())


def scaled(base: Mapping[str, Any], size: Size) -> tuple[tuple[str, str], ...]:
  """Returns the overrides that give a config a size.

  Args:
    base: resolved config, of task "sequential".
    size: of the point.

  Raises:
    ValueError: another task, or a width that the heads do not divide.

  >>> data, model = {"max_length": 64, "row_length": 128}, {"width": 32, "num_heads": 2, "hidden": 64}
  >>> base = {"task": "sequential", "data": data, "model": model | {"max_positions": 65}}
  >>> dict(scaled(base, Size(width=16, length=32)))["model.hidden"]
  '32'
  >>> [text for _, text in scaled(base, Size(length=32))]
  ['32', '64', '33']
  """
  if base["task"] != SEQUENTIAL:
    raise ValueError(f"config.task={base['task']!r} has no sizes to scale; give configs of task {SEQUENTIAL!r}")
  data, model, changes = base["data"], base["model"], {}
  if size.layers is not None:
    changes["model.num_layers"] = size.layers
  if size.width is not None:
    changes |= _widths(model, size.width)
  if size.length is not None:
    changes["data.max_length"] = size.length
    if data["row_length"]:
      changes["data.row_length"] = max(size.length, data["row_length"] * size.length // data["max_length"])
    for name in ("max_positions", "attention_length"):
      if name in model:
        changes[f"model.{name}"] = size.length + model[name] - data["max_length"]
  if size.share is not None:
    changes["data.train_share"] = size.share
  return tuple((name, str(value)) for name, value in changes.items())


def _widths(model, width):
  """The widths of a model, in proportion to its own."""
  changes = {}
  for name in ("width", "head_width", "value_width", "hidden"):
    if name in model:
      value, rest = divmod(model[name] * width, model["width"])
      if rest:
        raise ValueError(f"{width=} makes config.model.{name}={model[name]} a fraction; take a multiple")
      changes[f"model.{name}"] = value
  if width % model.get("num_heads", 1):
    raise ValueError(f"{width=} must be divisible by config.model.num_heads={model['num_heads']}")
  return changes


def measuring(train: Callable[[sweep.Job, str], dict[str, Any]]) -> Callable[[sweep.Job, str], dict[str, Any]]:
  """Returns the training of a job that adds compute and held-out loss to the summary, as "scaling"."""

  def train_and_measure(job, workdir):
    summary = train(job, workdir)
    try:
      return summary | {MEASURED: measure(workdir, summary)}
    except ValueError as error:
      raise RuntimeError(describe(error)) from error

  return train_and_measure


def measure(workdir: str, summary: Mapping[str, Any]) -> dict[str, float | int]:
  """Returns size, compute and held-out loss of a finished run.

  Args:
    workdir: of the run.
    summary: of the run.
  """
  loaded = load_run(workdir, phase=SELECT, task=SEQUENTIAL)
  config, data, model = loaded.task.config, loaded.task.data, loaded.task.model
  mesh = parallel.make_mesh(config.parallel.to_dict())
  ranker = model_ranker(model, loaded.params, data.num_items, mesh)
  cost = step_cost(config)
  return {
    "layers": config.model.num_layers, "width": config.model.width, "length": config.data.max_length,
    "share": config.data.train_share, "parameters": cost.parameters,
    "encoder_parameters": cost.parameters - cost.table_parameters, "flops_per_step": cost.flops, "steps": loaded.step,
    "flops": cost.flops * loaded.step, "loss": log_perplexity(ranker, data, config, TEST, mesh),
    "seconds": summary["seconds"],
  }  # fmt: skip


def write_outcome(jobs: Sequence[sweep.Job], out: str, metric: str) -> str:
  """Writes scaling.json, table.md and, with matplotlib, scaling.png, and returns table and verdicts as text.

  Raises:
    ValueError: a metric that no run reports.
  """
  done = read_results(out)
  runs = [scaling_report.run_of(done[job.key], _curve(job), metric) for job in jobs if job.key in done]
  if not runs:
    return "no run is complete"
  curves = scaling_report.curves_of(runs)
  text = scaling_report.as_markdown(curves, metric)
  write_json(os.path.join(out, "scaling.json"), scaling_report.as_json(curves, metric))
  with open(os.path.join(out, "table.md"), "w", encoding="utf-8") as file:
    file.write(text + "\n")
  scaling_report.plot(curves, metric, os.path.join(out, "scaling.png"))
  return text


def _curve(job: sweep.Job) -> str:
  """Returns the name of a curve: that of the config, which its argument is a part of."""
  return job.resolved["name"] or sweep.label(job.config)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_list("configs", None, "Files, or names of `jaxrec train --list`; a curve each.", flag_values=values)
  flags.DEFINE_string("data", None, "Folder of prepared data, for configs given by name.", flag_values=values)
  lists = {
    "layers": "Numbers of layers.", "widths": "Widths of the model.", "lengths": "Longest histories.",
    "shares": "Shares of the users that are trained on.",
    "sizes": "LAYERSxWIDTHxLENGTHxSHARE,...: single points in place of the grid.",
  }  # fmt: skip
  for name, text in lists.items():
    flags.DEFINE_list(name, [], text, flag_values=values)
  flags.DEFINE_multi_string("override", [], "group.key=value, of all runs; repeatable.", flag_values=values)
  flags.DEFINE_list("seeds", ["42"], "Seeds of every size; their mean is a point.", flag_values=values)
  flags.DEFINE_string("out", None, "Folder of the results and runs.", flag_values=values)
  flags.DEFINE_string(
    "metric", "HR@10", "Metric of the test events to report in addition to the loss.", flag_values=values
  )
  flags.DEFINE_bool("dry_run", False, "List the runs and their status without running them.", flag_values=values)
  flags.DEFINE_bool("in_process", False, "Train in this process, which saves the start-up time.", flag_values=values)
  flags.mark_flags_as_required(["configs", "out"], flag_values=values)
