"""Analyses of click-through models: quality of the search, conflicting gradients, attention, discriminability.

Functions return numbers; `jaxrec.analysis.ctr_plots` draws them.

Source: "Long-Sequence Recommendation Models Need Decoupled Embeddings" (arXiv 2410.02604), sections 2 and 5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from jaxrec.batches import AnyArray, CandidateBatch
from jaxrec.objectives.click import ctr_loss

ROLES = ("attention", "representation")


def search_ndcg(
  score: Float[AnyArray, "B N"],
  relevance: Float[AnyArray, "B N"],
  is_real: Bool[AnyArray, "B N"],
  k: int = 20,
  may_find: Bool[AnyArray, "B N"] | None = None,
) -> float:
  """Returns the mean NDCG@K of the events ranked by score; rows without a relevant event are excluded.

  Args:
    score: score of each event for the candidate of its row.
    relevance: nonnegative gain of each event: the truth (`InterestTruth.relevance`), or mutual information.
    is_real: False on padding, which is never found.
    k: number of events that the search returns.
    may_find: events that it can return, whatever their scores; None: all real ones.

  Raises:
    ValueError: no row has a relevant event.

  >>> relevance = np.array([[0.0, 1.0, 0.0, 0.5]])
  >>> real = np.array([[False, True, True, True]])
  >>> round(search_ndcg(np.array([[9.0, 1.0, 2.0, 3.0]]), relevance, real, k=3), 4)  # .5 + 1 / 2 to 1 + .5 / log2(3)
  0.7602
  """
  relevance, is_real = np.asarray(relevance, np.float64), np.asarray(is_real)
  relevance = np.where(is_real, relevance, 0.0)
  may_find = is_real if may_find is None else is_real & np.asarray(may_find)
  found = np.argsort(np.where(may_find, -np.asarray(score, np.float64), np.inf), axis=1, kind="stable")[:, :k]  # [B, K]
  discount = 1 / np.log2(np.arange(found.shape[1]) + 2)
  gained = np.take_along_axis(np.where(may_find, relevance, 0.0), found, axis=1) @ discount
  ideal = -np.sort(-relevance, axis=1)[:, :k] @ discount
  if not (ideal > 0).any():
    raise ValueError("no row has a relevant event: does the relevance belong to these batches?")
  return float(np.mean(gained[ideal > 0] / ideal[ideal > 0]))


@dataclasses.dataclass(frozen=True)
class RoleGradients:
  """Gradients of a shared table from attention and from representation, over S steps of training.

  norm: [S, 2] mean L2 norm of the rows' gradients from attention and from representation, over rows with a gradient.
  cosine: [S] mean cosine between the two over these rows.
  conflict: [rows] share of the steps in which a row's two gradients conflict (cosine below 0); NaN if never both.
  """

  norm: Float[np.ndarray, "S 2"]
  cosine: Float[np.ndarray, " S"]
  conflict: Float[np.ndarray, " rows"]

  @property
  def ratio(self) -> float:
    """Mean norm of the gradient from representation divided by that from attention."""
    return float(self.norm[:, 1].mean() / self.norm[:, 0].mean())

  @property
  def share_of_steps(self) -> float:
    """Share of the steps whose mean cosine is below 0."""
    return float((self.cosine < 0).mean())


def role_gradients(
  model: nn.Module,
  variables: Mapping[str, Any],
  batches: Iterable[CandidateBatch],
  *,
  learning_rate: float = 1e-2,
  l2: float = 1e-6,
  table: str = "category_table",
) -> RoleGradients:
  """Trains a table that both roles share, as in TWIN, and returns the gradient of each role.

  The shared table is represented by two equal tables: both are updated by the sum of their gradients, so that they stay
  equal.

  Args:
    model: a click-through model with tables="decoupled" (name "dare"), both roles equally wide.
    variables: initial variables; the tables of attention are replaced by those of representation.
    batches: one batch per step.
    learning_rate: learning rate of Adam.
    l2: weight of the L2 penalty.
    table: name of the table to analyze.

  Raises:
    ValueError: a model without tables for each role.

  Source: arXiv 2410.02604, figures 2 and 3.
  """
  variables = {**variables, "params": _tied(variables["params"], lambda _, representation: representation)}
  optimizer = optax.adam(learning_rate)
  opt_state = optimizer.init(variables["params"])

  @jax.jit
  def step(variables, opt_state, batch):
    def loss_of(params):
      output, updated = model.apply(
        {**variables, "params": params}, batch, deterministic=False, mutable=["batch_stats"]
      )
      return ctr_loss(output.logit, output.auxiliary_logit, batch.label, params=params, l2=l2)[0], updated

    gradients, updated = jax.grad(loss_of, has_aux=True)(variables["params"])
    changes, opt_state = optimizer.update(_tied(gradients, jnp.add), opt_state)
    both = [gradients["embedding"][f"lookup_{role}"][table] for role in ROLES]
    return {**variables, **updated, "params": optax.apply_updates(variables["params"], changes)}, opt_state, both

  norms, cosines = [], []
  for batch in batches:
    variables, opt_state, both = step(variables, opt_state, batch)
    norm, cosine = _row_norms_and_cosines(*(np.asarray(gradient, np.float64)[1:] for gradient in both))
    norms.append(norm)
    cosines.append(cosine)
  return _role_gradients(np.array(norms), np.array(cosines))


def mutual_information(
  batches: Iterable[CandidateBatch], target: int, categories: Sequence[int], ages: Sequence[int]
) -> Float[np.ndarray, "categories ages"]:
  """Returns the mutual information, in nats, between a click and the category of the event of each age.

  Args:
    batches: candidates, clicked and not.
    target: category of the candidates that count.
    categories: categories of events.
    ages: ages of events; 1 is the latest.

  Source: arXiv 2410.02604, figure 8.

  Raises:
    ValueError: no candidate of the category.
  """
  counts = np.zeros((len(categories), len(ages), 2, 2))  # Event has the category, candidate was clicked.
  for batch in batches:
    rows = np.asarray(batch.category) == target
    history, clicked = np.asarray(batch.history_category)[rows], np.asarray(batch.label)[rows] > 0.5
    has = history[:, -np.asarray(ages)][:, None] == np.asarray(categories)[:, None]  # [B, categories, ages]
    for i in range(2):
      for j in range(2):
        counts[:, :, i, j] += ((has == bool(i)) & (clicked == bool(j))[:, None, None]).sum(axis=0)
  if not counts.sum():
    raise ValueError(f"no candidate has the category {target=}")
  return table_information(counts)


def table_information(counts: Float[np.ndarray, "*batch I J"]) -> Float[np.ndarray, "*batch"]:
  """Returns the mutual information, in nats, between rows and columns of contingency tables.

  >>> table_information(np.array([[[2.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]])).round(4).tolist()
  [0.6931, 0.0]
  """
  share = counts / counts.sum(axis=(-2, -1), keepdims=True)
  independent = share.sum(axis=-1, keepdims=True) * share.sum(axis=-2, keepdims=True)
  ratio = np.divide(share, independent, out=np.ones_like(share), where=share > 0)
  return np.asarray(np.maximum((share * np.log(ratio)).sum(axis=(-2, -1)), 0.0))


def learned_attention(
  tables: Mapping[str, AnyArray], target: int, categories: Sequence[int], ages: Sequence[int]
) -> Float[np.ndarray, "categories ages"]:
  """Returns the attention of candidates of a category to events of each category and age, summing to 1.

  Without the item's part: a softmax of `<c_t, c_i> / sqrt(d) + <a_0, a_i> / sqrt(d')`.

  Args:
    tables: "category_table" and "age_table" of attention; see `attention_tables`.
    target: category of the candidates.
    categories: categories of events.
    ages: ages of events; 1 is the latest.

  Source: arXiv 2410.02604, figure 8.

  >>> tables = {"category_table": np.array([[0.0], [1.0], [-1.0]]), "age_table": np.zeros((3, 1))}
  >>> learned_attention(tables, 1, [1, 2], [1, 2]).round(3).tolist()
  [[0.44, 0.44], [0.06, 0.06]]
  """
  category, age = (np.asarray(tables[f"{name}_table"], np.float64) for name in ("category", "age"))
  by_category = category[list(categories)] @ category[target] / np.sqrt(category.shape[1])
  by_age = age[list(ages)] @ age[0] / np.sqrt(age.shape[1])
  score = by_category[:, None] + by_age  # [categories, ages]
  weight = np.exp(score - score.max())
  return weight / weight.sum()


def attention_tables(variables: Mapping[str, Any]) -> Mapping[str, AnyArray]:
  """Returns the tables that attention reads: its own (DARE), or the shared ones (TWIN).

  Raises:
    ValueError: a model with separate tables for candidates and events.
  """
  embedding = variables["params"]["embedding"]
  for name in ("lookup_attention", "lookup_shared"):
    if name in embedding:
      return embedding[name]
  raise ValueError(f"the model has the tables {sorted(embedding)}; candidates and events must share one set")


def discriminability(
  features: Float[AnyArray, "B F"], label: Float[AnyArray, " B"], num_clusters: int, *, seed: int = 0, steps: int = 20
) -> float:
  """Returns the mutual information, in nats, between the cluster of a representation and the label.

  Args:
    features: inputs of the model's head.
    label: 0 or 1.
    num_clusters: number of clusters of k-means, initialized with random rows.
    seed: seed of the initialization.
    steps: iterations of k-means.

  Raises:
    ValueError: fewer distinct rows than clusters.

  Source: arXiv 2410.02604, figure 10.
  Choice: k-means over all rows; the published code uses mini-batch k-means.

  >>> features = np.array([[0.0], [0.1], [5.0], [5.1]])
  >>> round(discriminability(features, np.array([0.0, 0.0, 1.0, 1.0]), 2), 4)  # ln 2
  0.6931
  """
  cluster = _k_means(np.asarray(features, np.float64), num_clusters, seed, steps)
  joint = np.zeros((num_clusters, 2))
  np.add.at(joint, (cluster, (np.asarray(label) > 0.5).astype(int)), 1)
  return float(table_information(joint))


def _tied(tree, combine):
  """Replaces both roles' tables in parameters or gradients by `combine(attention's, representation's)`."""
  names = [f"lookup_{role}" for role in ROLES]
  embedding = tree["embedding"]
  if missing := [name for name in names if name not in embedding]:
    raise ValueError(f"the model has no {missing}; pass one with tables='decoupled'")
  tied = jax.tree.map(combine, *(embedding[name] for name in names))
  return {**tree, "embedding": {**embedding, **dict.fromkeys(names, tied)}}


def _row_norms_and_cosines(attention, representation):
  norm = np.stack([np.linalg.norm(g, axis=1) for g in (attention, representation)])  # [2, rows]
  product = norm.prod(axis=0)
  with np.errstate(invalid="ignore", divide="ignore"):
    cosine = np.where(product > 0, (attention * representation).sum(axis=1) / product, np.nan)  # [rows]
  return [values[values > 0].mean() if (values > 0).any() else 0.0 for values in norm], cosine


def _role_gradients(norm, cosine) -> RoleGradients:
  known = ~np.isnan(cosine)  # [S, rows]
  counts = known.sum(axis=0)
  conflict = np.where(counts > 0, (cosine < 0).sum(axis=0) / np.maximum(counts, 1), np.nan)
  return RoleGradients(norm, np.nanmean(cosine, axis=1), conflict)


def _k_means(x, num_clusters, seed, steps) -> Int[np.ndarray, " B"]:
  distinct = np.unique(x, axis=0)
  if len(distinct) < num_clusters:
    raise ValueError(f"{num_clusters=} must be at most the {len(distinct)} distinct rows of features")
  centre = distinct[np.random.default_rng(seed).choice(len(distinct), num_clusters, replace=False)]  # [clusters, F]
  for _ in range(steps):
    nearest = np.argmin((centre**2).sum(axis=1) - 2 * x @ centre.T, axis=1)  # [B]
    size = np.bincount(nearest, minlength=num_clusters)[:, None]
    total = np.zeros_like(centre)
    np.add.at(total, nearest, x)
    centre = np.where(size > 0, total / np.maximum(size, 1), centre)
  return nearest
