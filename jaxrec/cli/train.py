"""Trains a model from a config; the same command resumes an interrupted run.

    python -m experiments.train --config=experiments/configs/ml1m_hstu.py --workdir=runs/ml1m_hstu \
      --config.train.batch_size=256

The training loop is `jaxrec.train.loop`. Training uses every device it finds. On a cluster run the same command on
every host with a shared workdir, with --distributed (TPU pods, Slurm and other clusters that JAX detects) or with
--coordinator_address, --num_processes and --process_id: each host builds its shard of the batch, host 0 writes metrics,
all write checkpoints. If one host dies, the others exit.

Exit codes: 0 done; 1 error; 143 stopped by SIGTERM and 130 by Ctrl-C, at once where nothing is lost by it, else after
saving a checkpoint: run the same command again to resume. With --resume_with_changes an unfinished run goes on with
other settings of optimizer and training, such as a lower learning rate; changes.json records which, and at which step.

On GPUs, two runs have bitwise equal results only with XLA_FLAGS=--xla_gpu_deterministic_ops=true.
"""

from __future__ import annotations

import json
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from jaxrec import parallel
from jaxrec.cli.process import describe
from jaxrec.train.log import HideOrbaxDetails
from jaxrec.train.loop import run
from jaxrec.train.monitor import TRAINING_ERRORS, Interrupted

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; settings are given as --config.group.key=value")
  logging.get_absl_handler().addFilter(HideOrbaxDetails())
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
  print(json.dumps(summary, indent=2))


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  config_help = "Experiment config, a Python file that is executed; --config.group.key=value changes a setting."
  config_flags.DEFINE_config_file("config", None, config_help, flag_values=values)
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
    "Let an unfinished run go on with other optimizer and train settings, or without records that were lost.",
    flag_values=values,
  )
  flags.DEFINE_bool("profile", False, "Write a profile of a few steps to <workdir>/profile.", flag_values=values)
  flags.mark_flags_as_required(["config", "workdir"], flag_values=values)
