"""What `evaluate` and `recommend` print of runs of generative ranking."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import polars as pl

from jaxrec import parallel
from jaxrec.cli.text_table import text_table
from jaxrec.data.printable import printable
from jaxrec.evaluation.action_baselines import evaluate_baselines
from jaxrec.evaluation.action_metrics import ReliabilityBin, action_metrics, reliability_by_action
from jaxrec.serving.action_ranker import ActionRanker
from jaxrec.serving.item_ranker import RankedItem
from jaxrec.train.config import RANKING
from jaxrec.train.runs import LoadedRun, load_config

_COLUMNS = ("AUC", "GAUC", "accuracy", "log_loss", "NE", "calibration", "ECE", "RMSE", "MAE", "RIG")


def is_ranking_run(workdir: str) -> bool:
  """Whether a folder holds a run of generative ranking."""
  return os.path.exists(os.path.join(workdir, "config.json")) and load_config(workdir).task == RANKING


def scores_of(
  loaded: LoadedRun, split: int, baselines: bool
) -> tuple[dict[str, dict[str, float | int]], dict[str, list[ReliabilityBin]]]:
  """Returns the metrics of the model and, with `baselines`, of others: predictor -> metric -> value; and the bins of
  predicted and observed shares of the model's actions.

  Args:
    loaded: run of generative ranking.
    split: 1 validation, 2 test.
    baselines: whether `evaluate_baselines` is asked too.
  """
  task = loaded.task
  mesh = parallel.make_mesh(task.config.parallel.to_dict())
  heads = task.model.heads
  predictions, labels, users = task.predictions(loaded.state.evaluated, split, mesh)
  scores = {"model": action_metrics(predictions, labels, users, heads)}
  scores |= evaluate_baselines(task.data, heads, split) if baselines else {}
  return scores, reliability_by_action(predictions, labels, heads)


def score_table(scores: dict[str, dict[str, float | int]], heads: Sequence[str]) -> str:
  """Returns metrics as text, a row for each action and predictor.

  >>> print(score_table({"model": {"AUC/like": 0.75, "RIG/like": 0.2}}, ["like"]))
  action  predictor     AUC     RIG
  like    model      0.7500  0.2000
  """
  used = [name for name in _COLUMNS if any(f"{name}/{head}" in values for values in scores.values() for head in heads)]
  rows = [["action", "predictor", *used]]
  for head in heads:
    for predictor, values in scores.items():
      cells = [f"{values[f'{name}/{head}']:.4f}" if f"{name}/{head}" in values else "-" for name in used]
      rows.append([head, predictor, *cells])
  return text_table(rows, "llr")


def ranker_of(loaded: LoadedRun) -> ActionRanker:
  """Returns the ranker of a run."""
  task = loaded.task
  settings = task.config.data
  return ActionRanker(task.model, loaded.params, task.data, task.columns, settings.layout, settings.max_length)


def parse_weights(given: Sequence[str]) -> dict[str, float] | None:
  """Returns action -> weight of entries such as "like=1"; None without entries.

  Raises:
    ValueError: an entry of another form.

  >>> parse_weights(["like=1", "seconds=0.5"])
  {'like': 1.0, 'seconds': 0.5}
  """
  try:
    return {name: float(value) for name, value in (entry.rsplit("=", 1) for entry in given)} or None
  except ValueError as error:
    raise ValueError(f"weights={list(given)} must be like like=1,seconds=0.5") from error


def ranking_text(user: str, items: Sequence[RankedItem], known: int = 1, unknown: int = 0) -> str:
  """Returns the ranking of a user as text; characters of ids and titles that do not print are escaped.

  Args:
    user: the name.
    items: best first.
    known, unknown: events of the history whose item is in the data, and that were skipped because it is not.

  >>> print(ranking_text("7", [RankedItem(1, "f6", "Heat\\x07", "films", 0.5, {"like": 0.5})], unknown=2))
  User 7 (2 events of unknown items skipped)
    1. 0.500  Heat\\x07  (like 0.500)
  """
  lines = [
    f"  {item.rank}. {item.score:.3f}  {item.title or item.item}  "
    f"({', '.join(f'{n} {v:.3f}' for n, v in item.actions.items())})"
    for item in items
  ]
  skipped = f" ({unknown} events of unknown items skipped)" if unknown else ""
  nothing = "  no item is left" if known else "  no known item in the history: nothing to predict from"
  return "\n".join(map(printable, [f"User {user}{skipped}", *(lines or [nothing])]))


def ranking_table(rankings: Sequence[tuple[str, Sequence[RankedItem]]], actions: Sequence[str]) -> pl.DataFrame:
  """Returns rankings as a table: user, rank, item, title, domain, score and a column for each predicted value.

  Args:
    rankings: user and items.
    actions: names of the predicted values.

  >>> ranking_table([("7", [RankedItem(1, "f6", "Heat", "films", 0.5, {"like": 0.25})])], ["like"]).row(0)
  ('7', 1, 'f6', 'Heat', 'films', 0.5, 0.25)
  """
  rows = [(user, *item[:-1], *(item.actions[name] for name in actions)) for user, items in rankings for item in items]
  kinds = {"user": pl.String, "rank": pl.Int32, "item": pl.String, "title": pl.String, "domain": pl.String}
  return pl.DataFrame(rows, kinds | dict.fromkeys(("score", *actions), pl.Float32), orient="row")


def checksum(params: Any) -> int:
  """Returns a checksum of parameters.

  >>> checksum({"a": np.zeros(2)}) == checksum({"a": np.zeros(2)}), checksum({"a": np.ones(2)}) == checksum({})
  (True, False)
  """
  found = 0
  for leaf in jax.tree.leaves(params):
    found = zlib.crc32(np.ascontiguousarray(leaf).data, found)
  return found
