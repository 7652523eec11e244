"""Click-through ranking of candidates over long histories, in two stages: search for K events, then aggregate them.

`ClickThroughRanker` implements every model below; `VARIANTS` maps each name to the fields that it sets.

| name | tables | score | search |
|---|---|---|---|
| dare | one for attention, one for representation | dot product | K best |
| twin | one for both | dot product | K best |
| twin_projection | one, with linear maps for each role and side | dot product | K best |
| twin_projection_small | the same; the maps start from N(0, .01^2), as published | dot product | K best |
| twin_3e | three: for attention one for each side | dot product | K best |
| twin_4e | four: one for each role and side | dot product | K best |
| twin_without_tr | one; the head has no target-aware representation | dot product | K best |
| twin_hard | one | dot product | the latest K, those of the candidate's category first |
| twin_hard_item | one | dot product of item and age, without the category | as twin_hard |
| twin_latest | one | dot product | the latest K |
| twin_category_only | one | dot product | the latest K of the candidate's category, no others |
| din | one, no ages | small network | K best |
| eta | one | dot product | the K nearest by Hamming distance |
| sdim | one | none | hash buckets |

Source: DARE, arXiv 2410.02604; its public code for the head's inputs, the auxiliary head, hard search and the form of
  DIN; hard search without other categories: SIM, arXiv 2006.05639; ETA, arXiv 2108.04468; SDIM, arXiv 2205.10249.
Choice: DARE's public code omits ETA and SDIM. Here ETA has the same auxiliary head as the others, on the softmax over
  the whole history; SDIM has no scores and therefore no auxiliary head.
Choice: one logit, the log-odds of a click, replaces two whose difference it is. Tables start from N(0, .01^2) as
  published, unless `init_scale` says otherwise; other parameters start as in Flax, the batch norm's scale at 1 and
  PReLU's slope at .1 (published: all N(0, .01^2)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrec.batches import AnyArray, CandidateBatch, PackedCandidates
from jaxrec.layers.ctr import lsh, packed_history
from jaxrec.layers.ctr import target_attention as attention
from jaxrec.layers.ctr.batch_norm import BatchNorm
from jaxrec.layers.ctr.decoupled import DecoupledEmbedding, FieldWidths
from jaxrec.models.fields import check_fields
from pallas_kernels.integers import as_arrays, as_integers

SEARCHES = ("top_k", "latest", "category", "category_only", "hamming", "buckets")
SCORES = ("dot", "network")
HASHED = ("hamming", "buckets")

# Name -> fields of `ClickThroughRanker` that it sets.
VARIANTS: dict[str, dict] = {
  "dare": {"tables": "decoupled"},
  "twin": {"tables": "shared"},
  "twin_projection": {"tables": "shared", "projection": "per_field"},
  "twin_projection_small": {"tables": "shared", "projection": "per_field", "projection_init_scale": 0.01},
  "twin_3e": {"tables": "three"},
  "twin_4e": {"tables": "four"},
  "twin_without_tr": {"tables": "shared", "features": "pair"},
  "twin_hard": {"tables": "shared", "search": "category"},
  "twin_hard_item": {"tables": "shared", "search": "category", "category_in_score": False},
  "twin_latest": {"tables": "shared", "search": "latest"},
  "twin_category_only": {"tables": "shared", "search": "category_only"},
  "din": {"tables": "shared", "score": "network", "use_age": False},
  "eta": {"tables": "shared", "search": "hamming"},
  "sdim": {"tables": "shared", "search": "buckets", "auxiliary": False},
}


def build(config: Mapping, *, num_items: int, num_categories: int) -> ClickThroughRanker:
  """Returns the ranker `config["name"]`, with the other entries of `config` as its fields.

  Args:
    config: "name" and fields of `ClickThroughRanker`.
    num_items: V.
    num_categories: C.

  Raises:
    ValueError: an unknown name or field, or one that the name sets, with the known ones; a value of another type.

  >>> build({"name": "twin", "width": 8}, num_items=9, num_categories=3).tables
  'shared'
  """
  check_options(config)
  options = dict(config)
  name = options.pop("name")
  return ClickThroughRanker(num_items=num_items, num_categories=num_categories, **VARIANTS[name], **options)


def check_options(config: Mapping) -> None:
  """Raises unless a config names a variant and has fields that it leaves free.

  Raises:
    ValueError: as of `build`.
  """
  name = config.get("name")
  if name not in VARIANTS:
    raise ValueError(f"model {name!r} is not one of {sorted(VARIANTS)}")
  check_fields(f"model {name!r}", ClickThroughRanker, config, VARIANTS[name])


@flax.struct.dataclass
class CandidateOutput:
  """The outputs of a ranker for a batch of candidates.

  logit: log-odds of a click.
  auxiliary_logit: log-odds computed from the whole history, an extra objective in training; None without that head.
  score: score of each event; None if the model has no scores. That of padding, without vectors, is never read.
  kept: the events that the search selected.
  features: the inputs of the click head.
  """

  logit: Float[Array, " B"]
  auxiliary_logit: Float[Array, " B"] | None
  score: Float[Array, "B N"] | None = None
  kept: Bool[Array, "B N"] | None = None
  features: Float[Array, "B F"] | None = None


class ClickThroughRanker(nn.Module):
  """Log-odds that a candidate is clicked, given its user's history.

  num_items, num_categories: ids are 1..V and 1..C; 0 is padding.
  width: embedding width of item, category and age: one number for all (an age that is added: twice that), or three.
  attention_width: the same for attention, if it has its own tables; None: `width`.
  max_age: older events have the age `max_age`.
  use_age: False: events have no age.
  age_mode: "concat" or "add"; see `DecoupledEmbedding`. With "add" a score is one product, `<q, k> / sqrt(d)`.
  tables, projection: see `DecoupledEmbedding`.
  score: "dot" or "network" (DIN).
  category_in_score: False: scores are products of item and age; a search by category has used the category already.
  search: "top_k": the K best scores; "latest": the latest K; "category": the latest K of the candidate's category, and
    where there are fewer, the latest others too; "category_only": no others; "hamming": the K nearest by hashes (ETA);
    "buckets": events that share a hash with the candidate (SDIM).
  top_k: K.
  features: inputs of the click head; see `target_aware_features`.
  auxiliary: add an auxiliary head that reads the whole history instead of the selected events; with
    search="category" these, as published.
  hidden, auxiliary_hidden: widths of the hidden layers of the heads.
  num_bits, bits_per_bucket, hash_seed: hashes of "hamming" and "buckets".
  batch_norm: False: the heads have no batch norm, as in the published code if a batch is one row.
  evaluation_norm: "running" or "batch"; see `BatchNorm`.
  init_scale: standard deviation of the initial tables. Scores are products of two rows, so attention starts to learn
    only after the tables have grown: with few steps a start at .01 is a model without attention.
  attention_init_scale, projection_init_scale: see `DecoupledEmbedding`.

  Raises:
    ValueError: from `init`, an unknown option, or options that contradict each other.

  >>> model = ClickThroughRanker(num_items=9, num_categories=3, width=4, top_k=2, hidden=(8,), auxiliary_hidden=(8,))
  >>> two = jnp.array([1, 2])
  >>> history, age = jnp.array([[0, 5, 3], [7, 1, 9]]), jnp.array([[0, 2, 1], [3, 2, 1]])
  >>> batch = CandidateBatch(history_item=history, history_category=jnp.minimum(history, 3), history_age=age,
  ...   item=two, category=two, label=jnp.array([1.0, 0.0]), user_id=two)
  >>> output, variables = model.init_with_output(jax.random.key(0), batch)
  >>> output.logit.shape, output.kept.sum(axis=1).tolist(), sorted(variables)
  ((2,), [2, 2], ['batch_stats', 'params'])
  """

  num_items: int
  num_categories: int
  width: int | tuple[int, int, int] = 16
  attention_width: int | tuple[int, int, int] | None = None
  max_age: int = 200
  use_age: bool = True
  tables: str = "decoupled"
  projection: str = "none"
  score: str = "dot"
  search: str = "top_k"
  top_k: int = 20
  features: str = "all"
  auxiliary: bool = True
  hidden: tuple[int, ...] = (200, 80)
  auxiliary_hidden: tuple[int, ...] = (200,)
  num_bits: int = 48
  bits_per_bucket: int = 3
  hash_seed: int = 0
  evaluation_norm: str = "running"
  init_scale: float = 0.01
  batch_norm: bool = True
  age_mode: str = "concat"
  attention_init_scale: float | None = None
  projection_init_scale: float | None = None
  category_in_score: bool = True

  def setup(self):
    if self.search not in SEARCHES or self.score not in SCORES:
      raise ValueError(f"{self.search=} must be one of {SEARCHES} and {self.score=} one of {SCORES}")
    if self.search == "buckets" and self.auxiliary:
      raise ValueError("search='buckets' has no scores for an auxiliary head: set auxiliary=False")
    if not self.category_in_score and (self.score != "dot" or self.age_mode != "concat"):
      raise ValueError(f"{self.category_in_score=} needs score='dot' and age_mode='concat', where fields are apart")
    self.embedding = DecoupledEmbedding(
      self.num_items, self.num_categories, self._widths(self.width),
      None if self.attention_width is None else self._widths(self.attention_width),
      self.tables, self.projection, self.max_age, self.init_scale, self.age_mode, self.attention_init_scale,
      self.projection_init_scale,
    )  # fmt: skip
    self.head = ClickHead(tuple(self.hidden), self.evaluation_norm, self.batch_norm)
    if self.auxiliary:
      self.auxiliary_head = ClickHead(tuple(self.auxiliary_hidden), self.evaluation_norm, self.batch_norm)
    if self.score == "network":
      self.attention_unit = attention.AttentionUnit()

  def __call__(self, batch: CandidateBatch | PackedCandidates, deterministic: bool = True) -> CandidateOutput:
    """Returns the outputs for each candidate; of packed ones, those of a row one after another.

    Args:
      batch: candidates with their histories. Packed ones have the same outputs; where scores are products of fields
        that are apart, the events of a row are read once, else a history for each candidate is made of them.
      deterministic: False in training: batch norm uses batch statistics and updates "batch_stats", which must be
        mutable.
    """
    batch = as_arrays("batch", batch)  # Data pipelines make NumPy arrays.
    if isinstance(batch, PackedCandidates):
      if self._shares_events:
        return self._of_packed(batch, deterministic)
      batch = batch.unpacked()
    q, u = self.embedding(batch.item, batch.category, jnp.zeros_like(batch.item), side="target")  # [B, M]
    k, v = self.embedding(batch.history_item, batch.history_category, batch.history_age)  # [B, N, M]
    k, v = (jnp.where(self.has_vectors(batch)[..., None], x, 0) for x in (k, v))
    score = None if self.search == "buckets" else self.scores(q, k)
    event_bits = lsh.hash_bits(k, self._normals(k)) if self.search in HASHED else None
    return self._output(batch, q, u, score, event_bits, lambda w: attention.aggregate(w, v), deterministic)

  def _of_packed(self, batch: PackedCandidates, deterministic: bool) -> CandidateOutput:
    """Returns the outputs for candidates that share the events of their row; see `jaxrec.layers.ctr.packed_history`."""
    q, u = self.embedding(batch.item, batch.category, jnp.zeros_like(batch.item), side="target")  # [B, P, M]
    k, v = self.embedding(batch.history_item, batch.history_category, jnp.zeros_like(batch.history_item))  # [B, S, M]
    ages = jnp.arange(batch.history_length, 0, -1, dtype=jnp.int32)
    k_age, v_age = self.embedding(jnp.zeros_like(ages), jnp.zeros_like(ages), ages)  # [N, M]
    k, v = (jnp.where((batch.history_item != 0)[..., None], x, 0) for x in (k, v))
    end, num_users, score, event_bits = batch.candidate_end(), q.shape[0], None, None
    if self.score == "network":
      score = packed_history.windows(self.attention_unit(q, k), end, batch.history_length)  # [B, P, N]
    elif self.search != "buckets":
      query = attention.scaled_query(self._scored(q), self._age_part)
      score = packed_history.packed_scores(query, k, k_age, end, self._age_part)
    if self.search in HASHED:
      products = packed_history.packed_products(self._normals(k), k, k_age, end, self._age_part)  # [B, P, N, K]
      event_bits = products.reshape(-1, *products.shape[2:]) > 0

    def pooled(weights):  # [B P, ..., N] -> [B P, ..., M]
      of_row = weights.reshape(num_users, -1, batch.history_length)
      of_row_end = jnp.repeat(end, of_row.shape[1] // end.shape[1], axis=1)
      found = packed_history.packed_sum(of_row, v, v_age, of_row_end, self._widths(self.width).age)
      return found.reshape(*weights.shape[:-1], -1)

    q, u = (x.reshape(-1, x.shape[-1]) for x in (q, u))
    score = None if score is None else score.reshape(-1, batch.history_length)
    return self._output(batch.unpacked(), q, u, score, event_bits, pooled, deterministic)

  def _output(self, batch: CandidateBatch, q, u, score, event_bits, pooled, deterministic) -> CandidateOutput:
    """Returns what the search finds and the outputs of the heads; `pooled` sums the history's vectors with weights."""
    is_real = batch.history_item != 0
    if self.search == "buckets":
      in_bucket = lsh.same_bucket(lsh.hash_bits(q, self._normals(q)), event_bits, self.bits_per_bucket)
      in_bucket &= is_real[:, None]  # [B, G, N]
      kept, found = in_bucket.any(axis=1), lsh.mean_of_buckets(pooled(in_bucket.astype(u.dtype)))
    else:
      searched = score
      if self.search == "hamming":
        searched = lsh.nearness(lsh.hamming_distance(lsh.hash_bits(q, self._normals(q)), event_bits))
      kept = self.find(searched, batch)
      found = pooled(attention.masked_softmax(score, kept))
    features = attention.target_aware_features(u, found, self.features)
    auxiliary_logit = None
    if self.auxiliary:
      seen = kept if self.search == "category" else is_real
      whole = attention.target_aware_features(u, pooled(attention.masked_softmax(score, seen)), self.features)
      auxiliary_logit = self.auxiliary_head(whole, deterministic)
    return CandidateOutput(self.head(features, deterministic), auxiliary_logit, score, kept, features)

  @property
  def _shares_events(self) -> bool:
    """Whether what is made of an event's vector can be made of its fields, whose age alone depends on the candidate."""
    is_apart = self.age_mode == "concat" and self.projection != "joint"
    return is_apart and not (self.score == "network" and self.use_age)  # A network mixes them.

  def has_vectors(self, batch: CandidateBatch) -> Bool[Array, "B N"]:
    """Returns which events have vectors; those of padding are zeros, because a weight of 0 times NaN would be NaN."""
    return batch.history_item != 0

  def scores(self, q: Float[Array, "B M"], k: Float[Array, "B N M"]) -> Float[Array, "B N"]:
    """Returns the score of each event, including padding, for its candidate."""
    if self.score == "network":
      return self.attention_unit(q, k)
    return attention.target_scores(self._scored(q), k, self._age_part)

  def find(self, score: Float[Array, "B N"], batch: CandidateBatch) -> Bool[Array, "B N"]:
    """Returns which events the search keeps, those with the best scores unless a rule chooses; never padding."""
    may_keep = batch.history_item != 0
    if self.search == "latest":
      score = jnp.broadcast_to(jnp.arange(score.shape[1], dtype=score.dtype)[None], score.shape)
    if self.search in ("category", "category_only"):
      score, is_same = attention.category_preference(batch.history_category, batch.category)
      may_keep &= is_same | (self.search == "category")
    return attention.top_k_mask(jax.lax.stop_gradient(score), may_keep, self.top_k)

  def search_queries(self, item: Int[AnyArray, " B"], category: Int[AnyArray, " B"]) -> Float[Array, "B M"]:
    """Returns vectors of candidates whose dot products with `search_keys` are the scores.

    `jaxrec.serving.history_search` uses them.

    Raises:
      ValueError: the scores of this model are not dot products.
    """
    self._check_scores()
    item, category = as_integers("item", item), as_integers("category", category)
    q = self.embedding.attention_vectors(item, category, jnp.zeros_like(item), side="target")
    return attention.scaled_query(self._scored(q), self._age_part)

  def search_keys(
    self, item: Int[AnyArray, " N"], category: Int[AnyArray, " N"], age: Int[AnyArray, " N"]
  ) -> Float[Array, "N M"]:
    """Returns the vectors of a history that a search reads; they do not depend on the candidate and can be cached.

    Raises:
      ValueError: the scores of this model are not dot products.
    """
    self._check_scores()
    ids = {"item": item, "category": category, "age": age}
    return self.embedding.attention_vectors(*(as_integers(name, x) for name, x in ids.items()))

  @property
  def _age_part(self) -> int:
    """How many of the last entries of an attention vector are the age's alone."""
    widths = self._widths(self.width if self.attention_width is None else self.attention_width)
    return widths.age if self.age_mode == "concat" else 0

  def _scored(self, q: Float[Array, "... M"]) -> Float[Array, "... M"]:
    """Returns a candidate's vector with 0 for a category that is not scored; then sqrt(d) is that of the item alone."""
    if self.category_in_score:
      return q
    item, category, age = self._widths(self.width if self.attention_width is None else self.attention_width)
    factors = [math.sqrt((item + category) / item)] * item + [0.0] * category + [1.0] * age
    return q * jnp.asarray(factors, q.dtype).reshape(*(1,) * (q.ndim - 1), -1)

  def _widths(self, width) -> FieldWidths:
    if isinstance(width, int):
      width = (width, width, 2 * width if self.age_mode == "add" else width)
    item, category, age = width
    return FieldWidths(item, category, age if self.use_age else 0)

  def _check_scores(self):
    if self.score != "dot" or self.search == "buckets":
      raise ValueError(f"{self.score=} with {self.search=} has no scores that are dot products of cached vectors")

  def _normals(self, x):
    return lsh.hyperplanes(x.shape[-1], self.num_bits, self.hash_seed)


class ClickHead(nn.Module):
  """Batch norm, if any, hidden layers with PReLU (one slope per layer), and the log-odds of a click.

  >>> head, x = ClickHead(hidden=(4,), evaluation_norm="running"), jnp.ones((3, 2))
  >>> logit, variables = head.init_with_output(jax.random.key(0), x, deterministic=True)
  >>> logit.shape
  (3,)
  """

  hidden: tuple[int, ...]
  evaluation_norm: str
  batch_norm: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "B F"], deterministic: bool) -> Float[Array, " B"]:
    if self.batch_norm:
      x = BatchNorm(self.evaluation_norm, name="norm")(x, deterministic)
    for i, width in enumerate(self.hidden):
      x = nn.Dense(width, name=f"hidden_{i}")(x)
      x = nn.PReLU(negative_slope_init=0.1, name=f"activation_{i}")(x)
    return nn.Dense(1, name="output")(x)[:, 0]
