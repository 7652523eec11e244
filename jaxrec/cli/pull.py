"""Takes a run from a Hugging Face hub into a new workdir.

    jaxrec pull --repo=someone/shop --workdir=runs/shop

The workdir appears when all files are there and have the hashes that `jaxrec push` recorded. Evaluating, serving and
recommending then need the data that its config names, and compare their fingerprint. Needs jaxrec[hub].
"""

from __future__ import annotations

import sys

from absl import app, flags

from jaxrec.cli.process import describe
from jaxrec.train.hub import pull_run

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  try:
    files = pull_run(FLAGS.repo, FLAGS.workdir, revision=FLAGS.revision)
  except (OSError, ValueError) as error:
    sys.exit(describe(error))
  print(f"{len(files)} files are in {FLAGS.workdir}; {FLAGS.workdir}/model_card.md says what it is")


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_string("repo", None, "Repository, such as someone/shop.", flag_values=values)
  flags.DEFINE_string("workdir", None, "Folder to write; it must not exist.", flag_values=values)
  flags.DEFINE_string("revision", None, "Branch, tag or commit; default: the main branch.", flag_values=values)
  flags.mark_flags_as_required(["repo", "workdir"], flag_values=values)
