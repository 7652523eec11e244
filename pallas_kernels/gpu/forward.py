"""The forward kernel: 64 queries to a consumer, and for each tile of keys the scores, the weights and the output."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels.gpu import bias, tiles
from pallas_kernels.gpu.call import bias_inputs, bias_scratch, launch, own, ring, shared_memory
from pallas_kernels.gpu.operations import accumulate, filled, iota, products, vectors
from pallas_kernels.gpu.pipeline import (
  fetch_own,
  for_each_tile,
  next_turn,
  own_tokens,
  specialise,
  store,
  tokens_of,
  with_long_lists_first,
)
from pallas_kernels.gpu.problem import ROWS, SPANS, Spec, tile_kinds, tile_lists

_FLOOR = -1e30  # under every score, and finite: rows that have not seen a key yet subtract it without harm
_FETCHED = ("k", "v", "key_info")


def forward(
  spec: Spec,
  q: Float[Array, "B N H D"],
  k: Float[Array, "B S H D"],
  v: Float[Array, "B S H E"],
  tables: tuple[Array | None, Array | None],
  integers: tuple[Array, Array | None],
) -> tuple[Float[Array, "B N H E"], Float[Array, "B H N"] | None]:
  """The output and, for softmax, the binary logarithm of each query's sum of exponentials."""
  blocks = spec.blocks
  spec = dataclasses.replace(spec, stages=blocks.forward_stages)
  (rows, num_queries, heads, width), value_width = q.shape, v.shape[3]
  block_q, block_k = ROWS * blocks.consumers, blocks.forward_keys
  inputs = {"q": q, "k": k, "v": v} | bias_inputs(spec, tables, integers)
  inputs |= tile_lists(*tile_kinds(integers[0], k.shape[1], block_q, block_k))
  outputs = {"out": jax.ShapeDtypeStruct((rows, num_queries, heads, value_width), v.dtype)}
  if spec.activation == "softmax":
    outputs["log_sum"] = jax.ShapeDtypeStruct((rows, heads, num_queries), jnp.float32)
  scratch = ring(spec, inputs, _FETCHED, block_k) | own(spec, inputs, ("q",)) | bias_scratch(spec)
  scratch["turn"] = plgpu.Barrier(num_arrivals=blocks.consumers)
  if value_width != width:
    scratch["own_out"] = shared_memory((blocks.consumers, ROWS, value_width), v.dtype)
  results = launch(spec, _forward_kernel, inputs, outputs, scratch, (heads, num_queries // block_q, rows))
  return results["out"], results.get("log_sum")


def _forward_kernel(spec, refs, place):
  place = with_long_lists_first(refs, place)
  specialise(spec, refs, place, _FETCHED, _forward_rows)


def _forward_rows(spec, refs, place):
  warpgroup, block = place["warpgroup"], spec.blocks.forward_keys
  take_turns = functools.partial(next_turn, spec, refs)
  fetch_own(spec, refs, place, ("q",))
  own_q = refs["own_q"].at[warpgroup]
  tokens = own_tokens(spec, place)
  query = vectors(spec, tokens_of(refs, "query_info", place, tokens), 0, bias.rows_of_queries(spec))
  own_block = bias.own_block(spec, refs, "query_info", place, tokens)

  def step(first_key, slot, carry):
    (product,) = products(spec, [(own_q, refs["ring_k"].at[slot])], take_turns)
    scores = spec.scale * product
    if "ring_key_info" in refs:
      info = refs["ring_key_info"].at[slot]
      key = vectors(spec, info, 1, bias.rows_of_keys(spec))
      found = bias.common(spec, refs, own_block, bias.block_in(spec, info, block), scores.shape)
      scores = bias.add_bias(spec, refs, place, scores, query[SPANS:], key, found, query_axis=0)
    if first_key is not None:
      may_attend = tiles.may_attend(query, first_key + iota(spec, scores.shape, 1), query_axis=0)
      scores, _ = tiles.masked(spec, may_attend, scores, None)
    weights, carry = tiles.WEIGHTS[spec.activation](scores, carry)
    weights = weights.astype(refs["v"].dtype)
    take_turns()
    return accumulate(spec, [(carry[0], weights, refs["ring_v"].at[slot])]) + carry[1:]

  carry = (filled(spec, (ROWS, refs["v"].shape[3]), 0.0),)
  if spec.activation == "softmax":
    carry += (filled(spec, (ROWS,), _FLOOR), filled(spec, (ROWS,), 0.0))
  pl.when(warpgroup == 1)(take_turns)
  carry = for_each_tile(spec, refs, place, block, step, carry)
  pl.when(warpgroup == 0)(take_turns)
  out = carry[0]
  if spec.activation == "softmax":
    out, log_sum = tiles.normalised(*carry)
    refs["log_sum"][place["row"], place["head"], own_tokens(spec, place)] = log_sum
  store(spec, refs, place, "out", out, "own_out" if "own_out" in refs else "own_q")
