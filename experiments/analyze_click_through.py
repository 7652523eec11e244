"""Analyzes finished runs of click-through models: writes numbers.json and plots.

    python -m experiments.analyze_click_through --run=DARE=runs/ctr_dare --run=TWIN=runs/ctr_twin --out=runs/look

For each run: discriminability of the inputs of its head, and convergence; for DARE and TWIN also the learned attention
for the most frequent category of the candidates, compared with the mutual information in the data; on planted data
also the NDCG of the search. Several runs with the same name are seeds. The gradients of the two roles come from
training a shared table with the settings of the first run (--gradient_steps=0 skips this).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from jaxrec.analysis import ctr_analysis as analysis
from jaxrec.analysis import ctr_plots as plots
from jaxrec.data.batches.candidates import TrainingCandidates, held_out_candidates
from jaxrec.data.generators.click_truth import click_truth
from jaxrec.data.prepared import TEST
from jaxrec.models import ctr
from jaxrec.models.ctr import ClickThroughRanker
from jaxrec.train import click_task, writers
from jaxrec.train.click_task import ClickTask
from jaxrec.train.config import CLICK_THROUGH
from jaxrec.train.runs import load_run

FLAGS = flags.FLAGS
SEARCH = 20  # The K of the search's NDCG@K.
NUM_CATEGORIES, NUM_AGES = 10, 10  # Size of the attention matrices.


def main(_) -> None:
  """Analyzes the runs named by the flags."""
  clusters = [int(number) for number in FLAGS.clusters]
  numbers = analyze([run.split("=", 1) for run in FLAGS.run], FLAGS.out, clusters, FLAGS.gradient_steps)
  print(json.dumps({name: numbers[name] for name in ("search_ndcg", "gradients") if name in numbers}, indent=2))


def analyze(runs: list[list[str]], out: str, clusters: list[int], gradient_steps: int) -> dict[str, Any]:
  """Returns all numbers, and writes them and their plots to the folder `out`.

  Args:
    runs: pairs of name and workdir.
    out: folder of the results.
    clusters: numbers of clusters for discriminability.
    gradient_steps: training steps of the shared table; 0 skips it.
  """
  os.makedirs(out, exist_ok=True)
  numbers: dict[str, Any] = {key: defaultdict(list) for key in ("search_ndcg", "discriminability", "attention")}
  numbers["convergence"] = {}
  for name, workdir in runs:
    logging.info("%s: %s", name, workdir)
    task, variables = load(workdir)
    for key, value in analyze_run(task, variables, clusters).items():
      numbers[key][name].append(value)
    numbers["convergence"].setdefault(name, _validations(workdir))
  first = load(runs[0][1])[0]
  numbers["mutual_information"] = attention_truth(first)
  if gradient_steps:
    gradients = role_gradients(first, gradient_steps)
    plots.draw_role_gradients(gradients, os.path.join(out, "gradients.png"))
    sizes = {"num_items": first.examples.num_items, "num_categories": first.examples.num_categories}
    sizes["width"] = first.config.model.get("width", ClickThroughRanker.width)
    numbers["gradients"] = _summary(gradients) | sizes
  writers.write_json(os.path.join(out, "numbers.json"), numbers)
  _draw(numbers, out)
  return numbers


def load(workdir: str) -> tuple[ClickTask, Mapping[str, Any]]:
  """Returns the task of a run, and its best variables."""
  loaded = load_run(workdir, task=CLICK_THROUGH)
  return loaded.task, {"params": loaded.params, **loaded.state.model_state}


def analyze_run(task: ClickTask, variables: Mapping[str, Any], clusters: list[int]) -> dict[str, Any]:
  """Returns the analyses of one run on its test candidates.

  "discriminability" by number of clusters; "search_ndcg", on planted data, for clicked, not clicked and all
  candidates; "attention", for DARE and TWIN.
  """
  apply = jax.jit(lambda batch: task.model.apply(variables, batch, deterministic=True))
  truth = click_truth(task.data)
  columns = []
  for batch in held_out_candidates(task.examples, TEST, task.config.eval.batch_size):
    output, is_real = apply(batch), batch.history_item > 0
    relevance = truth.relevance(batch) if truth else np.zeros(is_real.shape)
    score = np.zeros(is_real.shape) if output.score is None else np.asarray(output.score)
    columns.append((np.asarray(output.features), batch.label, score, relevance, is_real))
  features, label, score, relevance, is_real = (np.concatenate(column) for column in zip(*columns, strict=True))
  found: dict[str, Any] = {
    "discriminability": {str(number): analysis.discriminability(features, label, number) for number in clusters}
  }
  if truth:
    rows = {"clicked": label > 0, "not clicked": label == 0, "all": label >= 0}
    ndcg = {name: analysis.search_ndcg(score[r], relevance[r], is_real[r], SEARCH) for name, r in rows.items()}
    found["search_ndcg"] = ndcg
  if task.config.model.name in ("dare", "twin"):
    target, categories = shown_categories(task)
    tables = analysis.attention_tables(variables)
    found["attention"] = analysis.learned_attention(tables, target, categories, range(1, NUM_AGES + 1)).tolist()
  return found


def shown_categories(task: ClickTask) -> tuple[int, list[int]]:
  """Returns the most frequent category of the test candidates; and it, followed by the most frequent in histories."""
  counts = np.zeros((2, task.examples.num_categories + 1))
  for batch in held_out_candidates(task.examples, TEST, task.config.eval.batch_size):
    for row, values in enumerate((batch.category, batch.history_category)):
      counts[row] += np.bincount(values.ravel(), minlength=counts.shape[1])
  counts[:, 0] = -1  # Padding.
  target = int(np.argmax(counts[0]))
  others = [int(category) for category in np.argsort(-counts[1], kind="stable")[:-1] if category != target]
  return target, [target, *others[: NUM_CATEGORIES - 1]]


def attention_truth(task: ClickTask) -> list[list[float]]:
  """Returns the mutual information of clicks with category and age, over the training examples."""
  plan = TrainingCandidates(task.examples, task.config.train.batch_size, 1, task.config.seed)
  target, categories = shown_categories(task)
  batches = (plan[step] for step in range(len(plan)))
  return analysis.mutual_information(batches, target, categories, range(1, NUM_AGES + 1)).tolist()


def role_gradients(task: ClickTask, steps: int) -> analysis.RoleGradients:
  """Returns the gradients of both roles over the first steps of training a shared table."""
  config = {**click_task.model_settings(task.config), "name": "dare"}
  sizes = {"num_items": task.examples.num_items, "num_categories": task.examples.num_categories}
  tied = dataclasses.replace(task, model=ctr.build(config, **sizes))
  settings = task.config.train
  plan = TrainingCandidates(task.examples, settings.batch_size, settings.num_epochs, task.config.seed)
  batches = (plan[step] for step in range(min(steps, len(plan))))
  options = task.config.optimizer
  state = tied.init_state(None, 1)
  start = {"params": state.params, **state.model_state}
  return analysis.role_gradients(tied.model, start, batches, learning_rate=options.learning_rate, l2=options.l2)


def _summary(gradients):
  return {
    "steps": len(gradients.norm),
    "norm_attention": float(gradients.norm[:, 0].mean()),
    "norm_representation": float(gradients.norm[:, 1].mean()),
    "ratio": gradients.ratio,
    "norm_by_step": gradients.norm.tolist(),
    "mean_cosine_by_step": gradients.cosine.tolist(),
    "steps_with_mean_cosine_below_0": gradients.share_of_steps,
    "rows_in_conflict_in_most_steps": float((gradients.conflict[~np.isnan(gradients.conflict)] > 0.5).mean()),
    "mean_conflict_of_rows": float(np.nanmean(gradients.conflict)),
  }


def _validations(workdir):
  records = writers.read_records(os.path.join(workdir, "metrics.jsonl"))
  return {record["step"]: record["AUC"] for record in records if record["kind"] == "validation"}


def _draw(numbers, out):
  plots.draw_convergence(numbers["convergence"], "validation AUC", os.path.join(out, "convergence.png"))
  lines = {
    name: {int(number): float(np.mean([seed[number] for seed in seeds])) for number in seeds[0]}
    for name, seeds in numbers["discriminability"].items()
  }
  plots.draw_discriminability(lines, os.path.join(out, "discriminability.png"))
  learned = {name: np.mean(seeds, axis=0) for name, seeds in numbers["attention"].items()}
  plots.draw_attention(np.array(numbers["mutual_information"]), learned, os.path.join(out, "attention.png"))
  for which in ("clicked", "all"):
    values = {name: [seed[which] for seed in seeds] for name, seeds in numbers["search_ndcg"].items()}
    if values:
      plots.draw_bars(values, f"NDCG@{SEARCH}, candidates: {which}", os.path.join(out, f"search_ndcg_{which}.png"))


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program; not on import, as other programs have flags of the same names."""
  flags.DEFINE_multi_string("run", None, "NAME=WORKDIR of a finished run; may be repeated.", flag_values=values)
  flags.DEFINE_string("out", None, "Folder of the numbers and plots.", flag_values=values)
  flags.DEFINE_list("clusters", ["2", "5", "10", "20", "50", "100"], "Numbers of clusters.", flag_values=values)
  flags.DEFINE_integer("gradient_steps", 100, "Training steps of the shared table; 0: none.", flag_values=values)
  flags.mark_flags_as_required(["run", "out"], flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
