"""Prints the histories of users and the recommendations of a trained model, as titles.

    python -m experiments.recommend --workdir=runs/ml1m_hstu --user=17 --user=4169
    python -m experiments.recommend --workdir=runs/demo --random=5 --domain=film --hold_out

--user takes ids of the raw data. With --hold_out, histories end before the test event, and the rank of that event is
shown.
"""

from __future__ import annotations

import sys

import numpy as np
from absl import app, flags, logging

from jaxrec.cli import process
from jaxrec.serving.recommend import describe, recommend
from jaxrec.train.config import SEQUENTIAL
from jaxrec.train.log import HideOrbaxDetails
from jaxrec.train.runs import load_run

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; users are given as --user=<id>")
  logging.get_absl_handler().addFilter(HideOrbaxDetails())
  try:
    print(recommendations())
  except (OSError, ValueError) as error:
    sys.exit(process.describe(error))


def recommendations() -> str:
  """Returns the recommendations for the users given by the flags, as text."""
  if not FLAGS.user and not FLAGS.random:
    raise ValueError("no user given; use --user=<id> or --random=5")
  loaded = load_run(FLAGS.workdir, FLAGS.checkpoint, FLAGS.phase, task=SEQUENTIAL)
  task, data = loaded.task, loaded.task.data
  users = [data.user_index(raw) for raw in FLAGS.user]
  drawn = np.random.default_rng(FLAGS.seed).choice(data.num_users, min(FLAGS.random, data.num_users), replace=False)
  found = recommend(
    task.model,
    loaded.params,
    data,
    task.config,
    [*users, *drawn.tolist()],
    k=FLAGS.k,
    domain=FLAGS.domain,
    hold_out=FLAGS.hold_out,
    exclude_seen=FLAGS.exclude_seen,
  )
  return "\n\n".join(describe(data, one, FLAGS.history) for one in found)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_string("workdir", None, "Workdir of the training run.", flag_values=values)
  flags.DEFINE_multi_string("user", [], "Id of a user in the raw data; repeatable.", flag_values=values)
  flags.DEFINE_integer("random", 0, "Number of additional users, drawn at random.", lower_bound=0, flag_values=values)
  flags.DEFINE_integer("seed", 0, "Seed of --random.", lower_bound=0, flag_values=values)
  flags.DEFINE_integer("k", 10, "Number of items to recommend.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("history", 10, "Number of latest events to show.", lower_bound=0, flag_values=values)
  flags.DEFINE_string("domain", None, "Recommend from this domain only.", flag_values=values)
  flags.DEFINE_bool("hold_out", False, "End histories before the test event and show its rank.", flag_values=values)
  flags.DEFINE_bool("exclude_seen", True, "Recommend no item of the user's history.", flag_values=values)
  flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Checkpoint to load.", flag_values=values)
  flags.DEFINE_enum("phase", None, ["select", "final"], "Phase of the run; default: the last one.", flag_values=values)
  flags.mark_flags_as_required(["workdir"], flag_values=values)
