"""Stage one of click-through ranking, served: the K events of a long history that matter for each of many candidates.

The vectors of a history that attention reads depend on no candidate. They are computed once, kept, and searched for
every candidate of every request until the user does something new. A search costs what these vectors are wide: this is
what a model with its own, narrower tables for attention (`attention_width` of DARE) saves.

Source: DARE, arXiv 2410.02604; approximate search: Chern et al. 2022, arXiv 2206.14286.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.models.ctr import ClickThroughRanker

AnyArray = Array | np.ndarray

TILE = 128  # Candidates scored together: changes speed and memory, never results.
_BLOCK = 16  # Events of which an exact search first reads the largest score alone; they fill a cache line.
_MULTIPLE = 64  # Of places in a cache; powers of two up to it divide them into equal blocks.


@flax.struct.dataclass
class HistoryKeys:
  """What a search reads of a history (a pytree).

  keys: a column for each event, in random order, then columns of padding.
  place: where each event is in the history; -1 for padding.
  """

  keys: Float[Array, "M N"]
  place: Int[Array, " N"]


def history_keys(
  model: ClickThroughRanker,
  variables: Mapping,
  item: Int[AnyArray, " N"],
  category: Int[AnyArray, " N"],
  age: Int[AnyArray, " N"],
) -> HistoryKeys:
  """Returns what to keep of a history, so that it can be searched for any candidate.

  Args:
    model: a ranker whose scores are dot products.
    variables: its parameters.
    item, category, age: the events as in a `CandidateBatch`, oldest first; item 0 is padding. Histories of one length
      share their compiled program.

  Raises:
    ValueError: a model with other scores.
  """
  keys = model.apply(variables, item, category, age, method="search_keys")
  return cached(keys, jnp.asarray(item) != 0)


def cached(keys: Float[Array, "N M"], is_real: Bool[Array, " N"]) -> HistoryKeys:
  """Returns the vectors of events as a search reads them.

  Events are shuffled, always in the same way for the same N: neighbours are alike, and would be in the same block.
  """
  shuffled = jnp.asarray(np.random.default_rng(0).permutation(keys.shape[0]), jnp.int32)
  order = shuffled[jnp.argsort(~is_real[shuffled], stable=True)]  # Padding behind all events.
  place = jnp.where(is_real[order], order, -1)
  padding = -keys.shape[0] % _MULTIPLE
  return HistoryKeys(jnp.pad(keys[order], ((0, padding), (0, 0))).T, jnp.pad(place, (0, padding), constant_values=-1))


def search(
  queries: Float[AnyArray, "B M"], history: HistoryKeys, k: int, recall: float = 1.0
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
  """Returns the k largest scores of each candidate, largest first, and the places of these events in the history.

  Where a history has fewer than k events, the rest of the row has the score -inf and the place -1. Of events with equal
  scores any may come first.

  Args:
    queries: vectors of at least one candidate: `model.apply(variables, item, category, method="search_queries")`.
    history: what `history_keys` returned.
    k: how many events, 1..N.
    recall: 1: the search is exact. Below 1: the share of the k events that is found on average, at least; the history
      is divided into random blocks of which each yields its best event only. On TPUs this is `jax.lax.approx_max_k`.

  Raises:
    ValueError: no candidate; k or recall out of range.

  >>> history = cached(jnp.array([[1.0], [3.0], [2.0]]), jnp.array([True, True, True]))
  >>> scores, places = search(jnp.array([[2.0], [-1.0]]), history, 2)
  >>> scores.tolist(), places.tolist()
  ([[6.0, 4.0], [-1.0, -2.0]], [[1, 2], [0, 2]])
  """
  if not queries.shape[0]:
    raise ValueError(f"{queries.shape=} has no candidate")
  if not 1 <= k <= history.keys.shape[1]:
    raise ValueError(f"{k=} must be between 1 and the {history.keys.shape[1]} places of the history")
  if not 0 < recall <= 1:
    raise ValueError(f"{recall=} must be above 0, and 1 for an exact search")
  return _search(jnp.asarray(queries), history, k, recall)


@functools.partial(jax.jit, static_argnames=("k", "recall"))
def _search(queries, history, k, recall):
  find = exact_top_k if recall == 1 else functools.partial(approximate_top_k, recall=recall)
  count = (history.place >= 0).sum()

  def search_tile(tile):
    scores = jnp.matmul(tile, history.keys, precision=jax.lax.Precision.HIGHEST)  # [tile, N]
    return find(scores, count, k)

  whole = queries.shape[0] // TILE * TILE
  found = []
  if whole:
    tiled = jax.lax.map(search_tile, queries[:whole].reshape(-1, TILE, queries.shape[1]))
    found.append(jax.tree.map(lambda x: x.reshape(whole, k), tiled))
  if whole < queries.shape[0]:
    found.append(search_tile(queries[whole:]))
  scores, columns = jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)  # [B, K]
  return scores, jnp.where(scores > -jnp.inf, history.place[columns], -1)


def exact_top_k(
  scores: Float[Array, "B N"], count: Int[Array, ""], k: int
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
  """As `jax.lax.top_k` of the first `count` columns, and several times as fast on a CPU; -inf where there are fewer.

  The k largest scores lie in the k blocks with the largest maxima. So N / 16 maxima and 16 k scores are looked through
  instead of N scores.
  """
  num_blocks, rest = divmod(scores.shape[1], _BLOCK)
  if rest or num_blocks <= k:
    return tuple(jax.lax.top_k(_without_padding(scores, count), k))
  blocks = scores.reshape(-1, num_blocks, _BLOCK)
  chosen = jax.lax.top_k(block_maxima(blocks, count), k)[1]  # [B, K]
  column = chosen[..., None] * _BLOCK + jnp.arange(_BLOCK)  # [B, K, block]
  candidates = jnp.where(column < count, _blocks_of(blocks, chosen), -jnp.inf)
  best, index = jax.lax.top_k(candidates.reshape(-1, k * _BLOCK), k)  # [B, K]
  return best, jnp.take_along_axis(column.reshape(-1, k * _BLOCK), index, axis=1)


def approximate_top_k(
  scores: Float[Array, "B N"], count: Int[Array, ""], k: int, recall: float
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
  """As `exact_top_k`, but a share `recall` of the k largest, on average, if the columns are in random order.

  Of L blocks, `1 - (k - 1) / 2L` of the k largest scores are on average the largest of their block.

  Choice: `jax.lax.approx_max_k` on TPUs alone; elsewhere it looks through all scores in an order that CPUs are slow at.
  """

  def on_tpu(scores):
    return tuple(jax.lax.approx_max_k(_without_padding(scores, count), k, recall_target=recall))

  def best_of_blocks(scores):
    size = block_size(scores.shape[1], k, recall)
    blocks = scores.reshape(scores.shape[0], -1, size)
    best, chosen = jax.lax.top_k(block_maxima(blocks, count), k)  # [B, K]
    column = chosen[..., None] * size + jnp.arange(size)  # [B, K, block]
    index = jnp.argmax(jnp.where(column < count, _blocks_of(blocks, chosen), -jnp.inf), axis=2)
    return best, (chosen * size + index).astype(jnp.int32)

  return jax.lax.platform_dependent(scores, tpu=on_tpu, default=best_of_blocks)


def block_maxima(blocks: Float[Array, "B L block"], count: Int[Array, ""]) -> Float[Array, "B L"]:
  """The largest score of each block among the first `count` columns; -inf for a block beyond them.

  At most one block is partly padding, and it alone is masked: a mask of all scores takes longer than their maxima.

  >>> block_maxima(jnp.array([[[1.0, 5.0], [2.0, 9.0], [8.0, 8.0]]]), jnp.array(3)).tolist()
  [[5.0, 2.0, -inf]]
  """
  num_blocks, size = blocks.shape[1:]
  mixed = jnp.minimum(count // size, num_blocks - 1)
  in_mixed = jax.lax.dynamic_index_in_dim(blocks, mixed, axis=1, keepdims=False)  # [B, block]
  masked = jnp.where(mixed * size + jnp.arange(size) < count, in_mixed, -jnp.inf).max(axis=1)
  is_whole = (jnp.arange(num_blocks) + 1) * size <= count
  return jnp.where(is_whole, blocks.max(axis=2), -jnp.inf).at[:, mixed].set(masked)


def block_size(num_events: int, k: int, recall: float) -> int:
  """Returns the largest power of two up to 64 that leaves enough equal blocks for the recall; 1 if none does.

  >>> block_size(10_048, 20, 0.95)  # 314 blocks; 64 would leave 157, and 190 are needed
  32
  """
  needed = max(k, (k - 1) / (2 * (1 - recall)))
  sizes = [size for size in (64, 32, 16, 8, 4, 2) if num_events % size == 0 and num_events // size >= needed]
  return sizes[0] if sizes else 1


def _without_padding(scores, count):
  return jnp.where(jnp.arange(scores.shape[1]) < count, scores, -jnp.inf)


def _blocks_of(blocks, chosen):
  return jax.vmap(lambda rows, index: rows[index])(blocks, chosen)  # [B, K, block]
