"""Runs a grid of configs, overrides and seeds, and prints means and standard deviations.

    python -m experiments.sweep --configs=experiments/configs/ml1m_sasrec.py,experiments/configs/ml1m_hstu.py \
      --override=optimizer.learning_rate=1e-3,3e-4 --override=model.dropout=0.1,0.2 --seeds=1,2,3 --out=runs/sweep

trains 2 configs x 2 x 2 overrides x 3 seeds. The same command resumes an interrupted sweep: complete runs in
<out>/results.jsonl are skipped, and an interrupted run resumes from its checkpoint. A run is identified by a hash of
its resolved config, so an edited config file gives a new run. --dry_run lists the runs and their status. One sweep at a
time works in a folder; its runs end with it, however it ends.

Click-through configs report other metrics: --metrics=AUC,GAUC.

Writes <out>/results.jsonl (one line per run), <out>/table.md, <out>/table.png (with matplotlib) and <out>/runs/<run>.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from jaxrec.cli import sweep_table
from jaxrec.cli.config_argument import check_names, config_file, define_config, label, label_with_argument
from jaxrec.cli.process import child_process, describe
from jaxrec.cli.sweep_results import append_result, read_results, read_summary
from jaxrec.data.fingerprint import Fingerprint, differences
from jaxrec.data.load import saved_data
from jaxrec.data.seeds import NUM_SEEDS, check_seed
from jaxrec.train import loop, monitor
from jaxrec.train.checkpoint import check_path
from jaxrec.train.lock import FolderLock

FLAGS = flags.FLAGS

# Exit codes of a run that was stopped by a signal; any other code but 0 is a failure.
STOPPED = (143, 130, -signal.SIGTERM, -signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class Job:
  """One run: a config file, overrides, a seed, and the resolved config."""

  config: str
  overrides: tuple[tuple[str, str], ...]  # ("optimizer.learning_rate", "1e-3"), ...
  seed: int
  resolved: Mapping[str, Any]

  @property
  def key(self) -> str:
    """The first twelve hexadecimal digits of the hash of the resolved config."""
    text = json.dumps(self.resolved, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  @property
  def name(self) -> str:
    """The name of the run's folder: the name of the config file and the key."""
    return f"{label(self.config)}-{self.key}"

  @property
  def flags(self) -> list[str]:
    """The command-line flags of `experiments.train` for this run."""
    changes = [f"--config.{key}={value}" for key, value in self.overrides]
    return [f"--config={self.config}", *changes, f"--config.seed={self.seed}"]


class Stopped(Exception):
  """A run was stopped by a signal, and the sweep stops too."""


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; give a grid as --override=group.key=value1,value2")
  try:
    check_path("--out", FLAGS.out)
    configs = [config_file(config, FLAGS.data) for config in FLAGS.configs]
    jobs = make_jobs(configs, FLAGS.override, parse_seeds(FLAGS.seeds))
    if FLAGS.dry_run:
      print(plan(jobs, FLAGS.out))
      return
    train = train_here if FLAGS.in_process else train_in_subprocess
    os.makedirs(FLAGS.out, exist_ok=True)
    with FolderLock(FLAGS.out):
      failed = run_jobs(jobs, FLAGS.out, train)
    table = write_table(jobs, FLAGS.out, FLAGS.metrics)
  except (OSError, ValueError) as error:
    sys.exit(describe(error))
  except Stopped as stop:
    logging.warning("%s", stop)
    sys.exit(143)
  print(table)
  if failed:
    sys.exit(
      f"{len(failed)} of {len(jobs)} runs failed: {', '.join(job.name for job in failed)}; the same command tries again"
    )


def make_jobs(configs: Sequence[str], overrides: Sequence[str], seeds: Sequence[int]) -> list[Job]:
  """Returns the runs of a grid, seeds innermost.

  Args:
    configs: config files, with ":argument" where their get_config takes one.
    overrides: "group.key=value1,value2"; commas inside brackets or quotes belong to a value.
    seeds: seeds of every point of the grid.

  Raises:
    ValueError: an override has no value or names an unknown setting, or two runs are the same.
  """
  choices = [_choices(override) for override in overrides]
  grid = itertools.product(configs, itertools.product(*choices), seeds)
  jobs = [Job(config, changes, seed, resolve(config, changes, seed)) for config, changes, seed in grid]
  seen: dict[str, Job] = {}
  for job in jobs:
    if job.key in seen:
      raise ValueError(f"{job.flags} and {seen[job.key].flags} are the same run; give each value and seed once")
    seen[job.key] = job
  return jobs


def parse_seeds(texts: Sequence[str]) -> list[int]:
  """Returns the seeds of --seeds.

  Raises:
    ValueError: there is none, or one is no integer in the range of seeds.

  >>> parse_seeds(["1", " 2"])
  [1, 2]
  """
  if not texts:
    raise ValueError("--seeds is empty; give at least one, such as --seeds=42")
  for text in texts:
    if not re.fullmatch(r"\s*[+-]?\d+\s*", text):
      raise ValueError(
        f"--seeds: {text!r} is not an integer; give integers in 0..{NUM_SEEDS - 1} separated by commas: --seeds=1,2,3"
      )
    check_seed("--seeds", int(text))
  return [int(text) for text in texts]


def resolve(config: str, overrides: Sequence[tuple[str, str]], seed: int) -> dict[str, Any]:
  """Returns the config that `experiments.train` reads from these flags.

  Raises:
    ValueError: a missing file, an unknown setting, or a value of the wrong type.
  """
  job = Job(config, tuple(overrides), seed, {})
  try:
    resolved = _parsed_config(job)
    check_names(resolved)
  except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
    raise ValueError(f"{' '.join(job.flags)}: {error}") from error
  return json.loads(json.dumps(resolved.to_dict(), default=str))  # Tuples become lists, as they will in config.json.


def run_jobs(jobs: Sequence[Job], out: str, train: Callable[[Job, str], dict[str, Any]]) -> list[Job]:
  """Runs the jobs without a result and returns those that failed.

  Args:
    jobs: from `make_jobs`.
    out: folder of the results.
    train: (job, workdir) -> summary; raises RuntimeError if the run failed.

  Raises:
    Stopped: by `train`, if a signal stopped the run.
    ValueError: the data are not those of a complete run.
  """
  os.makedirs(out, exist_ok=True)
  done = read_results(out)
  check_same_data(jobs, done)
  failed = []
  for count, job in enumerate(jobs, start=1):
    label = f"run {count} of {len(jobs)}, {job.name}: {' '.join(job.flags)}"
    if job.key in done:
      logging.info("%s: complete, skipped", label)
      continue
    logging.info("%s", label)
    workdir = os.path.join(out, "runs", job.name)
    os.makedirs(workdir, exist_ok=True)
    try:
      summary = train(job, workdir)
    except RuntimeError as error:
      logging.error("%s failed: %s", job.name, error)
      failed.append(job)
      continue
    record = {"key": job.key, "config": job.config, "overrides": dict(job.overrides), "seed": job.seed}
    append_result(out, workdir, record, summary)
  return failed


def check_same_data(jobs: Sequence[Job], done: Mapping[str, Mapping[str, Any]]) -> None:
  """Raises unless complete runs with the same settings of the data were trained on the same, and on those of today.

  Args:
    jobs: from `make_jobs`.
    done: from `read_results`. Results of older versions don't say what they were trained on.

  Raises:
    ValueError: says what differs.
  """
  known: dict[str, tuple[str, Fingerprint]] = {}
  for job in jobs:
    trained_on = done.get(job.key, {}).get("data")
    if trained_on is None:
      continue
    settings = json.dumps(job.resolved["data"], sort_keys=True)
    if settings not in known:
      today = saved_data(ConfigDict(job.resolved["data"]))
      known[settings] = ("the data of today", today.fingerprint) if today else (job.name, trained_on)
    other, fingerprint = known[settings]
    if what := differences(trained_on, fingerprint):
      raise ValueError(
        f"{job.name} was trained on other data than {other}: {what}. Put those data back, or give another --out"
      )


def train_in_subprocess(job: Job, workdir: str) -> dict[str, Any]:
  """Trains with `python -m jaxrec.cli train`, writes its output to <workdir>/output.log, and returns its summary.

  Raises:
    RuntimeError: the run failed; the text contains the end of its output.
    Stopped: a signal stopped this process or the run, after the run saved a checkpoint.
  """
  command = [sys.executable, "-m", "jaxrec.cli", "train", *job.flags, f"--workdir={workdir}", "--noreport"]
  log = os.path.join(workdir, "output.log")
  with open(log, "ab") as output, child_process(command, stdout=output, stderr=subprocess.STDOUT) as child:
    code = _wait(child)
  if code in STOPPED:
    raise Stopped(f"{job.name} was stopped; the same command resumes from its checkpoint")
  if code:
    with open(log, encoding="utf-8", errors="replace") as file:
      tail = "".join(file.readlines()[-15:])
    raise RuntimeError(f"exit code {code}; the end of {log}:\n{tail}")
  return read_summary(workdir)


def train_here(job: Job, workdir: str) -> dict[str, Any]:
  """Trains in this process and returns the summary.

  Raises:
    RuntimeError: the run failed.
    Stopped: a signal stopped the run, after it saved a checkpoint.
  """
  try:
    loop.run(_parsed_config(job), workdir)
  except monitor.Interrupted as stop:
    raise Stopped(str(stop)) from stop
  except (ValueError, OSError, *monitor.TRAINING_ERRORS) as error:
    raise RuntimeError(describe(error)) from error
  return read_summary(workdir)


def plan(jobs: Sequence[Job], out: str) -> str:
  """Returns one line per run: its status (complete, begun, to do) and its command."""
  done = read_results(out)

  def state(job):
    if job.key in done:
      return "complete"
    return "begun" if os.path.exists(os.path.join(out, "runs", job.name, "config.json")) else "to do"

  lines = [
    f"{state(job):8}  python -m experiments.train {' '.join(job.flags)} --workdir={os.path.join(out, 'runs', job.name)}"
    for job in jobs
  ]
  return "\n".join([*lines, f"{len(jobs)} runs, {sum(job.key in done for job in jobs)} complete"])


def write_table(jobs: Sequence[Job], out: str, metrics: Sequence[str]) -> str:
  """Writes table.md and, with matplotlib, table.png, and returns the table as text.

  Raises:
    ValueError: no run reports one of the metrics, or they are of different data.
  """
  done = read_results(out)
  check_same_data(jobs, done)
  several = len({job.config for job in jobs}) > 1
  runs = [(_label(job, several), done[job.key]["summary"]) for job in jobs if job.key in done]
  rows = sweep_table.summarize(runs, metrics)
  text = sweep_table.as_markdown(rows)
  with open(os.path.join(out, "table.md"), "w", encoding="utf-8") as file:
    file.write(text + "\n")
  sweep_table.plot(rows, os.path.join(out, "table.png"))
  return text


def _choices(override):
  """Splits an override into its values: "a.b=1,2" -> [("a.b", "1"), ("a.b", "2")]."""
  key, equals, values = override.partition("=")
  # Commas outside (), [], {} and quotes.
  alternatives = re.findall(r"(?:\([^)]*\)|\[[^\]]*\]|\{[^}]*\}|'[^']*'|\"[^\"]*\"|[^,])+", values)
  if not key or not equals or not alternatives:
    raise ValueError(f"--override={override} must be group.key=value1,value2,...")
  return [(key.removeprefix("config."), value) for value in alternatives]


def _parsed_config(job) -> ConfigDict:
  """Parses the config as `experiments.train` does from its command line.

  Writes no bytecode, which hides a change of the file to one of equal size within the same second.
  """
  values, argv = flags.FlagValues(), ["train", *job.flags]
  define_config(values, arguments=argv)
  before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
  try:
    values(argv)
  finally:
    sys.dont_write_bytecode = before
  return values["config"].value


def _label(job, with_config):
  """Returns the label of a table row: the config file and the overrides, without the seed."""
  changes = [f"{key}={value}" for key, value in job.overrides]
  return ", ".join(([label_with_argument(job.config)] if with_config or not changes else []) + changes)


def _wait(child):
  """Returns the exit code of a process; that of a stop if a signal asked this one to stop, whatever the child ended as.

  The child gets SIGTERM, after Ctrl-C too, which reaches it only from a terminal.
  """
  requests = []

  def stop(number, frame):
    requests.append(number)
    logging.warning("%s: waiting for the run to save its checkpoint", signal.Signals(number).name)
    child.terminate()

  before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    code = child.wait()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  return -requests[0] if requests else code


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_list("configs", None, "Config files, or names of `jaxrec train --list`.", flag_values=values)
  flags.DEFINE_string("data", None, "Folder of prepared data, for configs given by name.", flag_values=values)
  flags.DEFINE_multi_string(
    "override", [], "group.key=value1,value2,...; repeatable; the grid is the product of all.", flag_values=values
  )
  flags.DEFINE_list("seeds", ["42"], "Seeds of every point of the grid.", flag_values=values)
  flags.DEFINE_string("out", None, "Folder of the results and runs.", flag_values=values)
  flags.DEFINE_list("metrics", ["HR@10", "NDCG@10"], "Metrics in the table, one column per split.", flag_values=values)
  flags.DEFINE_bool("dry_run", False, "List the runs and their status without running them.", flag_values=values)
  flags.DEFINE_bool(
    "in_process",
    False,
    "Train in this process: saves the start-up time, but a crash ends the sweep.",
    flag_values=values,
  )
  flags.mark_flags_as_required(["configs", "out"], flag_values=values)
