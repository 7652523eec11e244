"""Losses of query vectors against item vectors: sampled and full softmax, BCE, gBCE. Pure functions of each position;
the caller averages them.

Letters: `B` rows, `N` positions, `M` width, `R` negatives, `V` items.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from pallas_kernels import devices, varying

EXCLUDED = -5e4  # the score of a negative that equals the positive; finite, as in the released HSTU code


def weighted_mean(value: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, ""]:
  """Returns `sum(weight * value) / sum(weight)`, and 0 where all weights are 0.

  >>> float(weighted_mean(jnp.array([1.0, 5.0]), jnp.array([3.0, 1.0])))
  2.0
  """
  total = weight.sum()
  return jnp.where(weight != 0, weight * value, 0).sum() / jnp.where(total == 0, 1, total)


def scores_of_vectors(query: Float[Array, "B N M"], negative: Float[Array, "... R M"]) -> Float[Array, "B N R"]:
  """Returns the inner products of queries with their negatives.

  negative: `[B, N, R, M]` (negatives of each position), `[B, R, M]` (of each row) or `[R, M]` (of the batch). Shared
    negatives turn the scores into one matrix product; for those of each position see `scores_of_rows`.

  >>> scores_of_vectors(jnp.ones((1, 3, 4)), jnp.ones((2, 4))).shape
  (1, 3, 2)
  """
  return jnp.einsum({2: "bnm,rm->bnr", 3: "bnm,brm->bnr", 4: "bnm,bnrm->bnr"}[negative.ndim], query, negative)


def scores_of_rows(
  query: Float[Array, "B N M"],
  rows_of: Callable[[Int[Array, "B n R"]], Float[Array, "B n R M"]],
  index: Int[Array, "B N R"],
  block_size: int | None = None,
) -> Float[Array, "B N R"]:
  """Returns the inner products of each position's query with rows of its own, which are looked up block by block.

  An array `[B, N, R, M]` larger than a block is never held; on CPUs making it, and its gradient, would take most of the
  time of a loss. The backward pass looks the rows of each block up again.

  Args:
    query: query vectors.
    rows_of: looks rows up; called for each block, and once more in the backward pass.
    index: what `rows_of` looks up.
    block_size: numbers looked up at a time; None: what fits the cache of a CPU, and `2**26` on other devices.

  >>> vectors, index = jnp.arange(8.0).reshape(4, 2), jnp.array([[[1, 3]]])
  >>> scores_of_rows(jnp.ones((1, 1, 2)), lambda index: vectors[index], index).tolist()
  [[[5.0, 13.0]]]
  """
  block_size = block_size or (2**21 if devices.platform() == "cpu" else 2**26)
  (num_rows, length, width), num_negatives = query.shape, index.shape[-1]
  # Positions of each row at a time, not rows, which may be sharded.
  block = block_size // max(1, num_rows * num_negatives * width)

  def scores(block):
    return scores_of_vectors(block[0], rows_of(block[1]))

  if block >= length:
    return scores((query, index))
  block = max(1, block)
  missing = -length % block

  def blocks(x):
    x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)))
    return x.reshape(num_rows, -1, block, x.shape[-1]).swapaxes(0, 1)  # [blocks, B, block, ...]

  found = jax.lax.map(jax.checkpoint(scores), (blocks(query), blocks(index)))
  return found.swapaxes(0, 1).reshape(num_rows, -1, num_negatives)[:, :length]


def sampled_logits(
  positive_score: Float[Array, "B N"],
  negative_score: Float[Array, "B N R"],
  positive_id: Int[Array, "B N"],
  negative_id: Int[Array, "... R"],
  temperature: float,
) -> tuple[Float[Array, "B N"], Float[Array, "B N R"]]:
  """Returns the scores of positive and negatives over `temperature`; negatives equal to the positive get -50,000."""
  is_positive = per_position(negative_id) == positive_id[..., None]  # [B, N, R]
  return positive_score / temperature, jnp.where(is_positive, EXCLUDED, negative_score / temperature)


def per_position(x: Shaped[Array, "... R"]) -> Shaped[Array, "_ _ R"]:
  """Returns numbers of the negatives of each position, of each row or of the batch, with all three axes.

  >>> per_position(jnp.ones((2, 5))).shape, per_position(jnp.ones(5)).shape
  ((2, 1, 5), (1, 1, 5))
  """
  return x if x.ndim == 3 else x.reshape(-1, 1, x.shape[-1])


def sampled_softmax(positive_logit: Float[Array, "B N"], negative_logit: Float[Array, "B N R"]) -> Float[Array, "B N"]:
  """Returns `-log softmax([positive, negatives])[0]` at each position.

  Source: released code of Zhai et al. 2024, arXiv 2402.17152 (`SampledSoftmaxLoss`).

  >>> f"{float(sampled_softmax(jnp.zeros((1, 1)), jnp.zeros((1, 1, 3)))[0, 0]):.4f}"  # ln 4
  '1.3863'
  """
  rest = jax.nn.logsumexp(negative_logit, axis=-1)  # [B, N]
  return jnp.logaddexp(positive_logit, rest) - positive_logit


def full_softmax(
  query: Float[Array, "... M"],
  item_vectors: Float[Array, "V1 M"],
  positive_id: Int[Array, "..."],
  temperature: float = 1.0,
  chunk_size: int = 4096,
  is_candidate: Bool[Array, " V1"] | None = None,
) -> Float[Array, "..."]:
  """Returns `-log softmax` of the positive over items 1..V at each position, `chunk_size` scores at a time.

  Of items that are no candidates only the positive counts; None: all are candidates.

  The backward pass recomputes the scores chunk by chunk from the log-sum-exp of each position. The gradient rule is for
  reverse mode only: `jax.jvp` is not supported.
  """
  flat = query.reshape(-1, query.shape[-1])  # [T, M]
  counted = jnp.ones(item_vectors.shape[0] - 1, bool) if is_candidate is None else is_candidate[1:]
  log_sum = log_sum_exp(flat, item_vectors[1:], counted, temperature, chunk_size).reshape(query.shape[:-1])
  positive = jnp.take(item_vectors, positive_id, axis=0, mode="clip")
  positive = jnp.where((positive_id != 0)[..., None], positive, 0)  # Row 0 is padding.
  score = (query * positive).sum(axis=-1) / temperature
  if is_candidate is not None:
    is_counted = jnp.take(is_candidate, positive_id, mode="clip")
    log_sum = jnp.where(is_counted, log_sum, jnp.logaddexp(log_sum, score))
  return log_sum - score


def log_sum_exp(
  query: Float[Array, "T M"],
  vectors: Float[Array, "V M"],
  is_candidate: Bool[Array, " V"],
  temperature: float = 1.0,
  chunk_size: int = 4096,
) -> Float[Array, " T"]:
  """Returns `log sum_v exp(query · vector_v / temperature)` over the candidates; -inf where there are none.

  >>> vectors = jnp.array([[9.0], [1.0], [1.0]])
  >>> total = log_sum_exp(jnp.ones((1, 1)), vectors, jnp.array([False, True, True]))
  >>> f"{jnp.exp(total[0]) / jnp.e:.3f}"
  '2.000'
  """
  chunk_size = max(1, min(chunk_size, vectors.shape[0]))
  missing = -vectors.shape[0] % chunk_size
  chunks = jnp.pad(vectors, ((0, missing), (0, 0))).reshape(-1, chunk_size, vectors.shape[1])  # [chunks, chunk, M]
  is_candidate = jnp.pad(is_candidate, (0, missing)).reshape(-1, chunk_size)  # [chunks, chunk]
  # Under shard_map the loops below want all arrays to differ along the same axes.
  return _log_sum_exp(temperature, *varying.vary((query, chunks), varying.axes_of((query, chunks))), is_candidate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_sum_exp(temperature, query, chunks, is_candidate):
  """`log_sum_exp` of each query `[T, M]` over the chunks `[chunks, chunk, M]`."""

  def add_chunk(log_sum, chunk):
    scores = _chunk_scores(temperature, query, *chunk)
    return jnp.logaddexp(log_sum, jax.nn.logsumexp(scores, axis=-1)), None

  start = varying.vary(jnp.full(query.shape[:1], -jnp.inf, query.dtype), varying.axes_of(query))
  return jax.lax.scan(add_chunk, start, (chunks, is_candidate))[0]  # [T]


def _log_sum_exp_forward(temperature, query, chunks, is_candidate):
  log_sum = _log_sum_exp(temperature, query, chunks, is_candidate)
  return log_sum, (query, chunks, is_candidate, log_sum)


def _log_sum_exp_backward(temperature, residuals, d_log_sum):
  query, chunks, is_candidate, log_sum = residuals
  d_score = d_log_sum / temperature
  log_sum = jnp.where(log_sum == -jnp.inf, 0, log_sum)  # Without candidates all scores are -inf and have no gradient.

  def add_chunk(d_query, chunk):
    scores = _chunk_scores(temperature, query, *chunk)
    d_scores = jnp.exp(scores - log_sum[:, None]) * d_score[:, None]  # [T, chunk]
    return d_query + d_scores @ chunk[0], (query.T @ d_scores).T  # [T, M], [chunk, M]

  return *jax.lax.scan(add_chunk, jnp.zeros_like(query), (chunks, is_candidate)), None


_log_sum_exp.defvjp(_log_sum_exp_forward, _log_sum_exp_backward)


def _chunk_scores(temperature, query, vectors, is_candidate):
  """Returns the scores `[T, chunk]` of a chunk of items; -inf for items that are not candidates."""
  return jnp.where(is_candidate, query @ vectors.T / temperature, -jnp.inf)


def binary_cross_entropy(
  positive_logit: Float[Array, "B N"], negative_logit: Float[Array, "B N R"], calibration: float = 1.0
) -> Float[Array, "B N"]:
  """`-calibration * log sigmoid(positive) - sum_r log(1 - sigmoid(negative_r))`.

  `calibration` 1 is BCE; gBCE passes `gbce_calibration(...)`: `sigmoid(s)^beta` has the logarithm `beta * log
  sigmoid(s)`.

  Source: Petrov and Macdonald 2023, arXiv 2308.07192, equation 10.
  """
  positive = -calibration * jax.nn.log_sigmoid(positive_logit)
  return positive - jax.nn.log_sigmoid(-negative_logit).sum(axis=-1)


def gbce_calibration(num_items: int, num_negatives: int, t: float) -> float:
  """The exponent `beta = alpha * (t * (1 - 1/alpha) + 1/alpha)` of gBCE, with `alpha = R / (V - 1)`; t in 0..1.

  Source: Petrov and Macdonald 2023, arXiv 2308.07192, equation 14.
  Choice: alpha is at most 1, and 1 for a catalogue of one item, which has no negatives to miss.

  Raises:
    ValueError: no negatives, which leave nothing to calibrate.

  >>> gbce_calibration(101, 50, 0.0), gbce_calibration(101, 50, 1.0)  # no calibration, full calibration
  (1.0, 0.5)
  """
  if num_negatives < 1:
    raise ValueError(f"{num_negatives=} must be at least 1")
  alpha = min(num_negatives / max(num_items - 1, 1), 1.0)
  return alpha * (t * (1 - 1 / alpha) + 1 / alpha)
