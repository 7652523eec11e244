"""Trains the demo, holds it against popularity and random order, and shows what it recommends to a few users.

    make demo        or: python -m experiments.demo [FOLDER]

The training is that of `experiments.train` with `experiments/configs/demo.py`. A second call shows the finished run
again; delete its folder to train anew.
"""

from __future__ import annotations

from absl import app, logging

from experiments import evaluate, train
from experiments.configs import demo
from jaxrec.serving.recommend import describe, recommend
from jaxrec.train.sequence_task import load_run

FOLDER = "runs/demo"
NUM_USERS = 3
TEST = 2


def main(argv: list[str]) -> None:
  """Trains, compares, shows; the run lies in the folder given, or in runs/demo."""
  if len(argv) > 2:
    raise app.UsageError(f"expected at most one folder, got {argv[1:]}")
  folder = argv[1] if len(argv) == 2 else FOLDER
  logging.set_verbosity(logging.ERROR)  # the progress bar and the tables say what there is to say
  train.run(demo.get_config(), folder)
  experiment, params, _ = load_run(folder)
  data = experiment.data

  print(
    f"\nWhere the last event of each user came out among all {data.num_items} items (those already seen left out):\n"
  )
  print(evaluate.table(evaluate.score(experiment, params, TEST), data.domain_names, (10,)))

  print("\nWhat the model recommends after each history:")
  for shown in recommend(experiment.model, params, data, experiment.config, range(NUM_USERS), k=8, hold_out=True):
    print(f"\n{describe(data, shown, history=8)}")
  print(f"\nCurves: {folder}/curves.png")


if __name__ == "__main__":
  app.run(main)
