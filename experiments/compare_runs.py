"""Compares finished runs user by user, with intervals from draws of users and seeds.

    python -m experiments.compare_runs --run=plain=runs/plain-1,runs/plain-2 --run=gate=runs/gate-1,runs/gate-2 \
      --out=runs/comparison.json

Each --run is a name and the folders of its seeds, in the same order for all; all others are compared with the first.
Targets are ranked within their own domain, as in `jaxrec certificate`; --protocol=full ranks among all items. With
--targets=all every held-out event is a target (data of several held-out events a user: `prepare --held_out_events=5`);
users are drawn with all their targets.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from jaxrec.analysis.paired_bootstrap import UserValues, user_values
from jaxrec.cli.certificate import compare, report
from jaxrec.cli.process import describe
from jaxrec.data.batches.evaluation import TARGETS
from jaxrec.data.local_path import check_local
from jaxrec.evaluation.model import user_ranks
from jaxrec.evaluation.protocols import PROTOCOLS
from jaxrec.train.config import SEQUENTIAL
from jaxrec.train.runs import load_run
from jaxrec.train.writers import write_json

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  try:
    check_local("--out", FLAGS.out)
    runs = parse_runs(FLAGS.run)
    found = {name: values_of(workdirs) for name, workdirs in runs.items()}
    (base, (_, domain_names)), *others = found.items()
    pairs = [(name, base) for name, _ in others]
    record = compare({name: values for name, (values, _) in found.items()}, pairs, domain_names, FLAGS.resamples)
    settings = {name: FLAGS[name].value for name in ("run", "k", "split", "protocol", "targets", "resamples")}
    write_json(FLAGS.out, {"settings": settings, **record})
  except (OSError, ValueError) as error:
    sys.exit(describe(error))
  print(report(record, FLAGS.k, FLAGS.protocol))
  print(f"{FLAGS.split} events; written to {FLAGS.out}")


def parse_runs(texts: Sequence[str]) -> dict[str, list[str]]:
  """Returns the folders of each name.

  Raises:
    ValueError: an entry of another form, a name given twice, or fewer than two.

  >>> parse_runs(["plain=runs/a,runs/b", "gate=runs/c,runs/d"])
  {'plain': ['runs/a', 'runs/b'], 'gate': ['runs/c', 'runs/d']}
  """
  runs = {}
  for text in texts:
    name, equals, folders = text.partition("=")
    if not name or not equals or not folders or name in runs:
      raise ValueError(f"--run={text} must be a new name and folders of runs: --run=plain=runs/a,runs/b")
    runs[name] = folders.split(",")
  if len(runs) < 2:
    raise ValueError(f"--run is given for {sorted(runs)} only; a comparison needs two names")
  return runs


def values_of(workdirs: Sequence[str]) -> tuple[UserValues, Sequence[str]]:
  """Returns NDCG@k of each target for the runs in some folders, and the names of the domains.

  Raises:
    FileNotFoundError: no run in a folder.
    ValueError: a run of another task, or runs of different users or targets.
  """
  ranks = []
  for workdir in workdirs:
    loaded = load_run(workdir, task=SEQUENTIAL)
    task = loaded.task
    with task.config.unlocked():
      task.config.eval.protocol = FLAGS.protocol
      task.config.eval.targets = FLAGS.targets or task.config.eval.targets
    ranks.append(user_ranks(task.model, loaded.params, task.data, task.config, 1 if FLAGS.split == "validation" else 2))
  return user_values(ranks, np.asarray(task.data.item_domain()), FLAGS.k), task.data.domain_names


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  run_help = "NAME=FOLDER,FOLDER,...: the seeds of a model; repeatable, the first is what others are compared with."
  flags.DEFINE_multi_string("run", None, run_help, flag_values=values)
  flags.DEFINE_integer("k", 10, "NDCG@k is compared.", lower_bound=1, flag_values=values)
  flags.DEFINE_enum("split", "test", ["validation", "test"], "Split of the targets.", flag_values=values)
  flags.DEFINE_enum("protocol", "full_per_domain", PROTOCOLS, "Candidates.", flag_values=values)
  flags.DEFINE_enum(
    "targets", None, TARGETS, "Held-out events to rank: the first of each user, or all; default: as in the configs.",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_integer("resamples", 2000, "Draws of users and seeds.", lower_bound=100, flag_values=values)
  flags.DEFINE_string("out", None, "JSON file of the numbers.", flag_values=values)
  flags.mark_flags_as_required(["run", "out"], flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
