"""The relative bias of a tile, and the gradients of its tables.

Neighbouring tokens save most of the work. In a tile far from the diagonal, all time differences fall into one bucket
or a few: comparing them with the bucket edges is faster than looking each one up. Where positions increase by one, the
entries of the position table are constant along the diagonals of the tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.bias import FIRST_CELL, bucket_in_cell, position_index
from pallas_kernels.gpu.operations import (
  add_diagonals_to_table,
  add_to_bucket,
  add_to_histogram,
  add_to_table,
  look_up,
  plus_diagonals,
)
from pallas_kernels.gpu.pipeline import table_head
from pallas_kernels.gpu.problem import NO_RUN, ROWS, SPANS, Spec

_FEW = 4  # edges between the buckets of a tile, up to which they are compared with


@dataclass(frozen=True)
class Block:
  """Facts about a block of tokens: first and last time, and the first position where positions increase by one."""

  first_time: Int[Array, ""] | None
  last_time: Int[Array, ""] | None
  first_position: Int[Array, ""] | None


@dataclass(frozen=True)
class Common:
  """Facts about all pairs of a tile.

  lowest, highest: the range of their time buckets.
  is_run: whether positions of queries and keys increase by one, and no difference is clipped by the table's ends.
  entry: index into the position table for the first query and the first key; valid where `is_run`.
  """

  lowest: Int[Array, ""] | None = None
  highest: Int[Array, ""] | None = None
  is_run: Bool[Array, ""] | None = None
  entry: Int[Array, ""] | None = None


def own_block(spec: Spec, refs: dict[str, Any], name: str, place: dict[str, Array], tokens: Any) -> Block:
  """Returns the facts about the 64 rows of this consumer."""
  if name not in refs:
    return Block(None, None, None)
  return _block(spec, lambda row, token: refs[name][place["row"], row, tokens.start + token], name, ROWS)


def block_in(spec: Spec, info: Any, tokens: int, name: str = "key_info") -> Block:
  """Returns the facts about the tokens in a stage of the ring."""
  return _block(spec, lambda row, token: info[row, token], name, tokens)


def _block(spec, read, name, tokens):
  """`read(row, token)` reads one of the rows of `token_rows`, which repeat a block's facts for each of its tokens."""
  start = SPANS if name == "query_info" else 0
  first_time = last_time = position = None
  parts = range(ROWS, tokens, ROWS)
  if spec.has_time:
    first_time, last_time = read(start + 1, 0), read(start + 2, 0)
    for part in parts:
      first_time = jnp.minimum(first_time, read(start + 1, part))
      last_time = jnp.maximum(last_time, read(start + 2, part))
  if spec.has_position:
    row = start + spec.position_row + 1
    position = read(row, 0)
    for part in parts:
      position = jnp.where(read(row, part) == position + part, position, NO_RUN)
  return Block(first_time, last_time, position)


def common(spec: Spec, refs: dict[str, Any], query: Block, key: Block, shape: tuple[int, int]) -> Common:
  """Returns the facts about the pairs of a tile of `shape`."""
  lowest = highest = is_run = entry = None
  if spec.has_time:
    nearest = jnp.maximum(query.first_time - key.last_time, key.first_time - query.last_time)
    furthest = jnp.maximum(query.last_time - key.first_time, key.last_time - query.first_time)
    lowest, highest = (_bucket(x, lambda cell: refs["own_words"][cell]) for x in (jnp.maximum(nearest, 0), furthest))
  if spec.has_position:
    size = refs["position_table"].shape[1]
    entry = query.first_position - key.first_position + size // 2
    has_entries = (entry >= max(shape)) & (entry < size - max(shape))
    is_run = (query.first_position != NO_RUN) & (key.first_position != NO_RUN) & has_entries
  return Common(lowest, highest, is_run, entry)


def add_bias(
  spec: Spec,
  refs: dict[str, Any],
  place: dict[str, Array],
  scores: Float[Array, "I J"],
  query: Sequence[Int[Array, " N"]],
  key: Sequence[Int[Array, " S"]],
  found: Common,
  query_axis: int,
) -> Float[Array, "I J"]:
  """Returns the scores plus the bias. query, key: vectors with the time and the position of each token."""
  if spec.has_time:
    scores = _add_time_bias(spec, refs, scores, query[0], key[0], found, query_axis)
  if spec.has_position:
    table = refs["position_table"].at[table_head(refs["position_table"], place)]
    sign = 1 if query_axis == 0 else -1

    def of_each(scores):
      entry = _position_entry(table, query[-1], key[-1], scores.shape, query_axis)
      return scores + look_up(spec, table, entry)

    def along_diagonals(scores):
      return plus_diagonals(spec, scores, table, found.entry, sign)

    scores = lax.cond(found.is_run, along_diagonals, of_each, scores)
  return scores


def _add_time_bias(spec, refs, scores, query, key, found, query_axis):
  table, edges = refs["own_time_table"], refs["own_edges"]

  def of_one_bucket(scores):
    return scores + table[found.lowest]

  def of_few(scores):
    seconds = jnp.abs(_difference(query, key, scores.shape, query_axis))

    def step(bucket, scores):
      return scores + jnp.where(seconds >= edges[bucket], table[bucket] - table[bucket - 1], 0.0)

    return lax.fori_loop(found.lowest + 1, found.highest + 1, step, scores + table[found.lowest])

  def of_each(scores):
    bucket = _time_bucket(spec, refs, _difference(query, key, scores.shape, query_axis))
    return scores + look_up(spec, table, bucket)

  return _by_buckets(found, of_one_bucket, of_few, of_each, scores)


def add_table_gradients(
  spec: Spec,
  refs: dict[str, Any],
  targets: dict[str, Any],
  d_scores: Float[Array, "I J"],
  query: Sequence[Int[Array, " N"]],
  key: Sequence[Int[Array, " S"]],
  found: Common,
) -> None:
  """Adds the gradients of the scores to the gradients of the table entries used; queries lie along axis 0.

  targets: "time", the histogram of this warpgroup, and "position", the sums of this head.
  """
  shape = d_scores.shape
  if spec.has_time:
    histogram, edges = targets["time"], refs["own_edges"]

    def to_one_bucket():
      add_to_bucket(spec, histogram.at[found.lowest], d_scores)

    def to_few():
      seconds = jnp.abs(_difference(query[0], key[0], shape, 0))

      def step(bucket, _):
        is_of_bucket = (seconds >= edges[bucket]) & (seconds < edges[bucket + 1])
        add_to_bucket(spec, histogram.at[bucket], jnp.where(is_of_bucket, d_scores, 0.0))
        return _

      lax.fori_loop(found.lowest, found.highest + 1, step, None)

    def to_each():
      add_to_histogram(spec, histogram, _time_bucket(spec, refs, _difference(query[0], key[0], shape, 0)), d_scores)

    _by_buckets(found, to_one_bucket, to_few, to_each)
  if spec.has_position:

    def along_diagonals():
      add_diagonals_to_table(spec, targets["position"], found.entry, d_scores)

    def to_each_entry():
      entry = _position_entry(targets["position"], query[-1], key[-1], shape, 0)
      add_to_table(spec, targets["position"], entry, d_scores)

    lax.cond(found.is_run, along_diagonals, to_each_entry)


def _by_buckets(found, one, few, each, *arguments):
  """Calls the branch that suits the number of buckets in a tile."""
  more = found.highest - found.lowest
  return lax.cond(more == 0, one, lambda *x: lax.cond(more <= _FEW, few, each, *x), *arguments)


def _time_bucket(spec, refs, seconds):
  return _bucket(seconds, lambda cell: look_up(spec, refs["own_words"], cell))


def _bucket(seconds, word_of):
  """Same as `bias.time_bucket`."""
  magnitude = jnp.maximum(jnp.abs(seconds.astype(jnp.float32)), 1.0)
  bits = lax.bitcast_convert_type(magnitude, jnp.uint32)
  cell = lax.shift_right_logical(bits, jnp.uint32(21)).astype(jnp.int32) - FIRST_CELL
  return bucket_in_cell(bits, word_of(cell))


def _position_entry(table, query, key, shape, query_axis):
  return position_index(_difference(query, key, shape, query_axis), table.shape[0])


def _difference(query, key, shape, query_axis):
  spread = lambda x, axis: lax.broadcast_in_dim(x, shape, (axis,))  # noqa: E731
  return spread(query, query_axis) - spread(key, 1 - query_axis)


def rows_of_queries(spec: Spec) -> list[int]:
  """The rows of a query's numbers that tiles read as vectors: the mask, the time, the position."""
  return [*range(SPANS), *(SPANS + row for row in rows_of_keys(spec))]


def rows_of_keys(spec: Spec) -> list[int]:
  """The rows of a key's numbers that tiles read as vectors: the time, the position."""
  return [0] * spec.has_time + [spec.position_row] * spec.has_position
