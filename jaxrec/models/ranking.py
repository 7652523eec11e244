"""Generative ranking: HSTU over events with actions, which predicts what a user will do with each candidate.

Source: Zhai et al. 2024, arXiv 2402.17152, section 2.2 (ranking as transduction), and its authors' production modules.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrec.batches import ACTION, CANDIDATE, EVENT, ActionType, RankingBatch, as_ranking_batch
from jaxrec.layers.action_tokens import ActionEmbedding, ActionHeads
from jaxrec.layers.cache import CachedRows, Prefill
from jaxrec.layers.context import token_context
from jaxrec.layers.hstu import HSTULayer
from jaxrec.layers.item_embedding import ItemEmbedding, dropout
from jaxrec.layers.norm import layer_norm
from jaxrec.layers.stu import STULayer
from jaxrec.models.fields import check_fields
from pallas_kernels import IntervalMask
from pallas_kernels.integers import as_integers

LAYERS = ("hstu", "stu")
_NUM_KINDS = 5


class RankingModel(nn.Module):
  """Encodes the tokens of histories and predicts the actions of CANDIDATE tokens; see `jaxrec.batches.RankingBatch`.

  Both layouts of tokens are the same model; what a token reads is in the batch. Times are seconds.

  num_items: V.
  actions: the actions that are read.
  heads: the actions that are predicted.
  features: item features that the model reads in addition to the id, as pairs of a name and a number of categories.
  num_context_ids: rows of the table of context features, besides padding.
  width: M.
  max_positions: rows of the position table; later positions share the last row.
  layer: "hstu" (time and position bias) or "stu" (neither).
  num_layers: 0: a candidate reads nothing but its own item, which is the baseline without history.
  num_heads, head_width, value_width, attention_length, time_bias, position_bias, dropout, implementation: of the
    layers; `attention_length` divides the silu weights and is, of "hstu", the reach of the position bias.
  window: tokens before a token that it reads, besides the first `global_tokens` of its history; 0: all of them.
  head_hidden: width of the hidden layer of each head; 0: none.
  id_dropout: share of the items whose row of the item table is left out in a training step, wherever they occur, so
    that features and actions alone learn to predict; the rows of rare items are learned by heart otherwise.

  Source: semi-local attention (`window` and `global_tokens`): ULTRA-HSTU, arXiv 2602.16986. `id_dropout`: Volkovs, Yu,
  Poutanen 2017, "DropoutNet: Addressing Cold Start in Recommender Systems", NeurIPS, section 4.1.

  Raises:
    ValueError: from `init`, an unknown layer, a negative window, or a share outside [0, 1).

  >>> from jaxrec.batches import ActionType
  >>> like = ActionType("like", "binary")
  >>> RankingModel(num_items=9, actions=(like,), heads=(like,), width=8, max_positions=4).layer
  'hstu'
  """

  num_items: int
  actions: tuple[ActionType, ...]
  heads: tuple[ActionType, ...]
  width: int
  max_positions: int
  features: tuple[tuple[str, int], ...] = ()
  num_context_ids: int = 0
  layer: str = "hstu"
  num_layers: int = 2
  num_heads: int = 2
  head_width: int = 16
  value_width: int = 16
  attention_length: int = 200
  time_bias: bool = True
  position_bias: bool = True
  window: int = 0
  global_tokens: int = 0
  head_hidden: int = 64
  id_dropout: float = 0.0
  input_dropout: float = 0.0
  dropout: float = 0.0
  implementation: str = "auto"
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    if self.layer not in LAYERS:
      raise ValueError(f"{self.layer=} is not one of {LAYERS}")
    if not 0 <= self.id_dropout < 1:
      raise ValueError(f"{self.id_dropout=} is not in [0, 1)")
    if min(self.window, self.global_tokens) < 0 or (self.global_tokens and not self.window):
      raise ValueError(f"{self.window=} and {self.global_tokens=} must not be negative, and the second needs the first")
    table = lambda rows: ItemEmbedding(rows, self.width, False, self.dtype)  # noqa: E731
    self.items, self.kinds, self.positions = table(self.num_items + 1), table(_NUM_KINDS), table(self.max_positions)
    self.item_features = {name: table(size + 1) for name, size in self.features}
    if self.num_context_ids:
      self.context = table(self.num_context_ids + 1)
    self.action_embedding = ActionEmbedding(self.actions, self.width, self.dtype)
    self.layers = [self._build_layer() for _ in range(self.num_layers)]
    self.action_heads = ActionHeads(self.heads, self.head_hidden)

  def __call__(self, batch: RankingBatch, deterministic: bool = True) -> dict[str, Array]:
    """Returns the predictions of every token, of which those of CANDIDATE tokens mean something.

    Log-odds `[B, N]` of binary actions, logits `[B, N, K]` of multi_class actions, and `[B, N]` of regression actions
    in standard deviations from the mean.
    """
    return self.predict(self.encode(batch, deterministic))

  def encode(
    self,
    batch: RankingBatch,
    deterministic: bool = True,
    slot: Prefill | CachedRows | None = None,
    key_position: Int[Array, "B L"] | None = None,
    key_time: Int[Array, "B L"] | None = None,
  ) -> Float[Array, "B N M"]:
    """Returns the activations that the heads share, zeros on padding.

    Args:
      batch: tokens.
      deterministic: True: no dropout.
      slot: keeps keys and values of whole histories, or reads those; None: neither. With `CachedRows` `batch.start` and
        `batch.end` count the keys of the cache.
      key_position, key_time: positions and times of the keys of the cache, with those of the batch in it.
    """
    batch = as_ranking_batch(batch)
    is_real = batch.kind != 0
    own_key = as_integers("slot.index", slot.index) if isinstance(slot, CachedRows) else None
    mask = interval_mask(batch.start, batch.end, is_real, self.window, self.global_tokens, own_key)
    context = token_context(mask, batch.position, batch.timestamp, is_real, key_position, key_time, slot)
    x = dropout(self, self.embed(batch, deterministic), self.input_dropout, deterministic)
    for layer in self.layers:
      x = jnp.where(is_real[..., None], layer(x, context, deterministic), 0)
    return jnp.where(is_real[..., None], layer_norm(x), 0)

  def predict_cached(
    self,
    batch: RankingBatch,
    slot: CachedRows,
    key_position: Int[Array, "B L"],
    key_time: Int[Array, "B L"],
  ) -> dict[str, Array]:
    """Returns predictions `[B, N]` (see `predict`, `encode`) of tokens with histories in the collection "cache"."""
    return self.predict(self.encode(batch, True, slot, key_position, key_time))

  def predict(self, x: Float[Array, "B N M"]) -> dict[str, Array]:
    """Returns the predictions from shared activations, by action: `[B, N]`, of a multi_class action `[B, N, K]`."""
    return self.action_heads(x)

  def embed(self, batch: RankingBatch, deterministic: bool = True) -> Float[Array, "B N M"]:
    """Returns the embedded tokens, zeros on padding; actions of CANDIDATE tokens are not read."""
    kind = batch.kind
    has_item = ((kind == EVENT) | (kind == CANDIDATE))[..., None]
    has_actions = ((kind == EVENT) | (kind == ACTION))[..., None]
    item = self.items(batch.item_id)
    if self.id_dropout and not deterministic:
      dropped = jax.random.bernoulli(self.make_rng("dropout"), self.id_dropout, (self.num_items + 1,))
      item = jnp.where(dropped[batch.item_id][..., None], 0, item)
    for name, table in self.item_features.items():
      item = item + table(batch.features[name])
    x = jnp.where(has_item, item, 0) + jnp.where(has_actions, self.action_embedding(batch.actions), 0)
    if self.num_context_ids:
      x = x + jnp.where((batch.context_id != 0)[..., None], self.context(batch.context_id), 0)
    x = (x + self.kinds(kind)) * math.sqrt(self.width) + self.positions(batch.position)
    return jnp.where((kind != 0)[..., None], x, 0)

  def _build_layer(self) -> nn.Module:
    options = dict(
      num_heads=self.num_heads, head_width=self.head_width, value_width=self.value_width, dropout=self.dropout,
      implementation=self.implementation, dtype=self.dtype,
    )  # fmt: skip
    if self.layer == "stu":
      return STULayer(normalizer=self.attention_length, **options)
    bias = {"time_bias": self.time_bias, "position_bias": self.position_bias}
    return HSTULayer(attention_length=self.attention_length, **bias, **options)


def interval_mask(
  start: Int[Array, "B N"],
  end: Int[Array, "B N"],
  is_real: Bool[Array, "B N"],
  window: int = 0,
  global_tokens: int = 0,
  own_key: Int[Array, "B N"] | None = None,
) -> IntervalMask:
  """Returns the mask of tokens that read the keys `start..end - 1`, or only the first and last of them, and their own.

  Args:
    start, end: intervals.
    is_real: tokens that read anything.
    window: keys before `end` that are read; 0: all.
    global_tokens: keys from `start` on that are read as well.
    own_key: index of each token's own key; None: its own index.

  >>> index = jnp.arange(5)[None]
  >>> mask = interval_mask(jnp.zeros_like(index), index, index >= 0, window=1, global_tokens=1)
  >>> mask.to_dense(5)[0, 4].astype(int).tolist()
  [1, 0, 0, 1, 1]
  """
  end = jnp.where(is_real, end, start)
  none = jnp.zeros_like(start)
  if not window:
    return IntervalMask(start, end, none, none, is_real, own_key)
  end_a = jnp.minimum(start + global_tokens, end)
  return IntervalMask(start, end_a, jnp.maximum(end_a, end - window), end, is_real, own_key)


def build(config: Mapping, **sizes) -> RankingModel:
  """Returns the model of a config's fields, and sizes and actions that the data give.

  Raises:
    ValueError: an unknown field, with the known ones, or a value of another type.

  >>> like = ActionType("like", "binary")
  >>> build({"width": 8, "num_layers": 1}, num_items=9, actions=(like,), heads=(like,), max_positions=4).num_layers
  1
  """
  check_options(config, sizes)
  return RankingModel(**sizes, **{name: value for name, value in config.items() if name != "name"})


def check_options(config: Mapping, sizes: Collection[str] = ()) -> None:
  """Raises unless a config has fields of the model, none of which are among the sizes.

  Raises:
    ValueError: as of `build`.
  """
  check_fields("the ranking model", RankingModel, config, sizes)
