"""Trains the demo, holds it against popularity and random order, and shows what it recommends to a few users.

    make demo        or: python -m experiments.demo [FOLDER]

The training is that of `experiments.train` with `experiments/configs/demo.py`. A second call shows the finished run again; delete its
folder to train anew.
"""

from __future__ import annotations

from typing import Any

from absl import app, logging

from experiments import train
from experiments.configs import demo
from jaxrec import baselines
from jaxrec.inference.recommend import describe, recommend
from jaxrec.train import devices
from jaxrec.train.evaluation import evaluation_batches
from jaxrec.train.experiment import Experiment, load_run

WORKDIR = "runs/demo"
NUM_USERS = 3
METRICS = ("HR@10", "NDCG@10")
TEST = 2


def main(argv: list[str]) -> None:
  """Trains, compares, shows; the run lies in the folder given, or in runs/demo."""
  if len(argv) > 2:
    raise app.UsageError(f"expected at most one folder, got {argv[1:]}")
  workdir = argv[1] if len(argv) == 2 else WORKDIR
  logging.set_verbosity(logging.WARNING)
  summary = train.run(demo.get_config(), workdir)
  experiment, params, _ = load_run(workdir)

  rows = baseline_results(experiment) | {"HSTU": summary["select"]["test_of_selected"]}
  print(f"\nThe last event of each user, ranked among all {experiment.data.num_items} items not seen before:\n")
  print(format_table(rows, experiment.data.domain_names))

  print("\nWhat the model recommends after each history:\n")
  users = range(NUM_USERS)
  for recommendation in recommend(
    experiment.model, params, experiment.data, experiment.config, users, k=8, hold_out=True
  ):
    print(describe(experiment.data, recommendation, history=8), end="\n\n")
  print(f"Curves: {workdir}/curves.png")


def baseline_results(experiment: Experiment) -> dict[str, dict[str, Any]]:
  """Returns the test metrics of random order and popularity under the protocol of the experiment."""
  config, data = experiment.config, experiment.data
  rankers = (baselines.random_order(data, config.seed), baselines.popularity(data, last_split=1))
  batches = evaluation_batches(data, config, TEST, devices.data_mesh())
  options = {"ks": config.eval.ks, "exclude_seen": config.eval.exclude_seen, "protocol": config.eval.protocol}
  return {ranker.name: baselines.evaluate_baseline(ranker, data, batches, **options) for ranker in rankers}


def format_table(rows: dict[str, dict[str, float]], domain_names: tuple[str, ...]) -> str:
  """Returns a line for each ranker with its metrics over all test events and in each domain.

  >>> overall = {"HR@10": 0.25, "NDCG@10": 0.125}
  >>> print(format_table({"HSTU": overall | {"domain/film/HR@10": 0.5, "domain/film/NDCG@10": 0.25}}, ("film",)))
                         all               film
                HR@10  NDCG@10     HR@10  NDCG@10
  HSTU          .2500    .1250     .5000    .2500
  """
  groups = {"all": "", **{name: f"domain/{name}/" for name in domain_names}}
  titles = "".join(f"{name:>19}" for name in groups)
  heads = "".join(f"{METRICS[0]:>10}{METRICS[1]:>9}" for _ in groups)
  lines = [f"{'':10}{titles}", f"{'':10}{heads}"]
  for name, values in rows.items():
    cells = "".join(f"{values[f'{p}{METRICS[0]}']:10.4f}{values[f'{p}{METRICS[1]}']:9.4f}" for p in groups.values())
    lines.append(f"{name:10}{cells}".replace(" 0.", "  ."))
  return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
  app.run(main)
