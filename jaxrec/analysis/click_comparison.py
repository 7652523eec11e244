"""Finished click-through runs side by side: metrics, counts, paired differences and the quality of their searches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxrec import parallel
from jaxrec.analysis.click_intervals import METRICS, ClickScores, click_interval
from jaxrec.analysis.ctr_analysis import search_ndcg
from jaxrec.analysis.search_information import ClickInformation, count_information, without_items
from jaxrec.batches import CandidateBatch
from jaxrec.data.batches.candidates import held_out_candidates
from jaxrec.data.generators.click_truth import click_truth
from jaxrec.evaluation.click_counts import count_baselines
from jaxrec.train.click_task import ClickTask, click_metrics
from jaxrec.train.config import CLICK_THROUGH
from jaxrec.train.runs import LoadedRun, load_run

COUNTS, RECENCY = "counts", "recency"
SEARCHED = 20  # The K of the search's NDCG@K.


@dataclasses.dataclass(frozen=True)
class InformationOptions:
  """Limits of `jaxrec.analysis.search_information.count_information`; the published ones by default."""

  first_ages: tuple[int, ...] | None = None
  min_samples: int = 700
  min_count: int = 50
  max_rare: int = 20


def compare_click_models(
  runs: Mapping[str, Sequence[str]],
  base: str,
  *,
  split: int = 2,
  resamples: int = 2000,
  options: InformationOptions = InformationOptions(),
) -> dict[str, Any]:
  """Returns what is known of finished runs on the same candidates.

  "models" and "baselines": metrics of each seed, by name; the baselines are those of `count_baselines`. "minus_base"
  and "minus_counts": `click_interval` of each model with the base and with the regression on counts, by metric.
  "search": see `search_quality`, by name, one entry for each seed; "recency" is the order of time.

  Args:
    runs: name -> workdirs of its seeds, in the same order for all.
    base: the name that the others are compared with.
    split: 1 validation, 2 test.
    resamples: of the intervals.
    options: limits of the published measure of a search.

  Raises:
    ValueError: an unknown base, a run of another task, or runs of other candidates.
  """
  if base not in runs:
    raise ValueError(f"{base=} is none of the runs {sorted(runs)}")
  first = load_run(runs[base][0], task=CLICK_THROUGH).task
  length = first.config.data.history_length
  wanted = wanted_events(first, split, count_information(first.examples, length, **dataclasses.asdict(options)))
  record: dict[str, Any] = {"models": {}, "baselines": {}, "minus_base": {}, "minus_counts": {}, "search": {}}
  record["search"][RECENCY] = [search_quality(first, None, split, wanted)]
  scores = {}
  for name, workdirs in runs.items():
    loaded = [load_run(workdir, task=CLICK_THROUGH) for workdir in workdirs]
    scores[name], record["models"][name] = _scores(loaded, split)
    record["search"][name] = [search_quality(run.task, _variables(run), split, wanted) for run in loaded]
  counts = _counts(first, split, scores[base], record["baselines"])
  for name, value in scores.items():
    pairs = {"minus_counts": counts} | ({} if name == base else {"minus_base": scores[base]})
    for key, other in pairs.items():
      found = {metric: click_interval(value, other, metric, resamples=resamples)._asdict() for metric in METRICS}
      record[key][name] = found
  return record


def wanted_events(task: ClickTask, split: int, information: ClickInformation) -> dict[str, np.ndarray]:
  """Returns what `search_quality` asks of any search, over the candidates of a split.

  label: of each candidate. real: [B, N] False on padding. relevance: [B, N] planted truth, 0 where there is none. gain:
  [B, N] of the published measure, 0 for candidates that the counts do not support. supported: those that they do.

  Args:
    task: of a run.
    split: 1 validation, 2 test.
    information: from `count_information`.
  """
  truth = click_truth(task.data)

  def columns(batch):
    supported = information.is_supported(batch)
    gain = np.zeros(batch.history_item.shape)
    gain[supported] = information.gain(jax.tree.map(lambda x: x[supported], batch))
    relevance = np.zeros(gain.shape) if truth is None else truth.relevance(batch)
    real = batch.history_item > 0
    return {"label": batch.label, "real": real, "supported": supported, "gain": gain, "relevance": relevance}

  return _of_all_batches(columns, task, split)


def search_quality(
  task: ClickTask, variables: Mapping[str, Any] | None, split: int, wanted: Mapping[str, np.ndarray]
) -> dict[str, float | int]:
  """Returns NDCG@20 of what a model finds in the histories of a split, by gain.

  "planted": the truth, where the data are planted; "planted_clicked": of clicked candidates. "information": the
  published measure, of scores without items, over the "information_rows" candidates that the counts support;
  "information_all_fields": of the scores with items. What has no value, for want of rows or of scores, is left out.

  Args:
    task: of a run.
    variables: of its model; None: the order of time.
    split: 1 validation, 2 test.
    wanted: from `wanted_events`, of the same candidates.
  """
  search = jax.jit(_search_of(task.model))
  by_model = functools.partial(_by_model, task.model, search, variables)
  found = _of_all_batches(_by_time if variables is None else by_model, task, split)
  supported = wanted["supported"]
  result: dict[str, float | int] = {"information_rows": int(supported.sum())}
  if not found:
    return result
  measures = {
    "planted": ("score", "relevance", slice(None)),
    "planted_clicked": ("score", "relevance", wanted["label"] > 0.5),
    "information": ("without_items", "gain", supported),
    "information_all_fields": ("score", "gain", supported),
  }
  for name, (score, gain, rows) in measures.items():
    if (wanted[gain][rows] > 0).any():
      arrays = found[score][rows], wanted[gain][rows], wanted["real"][rows]
      result[name] = search_ndcg(*arrays, SEARCHED, may_find=found["may_find"][rows])
  return result


def _of_all_batches(columns, task, split) -> dict[str, np.ndarray]:
  """Returns the columns that a function makes of each batch of a split, each in one piece."""
  parts = [columns(batch) for batch in held_out_candidates(task.examples, split, task.config.eval.batch_size)]
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _by_time(batch: CandidateBatch) -> dict[str, np.ndarray]:
  score = -batch.history_age.astype(np.float32)
  return {"score": score, "without_items": score, "may_find": batch.history_item > 0}


def _by_model(model, search, variables, batch: CandidateBatch) -> dict[str, np.ndarray]:
  """Returns scores, scores without items, and the events that the search may find; {} without scores."""
  output = search(variables, batch)
  if output is None:
    return {}
  score, kept = map(np.asarray, output)
  bare = np.asarray(search(without_items(variables), batch)[0]) if model.score == "dot" else score
  # A search by scores ranks the whole history; one by another rule finds what it keeps, whatever the scores.
  may_find = batch.history_item > 0 if model.search == "top_k" else kept
  return {"score": score, "without_items": bare, "may_find": may_find}


def _search_of(model):
  def search(variables, batch):
    output = model.apply(variables, batch, deterministic=True)
    return None if output.score is None else (output.score, output.kept)

  return search


def _variables(loaded: LoadedRun) -> dict[str, Any]:
  return {"params": loaded.params, **loaded.state.model_state}


def _scores(loaded: Sequence[LoadedRun], split) -> tuple[ClickScores, list[dict[str, float | int]]]:
  found = []
  for run in loaded:
    mesh = parallel.make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])
    found.append(run.task.predictions(run.state, split, mesh))
  first = found[0]
  for other in found[1:]:
    if not (np.array_equal(other.user, first.user) and np.array_equal(other.label, first.label)):
      raise ValueError("the seeds of a model have other candidates: give them the same config.data.held_out_seed")
  logit: Float[np.ndarray, "S B"] = np.stack([one.logit for one in found])
  return ClickScores(first.user, first.label, logit), [click_metrics(*one) for one in found]


def _counts(task, split, like: ClickScores, record) -> ClickScores:
  """Adds the metrics of the baselines to the record, and returns the scores of the one that reads all counts."""
  batches = held_out_candidates(task.examples, split, task.config.eval.batch_size)
  category = np.concatenate([batch.category for batch in batches])
  found = count_baselines(task.examples, split)
  for name, logit in found.items():
    record[name] = click_metrics(logit, like.label, like.user, category)
  return ClickScores(like.user, like.label, found[COUNTS][None])
