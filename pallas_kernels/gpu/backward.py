"""The backward kernels, which compute the scores again: one for dq and the tables, one for dk and dv."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels.bias import REACHED_BUCKETS
from pallas_kernels.gpu import bias, tiles
from pallas_kernels.gpu.call import bias_inputs, bias_scratch, launch, own, ring
from pallas_kernels.gpu.operations import (
  accumulate,
  filled,
  iota,
  products,
  sum_histogram,
  vectors,
)
from pallas_kernels.gpu.pipeline import (
  fetch_own,
  for_each_tile,
  own_tokens,
  specialise,
  store,
  tokens_of,
  with_long_lists_first,
)
from pallas_kernels.gpu.problem import LANES, ROWS, SPANS, TABLE, Spec, tile_kinds, tile_lists

_POSITION_SLICES = 8  # copies of the gradient of the position table, so that fewer atomic additions meet
_FETCHED_FOR_DQ = ("k", "v", "key_info")
_FETCHED_FOR_DKV = ("q", "d_out", "query_info", "softmax_info")


def backward(
  spec: Spec,
  q: Float[Array, "B N H D"],
  k: Float[Array, "B S H D"],
  v: Float[Array, "B S H E"],
  tables: tuple[Array | None, Array | None],
  integers: tuple[Array, Array | None],
  softmax: tuple[Float[Array, "B N H E"], Float[Array, "B H N"]] | None,
  d_out: Float[Array, "B N H E"],
) -> tuple[Array, Array, Array, tuple[Array | None, Array | None]]:
  """The gradients of q, k, v and of both tables. softmax: what `forward` returned, for silu None."""
  inputs = {"q": q, "k": k, "v": v, "d_out": d_out} | bias_inputs(spec, tables, integers)
  if softmax is not None:
    inner = jnp.einsum("bnhe,bnhe->bhn", softmax[0], d_out, preferred_element_type=jnp.float32)
    inputs["softmax_info"] = jnp.stack([softmax[1], inner], axis=2)  # [B, H, 2, N]
  dq, d_tables = _dq(spec, inputs, tables)
  if q.shape[3] + v.shape[3] <= 256:
    d_key = _dkv(spec, inputs, ("dk", "dv"))
  else:  # The registers hold one of the two sums.
    d_key = _dkv(spec, inputs, ("dk",)) | _dkv(spec, inputs, ("dv",))
  return dq, d_key["dk"], d_key["dv"], d_tables


def _dq(spec, inputs, tables):
  """dq, and the gradients of the tables."""
  blocks = spec.blocks
  spec = dataclasses.replace(spec, stages=blocks.dq_stages)
  rows, num_queries, heads, _ = inputs["q"].shape
  block_q, block_k = ROWS * blocks.consumers, blocks.dq_keys
  inputs = inputs | tile_lists(*tile_kinds(inputs["query_info"], inputs["k"].shape[1], block_q, block_k))
  outputs, sums = {"dq": _like(inputs["q"])}, {}
  scratch = ring(spec, inputs, _FETCHED_FOR_DQ, block_k) | own(spec, inputs, ("q", "d_out")) | bias_scratch(spec)
  parts = num_queries // ROWS
  if spec.has_time:
    outputs["d_time"] = jax.ShapeDtypeStruct((rows, heads, parts, REACHED_BUCKETS), jnp.float32)
    scratch["histogram"] = plgpu.SMEM((blocks.consumers, REACHED_BUCKETS, LANES), jnp.float32)
  if spec.has_position:
    slices = rows * parts if spec.simulate else _POSITION_SLICES
    sums["d_position"] = jax.ShapeDtypeStruct((slices, heads, tables[1].shape[-1]), jnp.float32)
  results = launch(spec, _dq_kernel, inputs, outputs, scratch, (heads, num_queries // block_q, rows), sums)
  d_time = None
  if spec.has_time:
    d_time = jnp.pad(results["d_time"].sum(axis=(0, 2)), ((0, 0), (0, TABLE - REACHED_BUCKETS)))  # [H, 96]
  d_position = results["d_position"].sum(axis=0) if spec.has_position else None  # [H, 2P-1]
  return results["dq"], tuple(_of_shape(d, table) for d, table in zip((d_time, d_position), tables, strict=True))


def _of_shape(d_table, table):
  """Adds up the heads where they share the table."""
  if table is None or table.shape[0] > 1:
    return d_table
  return d_table.sum(axis=0, keepdims=True)


def _dkv(spec, inputs, wanted):
  """dk and dv, or one of them."""
  blocks = spec.blocks
  spec = dataclasses.replace(spec, stages=blocks.dkv_stages)
  rows, num_keys, heads, _ = inputs["k"].shape
  block_q, block_k = blocks.dkv_queries, ROWS * blocks.consumers
  live, full = tile_kinds(inputs["query_info"], num_keys, block_q, block_k)
  inputs = inputs | tile_lists(jnp.swapaxes(live, 1, 2), jnp.swapaxes(full, 1, 2))
  scratch = ring(spec, inputs, _FETCHED_FOR_DKV, block_q) | own(spec, inputs, ("k", "v")) | bias_scratch(spec)
  outputs = {name: _like(inputs[name[1]]) for name in wanted}
  return launch(spec, _dkv_kernel, inputs, outputs, scratch, (heads, num_keys // block_k, rows))


def _like(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _dq_kernel(spec, refs, place):
  place = with_long_lists_first(refs, place)
  specialise(spec, refs, place, _FETCHED_FOR_DQ, _dq_rows)


def _dkv_kernel(spec, refs, place):
  specialise(spec, refs, place, _FETCHED_FOR_DKV, _dkv_rows)


def _dq_rows(spec, refs, place):
  warpgroup, block, tokens = place["warpgroup"], spec.blocks.dq_keys, own_tokens(spec, place)
  fetch_own(spec, refs, place, ("q", "d_out"))
  own_q, own_d_out = (refs[f"own_{name}"].at[warpgroup] for name in ("q", "d_out"))
  query = vectors(spec, tokens_of(refs, "query_info", place, tokens), 0, bias.rows_of_queries(spec))
  own_block = bias.own_block(spec, refs, "query_info", place, tokens)
  softmax = None
  if spec.activation == "softmax":
    softmax = vectors(spec, tokens_of(refs, "softmax_info", place, tokens), 0, range(2))
  part = place["tile"] * spec.blocks.consumers + warpgroup
  targets = _table_gradients(spec, refs, place, part)

  def step(first_key, slot, carry):
    ring_k = refs["ring_k"].at[slot]
    product, d_weights = products(spec, [(own_q, ring_k), (own_d_out, refs["ring_v"].at[slot])])
    scores = spec.scale * product
    if targets:
      info = refs["ring_key_info"].at[slot]
      key = vectors(spec, info, 1, bias.rows_of_keys(spec))
      found = bias.common(spec, refs, own_block, bias.block_in(spec, info, block), scores.shape)
      scores = bias.add_bias(spec, refs, place, scores, query[SPANS:], key, found, query_axis=0)
    if first_key is not None:
      may_attend = tiles.may_attend(query, first_key + iota(spec, scores.shape, 1), query_axis=0)
      scores, d_weights = tiles.masked(spec, may_attend, scores, d_weights)
    _, d_scores = tiles.gradients(spec, scores, d_weights, softmax, query_axis=0)
    if targets:
      bias.add_table_gradients(spec, refs, targets, d_scores, query[SPANS:], key, found)
    return accumulate(spec, [(carry[0], d_scores.astype(refs["q"].dtype), ring_k)])

  carry = (filled(spec, (ROWS, refs["q"].shape[3]), 0.0),)
  (dq,) = for_each_tile(spec, refs, place, block, step, carry)
  store(spec, refs, place, "dq", spec.scale * dq, "own_q")
  if spec.has_time:
    sum_histogram(spec, refs["histogram"].at[warpgroup], refs["d_time"].at[place["row"], place["head"], part])


def _table_gradients(spec, refs, place, part):
  """Where the gradient of each table is added up; starts the sums with zeros."""
  targets = {}
  if spec.has_time:
    targets["time"] = refs["histogram"].at[place["warpgroup"]]
    targets["time"][...] = jnp.zeros((REACHED_BUCKETS, LANES), jnp.float32)
  if spec.has_position:
    sums = refs["d_position"]
    index = place["row"] * (refs["q"].shape[1] // ROWS) + part if spec.simulate else lax.rem(part, _POSITION_SLICES)
    targets["position"] = sums.at[index, place["head"]]
    if spec.simulate:
      targets["position"][...] = jnp.zeros(sums.shape[2:], jnp.float32)
  return targets


def _dkv_rows(spec, refs, place):
  warpgroup, block, tokens = place["warpgroup"], spec.blocks.dkv_queries, own_tokens(spec, place)
  fetch_own(spec, refs, place, ("k", "v"))
  own_k, own_v = (refs[f"own_{name}"].at[warpgroup] for name in ("k", "v"))
  key = []
  if "key_info" in refs:
    key = vectors(spec, tokens_of(refs, "key_info", place, tokens), 0, bias.rows_of_keys(spec))
    own_block = bias.own_block(spec, refs, "key_info", place, tokens)
  wanted = [name for name in ("dk", "dv") if name in refs]

  def step(first_query, slot, carry):
    ring_q, ring_d_out = refs["ring_q"].at[slot], refs["ring_d_out"].at[slot]
    pairs = [(own_k, ring_q)] + [(own_v, ring_d_out)] * ("dk" in wanted)
    product, d_weights = (*products(spec, pairs), None)[:2]  # [keys, queries]
    info = refs["ring_query_info"].at[slot]
    query = vectors(spec, info, 1, bias.rows_of_queries(spec))
    softmax = None
    if spec.activation == "softmax":
      softmax = vectors(spec, refs["ring_softmax_info"].at[slot], 1, range(2))
    scores = spec.scale * product
    if key:
      found = bias.common(spec, refs, bias.block_in(spec, info, block, "query_info"), own_block, scores.shape)
      scores = bias.add_bias(spec, refs, place, scores, query[SPANS:], key, found, query_axis=1)
    if first_query is not None:
      may_attend = tiles.may_attend(query, tokens.start + iota(spec, scores.shape, 0), query_axis=1)
      scores, d_weights = tiles.masked(spec, may_attend, scores, d_weights)
    weights, d_scores = tiles.gradients(spec, scores, d_weights, softmax, query_axis=1)
    factors = {"dk": (d_scores, ring_q), "dv": (weights, ring_d_out)}
    terms = [(total, *factors[name]) for name, total in zip(wanted, carry, strict=True)]
    return accumulate(spec, [(total, a.astype(refs["k"].dtype), b) for total, a, b in terms])

  carry = tuple(filled(spec, (ROWS, refs[name[1]].shape[3]), 0.0) for name in wanted)
  carry = for_each_tile(spec, refs, place, block, step, carry)
  for name, total in zip(wanted, carry, strict=True):
    store(spec, refs, place, name, spec.scale * total if name == "dk" else total, f"own_{name[1]}")
