"""Serving of stage one of click-through ranking: finds the K most relevant events of a history for each candidate.

The history vectors that attention reads do not depend on the candidate. They are computed once, cached until the user's
next event, and searched for every candidate of every request. The cost of a search is proportional to the width of
these vectors, so a model with separate, narrower attention tables (`attention_width` of DARE) is cheaper to serve.

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

from jaxrec.batches import AnyArray
from jaxrec.models.ctr import ClickThroughRanker
from pallas_kernels.integers import as_integers

TILE = 128  # Candidates scored together, of long histories fewer: changes speed and memory, never results.
_TILE_SCORES = 1 << 21  # A tile of more scores than these does not stay in the caches.
_BLOCKS = (16, 32, 64)  # Events per block of an exact search, which reads block maxima first; 16 fill a cache line.
_MULTIPLE = 64  # The number of columns is padded to a multiple of this, so powers of two up to 64 divide it.


DTYPES = ("float32", "bfloat16", "int8")


@flax.struct.dataclass
class HistoryKeys:
  """The cached keys of a history (a pytree).

  keys: one column per event, in random order, followed by columns of padding.
  position: index of each event in the history; -1 for padding.
  scale: of int8 keys, what each of the M rows is multiplied by; else None.
  """

  keys: Float[Array, "M N"] | Int[Array, "M N"]
  position: Int[Array, " N"]
  scale: Float[Array, " M"] | None = None


def history_keys(
  model: ClickThroughRanker,
  variables: Mapping,
  item: Int[AnyArray, " N"],
  category: Int[AnyArray, " N"],
  age: Int[AnyArray, " N"],
  dtype: str = "float32",
) -> HistoryKeys:
  """Returns the keys of a history, to be cached and searched for any candidate.

  Args:
    model: a ranker whose scores are dot products.
    variables: the variables of the model.
    item, category, age: the events as in a `CandidateBatch`, oldest first; item 0 is padding. Histories of the same
      length share a compiled program.
    dtype: of the cached keys; see `cache_keys`.

  Raises:
    ValueError: the scores of the model are not dot products, an item or category is outside the catalogue, or another
      dtype.
  """
  for name, ids, most in (("item", item, model.num_items), ("category", category, model.num_categories)):
    known = np.zeros(0, int) if isinstance(ids, jax.core.Tracer) else np.asarray(ids)
    if known.size and not 0 <= known.min() <= known.max() <= most:
      raise ValueError(f"{name} holds ids {known.min()}..{known.max()}, but the model knows 0..{most}")
  keys = model.apply(variables, item, category, age, method="search_keys")
  return cache_keys(keys, as_integers("item", item) != 0, dtype)


def cache_keys(keys: Float[Array, "N M"], is_real: Bool[Array, " N"], dtype: str = "float32") -> HistoryKeys:
  """Returns the keys of events in the layout that `search` reads: shuffled, padded and transposed.

  The shuffle depends on N only. It puts consecutive events, which are often similar, into different blocks.

  Args:
    keys: of the events.
    is_real: False on padding.
    dtype: "float32"; "bfloat16" or "int8" for a cache of a half or a quarter of the size, whose searches are exact for
      the rounded keys. int8: each of the M entries is rounded to 1/127 of its largest value in the history.

  Raises:
    ValueError: another dtype.
  """
  if dtype not in DTYPES:
    raise ValueError(f"{dtype=} must be one of {DTYPES}")
  shuffled = jnp.asarray(np.random.default_rng(0).permutation(keys.shape[0]), jnp.int32)
  order = shuffled[jnp.argsort(~is_real[shuffled], stable=True)]  # Events first, then padding.
  position = jnp.where(is_real[order], order, -1)
  padding = -keys.shape[0] % _MULTIPLE if keys.shape[0] else _MULTIPLE
  position = jnp.pad(position, (0, padding), constant_values=-1)
  columns = jnp.pad(keys[order], ((0, padding), (0, 0))).T  # [M, N]
  if dtype != "int8":
    return HistoryKeys(columns.astype(dtype), position)
  largest = jnp.max(jnp.abs(columns), axis=1, where=(position >= 0)[None], initial=0)
  scale = jnp.where(largest > 0, largest, 1) / 127
  rounded = jnp.clip(jnp.round(columns / scale[:, None]), -127, 127)
  return HistoryKeys(rounded.astype(jnp.int8), position, scale)


def search(
  queries: Float[AnyArray, "B M"], history: HistoryKeys, k: int, recall: float = 1.0
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
  """Returns the k largest scores per candidate, in descending order, and the positions of these events in the history.

  If a history has fewer than k events, the rest of the row has score -inf and position -1. Ties are in any order.

  Args:
    queries: query vectors of one or more candidates, from
      `model.apply(variables, item, category, method="search_queries")`.
    history: the result of `history_keys`.
    k: how many events to find, 1..N.
    recall: 1 for an exact search. Below 1: the least expected fraction of the top k that is found; the history is
      divided into random blocks, and only the best event of each block is considered. On TPUs this is
      `jax.lax.approx_max_k`.

  Raises:
    ValueError: no candidate, or k or recall out of range.

  >>> history = cache_keys(jnp.array([[1.0], [3.0], [2.0]]), jnp.array([True, True, True]))
  >>> scores, positions = search(jnp.array([[2.0], [-1.0]]), history, 2)
  >>> scores.tolist(), positions.tolist()
  ([[6.0, 4.0], [-1.0, -2.0]], [[1, 2], [0, 2]])
  """
  if not queries.shape[0]:
    raise ValueError(f"{queries.shape=} has no candidate; give at least one row")
  if not 1 <= k <= history.keys.shape[1]:
    raise ValueError(f"{k=} must be in 1..{history.keys.shape[1]}, the padded length of the history")
  if not 0 < recall <= 1:
    raise ValueError(f"{recall=} must be above 0 and at most 1; 1 is an exact search")
  return _search(jnp.asarray(queries), history, k, recall)


@functools.partial(jax.jit, static_argnames=("k", "recall"))
def _search(queries, history, k, recall):
  find = exact_top_k if recall == 1 else functools.partial(approximate_top_k, recall=recall)
  count = (history.position >= 0).sum(dtype=jnp.int32)
  keys = history.keys.astype(queries.dtype)  # Of a small cache once for all candidates.
  queries = queries if history.scale is None else queries * history.scale[None]

  def search_tile(tile):
    scores = jnp.matmul(tile, keys, precision=jax.lax.Precision.HIGHEST)  # [tile, N]
    return find(scores, count, k)

  size = tile_size(keys.shape[1])
  in_tiles = queries.shape[0] // size * size
  found = []
  if in_tiles:
    tiled = jax.lax.map(search_tile, queries[:in_tiles].reshape(-1, size, queries.shape[1]))
    found.append(jax.tree.map(lambda x: x.reshape(in_tiles, k), tiled))
  if in_tiles < queries.shape[0]:
    found.append(search_tile(queries[in_tiles:]))
  scores, columns = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *found)  # [B, K]
  return scores, jnp.where(scores > -jnp.inf, history.position[columns], -1)


def tile_size(num_events: int) -> int:
  """Returns how many candidates are scored together: a power of two, from 8 to `TILE`.

  >>> tile_size(10_048), tile_size(100_032), tile_size(10**7)
  (128, 16, 8)
  """
  return min(TILE, max(8, 1 << (max(1, _TILE_SCORES // num_events).bit_length() - 1)))


def exact_block(num_events: int, k: int) -> int:
  """Returns the events per block with the fewest numbers to sort: a maximum for each block, and k blocks.

  >>> exact_block(10_048, 20), exact_block(100_032, 20)
  (16, 64)
  """
  return min(_BLOCKS, key=lambda size: num_events // size + k * size)


def exact_top_k(
  scores: Float[Array, "B N"], count: Int[Array, ""], k: int
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
  """Returns `jax.lax.top_k` of the first `count` columns, several times faster on a CPU; -inf if `count` is below k.

  The k blocks with the largest maxima contain the k largest scores, so the search sorts a maximum for each block and
  the scores of k blocks instead of N scores.
  """
  size = exact_block(scores.shape[1], k)
  num_blocks, rest = divmod(scores.shape[1], size)
  if rest or num_blocks <= k:
    return tuple(jax.lax.top_k(_without_padding(scores, count), k))
  blocks = scores.reshape(-1, num_blocks, size)
  chosen = jax.lax.top_k(block_maxima(blocks, count), k)[1]  # [B, K]
  column = chosen[..., None] * size + jnp.arange(size, dtype=jnp.int32)[None, None]  # [B, K, block]
  candidates = jnp.where(column < count, _blocks_of(blocks, chosen), -jnp.inf)
  best, index = jax.lax.top_k(candidates.reshape(-1, k * size), k)  # [B, K]
  return best, jnp.take_along_axis(column.reshape(-1, k * size), index, axis=1)


def approximate_top_k(
  scores: Float[Array, "B N"], count: Int[Array, ""], k: int, recall: float
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
  """Returns an approximate top k with expected recall at least `recall`, if the columns are in random order.

  With L blocks, the expected fraction of the k largest scores that are the maximum of their block is
  `1 - (k - 1) / 2L`.

  Choice: `jax.lax.approx_max_k` on TPUs only; on other backends it reads all scores in an order that is slow on CPUs.
  """

  def on_tpu(scores):
    return tuple(jax.lax.approx_max_k(_without_padding(scores, count), k, recall_target=recall))

  def best_of_blocks(scores):
    size = block_size(scores.shape[1], k, recall)
    blocks = scores.reshape(scores.shape[0], -1, size)
    best, chosen = jax.lax.top_k(block_maxima(blocks, count), k)  # [B, K]
    column = chosen[..., None] * size + jnp.arange(size, dtype=jnp.int32)[None, None]  # [B, K, block]
    index = jnp.argmax(jnp.where(column < count, _blocks_of(blocks, chosen), -jnp.inf), axis=2)
    return best, (chosen * size + index).astype(jnp.int32)

  return jax.lax.platform_dependent(scores, tpu=on_tpu, default=best_of_blocks)


def block_maxima(blocks: Float[Array, "B L block"], count: Int[Array, ""]) -> Float[Array, "B L"]:
  """Returns the maximum of each block over the first `count` columns; -inf for a block of padding.

  Only the one block that may mix events and padding is masked: masking all scores takes longer than their maxima.

  >>> block_maxima(jnp.array([[[1.0, 5.0], [2.0, 9.0], [8.0, 8.0]]]), jnp.array(3)).tolist()
  [[5.0, 2.0, -inf]]
  """
  num_blocks, size = blocks.shape[1:]
  mixed = jnp.minimum(count // size, num_blocks - 1)
  in_mixed = jax.lax.dynamic_index_in_dim(blocks, mixed, axis=1, keepdims=False)  # [B, block]
  masked = jnp.where((mixed * size + jnp.arange(size, dtype=jnp.int32) < count)[None], in_mixed, -jnp.inf).max(axis=1)
  is_whole = (jnp.arange(num_blocks, dtype=jnp.int32) + 1) * size <= count
  return jnp.where(is_whole[None], blocks.max(axis=2), -jnp.inf).at[:, mixed].set(masked)


def block_size(num_events: int, k: int, recall: float) -> int:
  """Returns the largest power of two up to 64 that gives enough equal blocks for the recall; 1 if none does.

  >>> block_size(10_048, 20, 0.95)  # 314 blocks; size 64 would give 157, and 190 are needed
  32
  """
  needed = max(k, (k - 1) / (2 * (1 - recall)))
  sizes = [size for size in (64, 32, 16, 8, 4, 2) if num_events % size == 0 and num_events // size >= needed]
  return sizes[0] if sizes else 1


def _without_padding(scores, count):
  return jnp.where((jnp.arange(scores.shape[1], dtype=jnp.int32) < count)[None], scores, -jnp.inf)


def _blocks_of(blocks, chosen):
  return jax.vmap(lambda rows, index: rows[index])(blocks, chosen)  # [B, K, block]
