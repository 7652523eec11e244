"""Writes the model of a run as a folder that runs without jaxrec: a StableHLO program, weights and id maps.

    jaxrec export --workdir=runs/shop --out=artifact

The folder appears complete or not at all; its README.md describes it and has a loader. Needs `jaxrec[export]`.
"""

from __future__ import annotations

import pathlib
import sys

from absl import app, flags

from jaxrec.cli.process import describe
from jaxrec.cli.ranking_runs import is_ranking_run, ranker_of
from jaxrec.recommenders import load
from jaxrec.serving.artifact import write_artifact
from jaxrec.serving.ranking_artifact import write_ranking_artifact
from jaxrec.train.runs import load_run

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  try:
    print(_write())
  except (ImportError, NotImplementedError, OSError, ValueError) as error:
    sys.exit(describe(error))


def _write() -> pathlib.Path:
  given = FLAGS.workdir, FLAGS.checkpoint, FLAGS.phase
  if is_ranking_run(FLAGS.workdir):
    return write_ranking_artifact(ranker_of(load_run(*given)), FLAGS.out, FLAGS.overwrite)
  return write_artifact(load(*given), FLAGS.out, FLAGS.overwrite)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_string("workdir", None, "Workdir of the training run.", flag_values=values)
  flags.DEFINE_string("out", None, "Folder to write.", flag_values=values)
  flags.DEFINE_bool("overwrite", False, "Replace the folder if it exists.", flag_values=values)
  flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Checkpoint to load.", flag_values=values)
  flags.DEFINE_enum("phase", None, ["select", "final"], "Phase of the run; default: the last one.", flag_values=values)
  flags.mark_flags_as_required(["workdir", "out"], flag_values=values)
