"""Ranks and metrics.

`metrics_hstu_*`: over the full catalogue, with best items. `metrics_autocdsr_*`: also among given negatives.
`metrics_dare_*`: AUC, over all rows and by category.
"""

from __future__ import annotations

import jax
import numpy as np

from golden_checks.golden_file import Check, GoldenFile
from jaxrec.evaluation import metrics
from jaxrec.evaluation.catalogue import sampled_target_ranks, target_ranks, top_k_items

LONGEST_LIST = 2500  # the reference looks no further and gives what it does not find the rank after


def check() -> Check:
  return Check(_compute, not_read={"user_max_batch_size": "how many users the reference ranks at a time"})


def autocdsr_check() -> Check:
  return Check(_autocdsr)


def dare_check() -> Check:
  excused = {
    "out/accuracy": "not a metric of ours: the share of probabilities on the right side of one half",
    "out/loss": "the mean of numbers that the file itself holds",
  }
  return Check(_dare, excused, {"ties": "equal scores are ordered by the same rule in every file"})


def _dare(golden: GoldenFile, dtype: type) -> dict:
  del dtype  # AUC is computed in float64 from the float32 scores that the file has
  golden.config.confirm(batches=len(golden.arrays["in/probability"]))
  score = golden.arrays["in/probability"][..., 0].reshape(-1)
  label, category = (golden.arrays[f"in/{name}"].reshape(len(score), -1)[:, 0] for name in ("target", "cid"))
  groups = [category == c for c in np.unique(category) if 0 < label[category == c].sum() < (category == c).sum()]
  by_category = metrics.grouped_auc(in_input_order(score), label, category)
  missing = sum(in_group.sum() * missing_half_step(score[in_group], label[in_group]) for in_group in groups)
  used = by_category.num_rows - by_category.num_rows_skipped
  overall = metrics.auc(in_input_order(score), label) - missing_half_step(score, label)
  return {
    "out/auc": np.array(overall),
    "out/calc_auc_direct": np.array(overall),
    "out/category_average_auc": np.array(by_category.value - missing / used),
    "out/total_val_num": np.array(by_category.num_rows),
    "out/valid_val_num": np.array(used),
  }


def in_input_order(score):
  """Scores without ties: of equal ones the first is the highest, as in the reference; ours counts ties one half."""
  return np.argsort(np.argsort(-score, kind="stable")).astype(np.float64) * -1


def missing_half_step(score, label):
  """How far the reference's AUC lies below: it halves the step of the curve at its last negative."""
  order = np.argsort(-score, kind="stable")
  last_negative = np.flatnonzero(label[order] == 0)[-1]
  return label[order][:last_negative].sum() / label.sum() / (2 * (label == 0).sum())


def _autocdsr(golden: GoldenFile, dtype: type) -> dict:
  """Their ids start at 0, ours at 1. No score is as large as the target's, so ties need no rule."""
  del dtype
  with jax.enable_x64(False):
    inputs = golden.inputs(np.float32)
    vectors, target = np.pad(inputs["table"], ((1, 0), (0, 0))), inputs["labels"] + 1
    if golden.config["sample"]:
      golden.config.confirm(num_negatives=inputs["negative_ids"].shape[1])
      assert inputs["negative_ids"].min() >= golden.config["buffer"]
      ranks = sampled_target_ranks(inputs["query"], vectors, target, inputs["negative_ids"] + 1)
    else:
      golden.config.ignore("num_negatives", "buffer")
      ranks = target_ranks(inputs["query"], vectors, target)
  result = metrics.RankingMetrics.zero(golden.config["top_k"]).update(np.asarray(ranks)).result()
  theirs = {"out/total_sample": result["count"]}
  for k in golden.config["top_k"]:
    theirs |= {f"out/ndcg@{k}": result[f"NDCG@{k}"], f"out/recall@{k}": result[f"HR@{k}"]}
  return {name: np.asarray(value) for name, value in theirs.items()}


def _compute(golden: GoldenFile, dtype: type) -> dict:
  del dtype  # ranks of float32 scores, as the file has no others
  with jax.enable_x64(False):
    return _ranks_and_metrics(golden)


def _ranks_and_metrics(golden: GoldenFile) -> dict:
  inputs, catalogue = golden.inputs(np.float32), golden.arrays["in/all_item_ids"]
  row_of_id = np.zeros(catalogue.max() + 1, np.int32)
  row_of_id[catalogue] = np.arange(1, len(catalogue) + 1)
  vectors = _vectors(golden, catalogue)
  target = row_of_id[inputs["target_ids"][:, 0]]
  seen = row_of_id[inputs["past_ids"]] if golden.config["filter"] else None
  queries = inputs["user_embeddings"]
  results = _ties(queries, vectors, target)
  ranks = np.asarray(target_ranks(queries, vectors, target, seen_items=seen, seen_target="remove"))
  ranks = np.where(ranks > min(LONGEST_LIST, len(catalogue)), LONGEST_LIST + 1, ranks)
  if golden.config["ties"]:  # the reference's order among equal scores is arbitrary, ours counts them against the model
    ranks = np.clip(golden.arrays["out/rank"], results["out/num_greater"] + 1, ranks)
  return results | {"out/rank": ranks} | _best_items(golden, vectors, seen, catalogue) | _averages(golden, ranks)


def _vectors(golden, catalogue):
  vectors = golden.params(np.float32)["item_emb"][catalogue]
  if golden.config["l2_norm"]:
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
  return np.concatenate([np.zeros_like(vectors[:1]), vectors])


def _ties(queries, vectors, target):
  """Ranks count ties against the model, so those of the negated queries tell how many items are strictly better."""
  num_greater = len(vectors) - 1 - np.asarray(target_ranks(-queries, vectors, target))
  rank = np.asarray(target_ranks(queries, vectors, target))
  return {"out/num_greater": num_greater, "out/num_equal_other": rank - 1 - num_greater}


def _best_items(golden, vectors, seen, catalogue):
  results = {}
  for name in [name for name in golden.arrays if name.startswith("out/top_ids_")]:
    scores_name = name.replace("ids", "scores")
    length = golden.arrays[name].shape[1]
    scores, items = top_k_items(golden.inputs(np.float32)["user_embeddings"], vectors, length, seen_items=seen)
    scores = np.asarray(scores)
    tied = (scores[:, :, None] == scores[:, None, :]).sum(axis=-1) > 1  # [B, K]
    tied |= scores == scores[:, -1:] if length < len(catalogue) else False  # perhaps with items after the list
    results[scores_name] = scores
    results[name] = np.ma.array(catalogue[np.asarray(items) - 1], mask=tied & golden.config["ties"])
  return results


def _averages(golden, ranks):
  """Every `out/metric/<name>` and `out/avg/<name>`; `<name>_>=4` is over targets with a rating of at least 4."""
  results = {}
  for name in [name for name in golden.arrays if name.startswith("out/metric/")]:
    metric, _, rating = name.removeprefix("out/metric/").partition("_>=")
    chosen = ranks[golden.arrays["in/target_ratings"][:, 0] >= int(rating)] if rating else ranks
    kind, _, k = metric.partition("@")
    function = {"hr": metrics.hit_rate, "ndcg": metrics.ndcg, "mrr": metrics.mrr}[kind]
    arguments = (int(k),) if k else ()
    results[name] = np.array([function(rank[None], *arguments) for rank in chosen])
    results[name.replace("metric", "avg")] = np.array(function(chosen, *arguments))
  return results
