"""Trains a model from a config; the same command resumes an interrupted run.

    jaxrec train --config=hstu --data=prepared/log --workdir=runs/log
    jaxrec train --config=experiments/configs/ml1m_hstu.py --workdir=runs/ml1m_hstu --config.train.batch_size=256
    jaxrec train --list

A config is a file, or a name (`--list` prints them) whose sizes are derived from the data.

The training loop is `jaxrec.train.loop`. Training uses every device it finds. On a cluster run the same command on
every host with a shared workdir, with --distributed (TPU pods, Slurm and other clusters that JAX detects) or with
--coordinator_address, --num_processes and --process_id: each host builds its shard of the batch, host 0 writes metrics,
all write checkpoints. If one host dies, the others exit.

Exit codes: 0 done; 1 error; 143 stopped by SIGTERM and 130 by Ctrl-C, at once where nothing is lost by it, else after
saving a checkpoint: run the same command again to resume. With --resume_with_changes an unfinished run resumes with
other settings of optimizer and training, such as a lower learning rate; changes.json records which, and at which step.

On GPUs, two runs have bitwise equal results only with XLA_FLAGS=--xla_gpu_deterministic_ops=true.
"""

from __future__ import annotations

import sys
import traceback

import jax
from absl import app, flags, logging

from jaxrec import parallel
from jaxrec.cli.config_argument import DATA_HELP, define_config, with_config_file
from jaxrec.cli.process import describe
from jaxrec.cli.summary_table import summary_table
from jaxrec.cli.text_table import text_table
from jaxrec.train.loop import run
from jaxrec.train.monitor import TRAINING_ERRORS, Interrupted
from jaxrec.train.named_configs import NAMES

FLAGS = flags.FLAGS
rewrite_arguments = with_config_file


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; settings are given as --config.group.key=value")
  if FLAGS.list:
    print(config_list())
    return
  try:
    parallel.initialize(
      FLAGS.coordinator_address,
      FLAGS.num_processes,
      FLAGS.process_id,
      distributed=FLAGS.distributed,
      heartbeat_timeout_seconds=FLAGS.heartbeat_timeout_seconds,
    )
    options = {"profile": FLAGS.profile, "resume_with_changes": FLAGS.resume_with_changes}
    summary = run(FLAGS.config, FLAGS.workdir, **options)
  except Interrupted as stop:
    logging.warning("%s", stop)
    sys.exit(stop.exit_code)
  except KeyboardInterrupt:  # The second Ctrl-C.
    logging.warning("stopped at once; the same command resumes from the last checkpoint")
    sys.exit(130)
  except (ValueError, OSError, *TRAINING_ERRORS) as error:
    parallel.abort(describe(error))
  except Exception:
    if not jax.distributed.is_initialized():
      raise
    parallel.abort(traceback.format_exc())
  if jax.process_index() == 0:
    print(f"{summary_table(summary)}\nwritten to {FLAGS.workdir}/summary.json")
    if FLAGS.report:
      write_page(FLAGS.workdir)


def write_page(workdir: str) -> None:
  """Writes report.html. The run is finished and saved, so that a failure is a warning."""
  try:
    from jaxrec.analysis.run_report import write_report  # Not before: training starts without it.

    print(f"a page to look at: {write_report(workdir)}")
  except (Exception, KeyboardInterrupt) as error:
    logging.warning("no report.html: %s", " ".join(describe(error).split()))


def config_list() -> str:
  """Returns the names of configs with a line each, as text."""
  rows = [("name", "config"), *((name, one.text) for name, one in NAMES.items())]
  return f"{text_table(rows, 'll')}\n\njaxrec train --config=NAME --data=PREPARED_FOLDER --workdir=FOLDER"


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  define_config(values)
  flags.DEFINE_string("data", None, DATA_HELP, flag_values=values)
  flags.DEFINE_bool("list", False, "Print the names of configs and exit.", flag_values=values)
  texts = {
    "workdir": "Folder of the run; an unfinished run in it is resumed.",
    "coordinator_address": "host:port of the first host, which listens there; if no cluster manager provides it.",
  }
  for name, text in texts.items():
    flags.DEFINE_string(name, None, text, flag_values=values)
  flags.DEFINE_integer("num_processes", None, "Number of processes, for --coordinator_address.", flag_values=values)
  flags.DEFINE_integer("process_id", None, "Index of this process, for --coordinator_address.", flag_values=values)
  flags.DEFINE_bool(
    "distributed",
    False,
    "Train on several hosts; JAX reads addresses and process ids from the cluster.",
    flag_values=values,
  )
  flags.DEFINE_integer(
    "heartbeat_timeout_seconds", 100, "The others exit if a host sends no heartbeat for this long.",
    lower_bound=1, flag_values=values,
  )  # fmt: skip
  flags.DEFINE_bool(
    "resume_with_changes",
    False,
    "Resume an unfinished run with other optimizer and train settings, or without records that were lost.",
    flag_values=values,
  )
  flags.DEFINE_bool("profile", False, "Write a profile of a few steps to <workdir>/profile.", flag_values=values)
  flags.DEFINE_bool("report", True, "Write a page to look at, <workdir>/report.html, at the end.", flag_values=values)
  for name in ("config", "workdir"):
    flags.register_multi_flags_validator(
      [name, "list"], lambda given, name=name: given["list"] or given[name] is not None, f"--{name} is needed",
      flag_values=values,
    )  # fmt: skip
