"""Puts a finished run on a Hugging Face hub, with its model card.

    jaxrec push --workdir=runs/shop --repo=someone/shop

Config, summary, metrics, fingerprint of the data, checkpoints and the card (as README.md) become one commit of a
repository of models, which is made if it is not there; it is private unless --noprivate is given. The page report.html,
which names users, stays here, and so do the data. The token is that of `hf auth login` or $HF_TOKEN. Needs jaxrec[hub].
"""

from __future__ import annotations

import sys

from absl import app, flags

from jaxrec.cli.process import describe
from jaxrec.train.hub import push_run

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  try:
    files = push_run(FLAGS.workdir, FLAGS.repo, private=FLAGS.private)
  except (OSError, ValueError) as error:
    sys.exit(describe(error))
  print(f"{len(files)} files are in {FLAGS.repo}")


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_string("workdir", None, "Folder of a finished run.", flag_values=values)
  flags.DEFINE_string("repo", None, "Repository, such as someone/shop.", flag_values=values)
  flags.DEFINE_bool("private", True, "Whether a new repository is private.", flag_values=values)
  flags.mark_flags_as_required(["workdir", "repo"], flag_values=values)
