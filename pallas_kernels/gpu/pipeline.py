"""What all kernels do with a list of tiles: one warpgroup copies them into the ring, the others fold over them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels.gpu.problem import ROWS, Spec


def with_long_lists_first(refs: dict[str, Any], place: dict[str, Array]) -> dict[str, Array]:
  """Under a causal mask the last queries have the longest lists; what takes longest should start first."""
  return place | {"tile": refs["counts"].shape[1] - 1 - place["tile"]}


def specialise(
  spec: Spec,
  refs: dict[str, Any],
  place: dict[str, Array],
  fetched: Sequence[str],
  consume: Callable[[Spec, dict[str, Any], dict[str, Array]], None],
) -> None:
  """One warpgroup fills the ring, the others take from it. Three warpgroups have 168 registers a thread, which the
  first needs less than the others; two have as many as a thread can address."""
  consumers = spec.blocks.consumers

  @pl.when(place["warpgroup"] == consumers)
  def _():
    if consumers == 2:
      plgpu.set_max_registers(24, action="decrease")
    _fill_ring(spec, refs, place, [name for name in fetched if name in refs])

  @pl.when(place["warpgroup"] < consumers)
  def _():
    if consumers == 2:
      plgpu.set_max_registers(240, action="increase")
    consume(spec, refs, place)


def _fill_ring(spec, refs, place, names):
  """Copies the tiles of the list, each as soon as its stage is free."""
  stages = spec.stages
  block = refs[f"ring_{names[0]}"].shape[1]
  count = refs["counts"][place["row"], place["tile"], 1]

  @pl.loop(0, count + stages)
  def _(step):
    slot = lax.rem(step, jnp.int32(stages))

    @pl.when(step >= stages)
    def _():
      plgpu.barrier_wait(refs["free"].at[slot])

    @pl.when(step < count)
    def _():
      tokens = pl.ds(refs["order"][place["row"], place["tile"], step] * block, block)
      for name in names:
        source = tokens_of(refs, name, place, tokens)
        plgpu.copy_gmem_to_smem(source, refs[f"ring_{name}"].at[slot], refs["full"].at[slot])


def tokens_of(refs: dict[str, Any], name: str, place: dict[str, Array], tokens: pl.Slice) -> Any:
  """The part of an input or output that belongs to some tokens of this row and head."""
  row, head = place["row"], place["head"]
  if name == "softmax_info":
    return refs[name].at[row, head, :, tokens]
  if name in ("query_info", "key_info"):
    return refs[name].at[row, :, tokens]
  return refs[name].at[row, tokens, head]


def own_tokens(spec: Spec, place: dict[str, Array]) -> pl.Slice:
  """The 64 rows of this consumer."""
  return pl.ds((place["tile"] * spec.blocks.consumers + place["warpgroup"]) * ROWS, ROWS)


def fetch_own(spec: Spec, refs: dict[str, Any], place: dict[str, Array], names: Sequence[str]) -> None:
  """Copies the 64 rows of this consumer, and the tables of the time bias, and waits for them."""
  warpgroup, tokens = place["warpgroup"], own_tokens(spec, place)
  ready = refs["own_ready"].at[warpgroup]
  for name in names:
    plgpu.copy_gmem_to_smem(tokens_of(refs, name, place, tokens), refs[f"own_{name}"].at[warpgroup], ready)
  if spec.has_time:

    @pl.when(warpgroup == 0)
    def _():
      for name in ("words", "edges"):
        plgpu.copy_gmem_to_smem(refs[name], refs[f"own_{name}"], refs["tables_ready"])
      table = refs["time_table"].at[table_head(refs["time_table"], place)]
      plgpu.copy_gmem_to_smem(table, refs["own_time_table"], refs["tables_ready"])

    plgpu.barrier_wait(refs["tables_ready"])
  plgpu.barrier_wait(ready)


def table_head(table: Any, place: dict[str, Array]) -> Array | int:
  """The row of a table that this head reads."""
  return place["head"] if table.shape[0] > 1 else 0


def for_each_tile(
  spec: Spec, refs: dict[str, Any], place: dict[str, Array], block: int, step: Callable[..., tuple], carry: tuple
) -> tuple:
  """Folds `step(first token, slot, carry)` over the tiles of the list; the first token is None where all pairs of the
  tile are allowed."""

  def body(i, carry, is_edge):
    slot = lax.rem(i, jnp.int32(spec.stages))
    plgpu.barrier_wait(refs["full"].at[slot])
    first = refs["order"][place["row"], place["tile"], i] * block if is_edge else None
    carry = step(first, slot, carry)
    plgpu.barrier_arrive(refs["free"].at[slot])
    return carry

  interior, live = (refs["counts"][place["row"], place["tile"], i] for i in range(2))
  carry = lax.fori_loop(0, interior, functools.partial(body, is_edge=False), carry)
  return lax.fori_loop(interior, live, functools.partial(body, is_edge=True), carry)


def store(spec: Spec, refs: dict[str, Any], place: dict[str, Array], name: str, value: Array, room: str) -> None:
  """Writes the 64 rows of this consumer to an output, by way of shared memory that it needs no more."""
  rows = refs[room].at[place["warpgroup"]]
  rows[...] = value.astype(refs[name].dtype)
  plgpu.commit_smem()
  plgpu.copy_smem_to_gmem(rows, tokens_of(refs, name, place, own_tokens(spec, place)))
  plgpu.wait_smem_to_gmem(0)


def next_turn(spec: Spec, refs: dict[str, Any]) -> None:
  """Lets one consumer multiply while the other computes weights.

  One is then a tile ahead of the other; with a single stage they would wait for each other forever.
  """
  if spec.blocks.consumers > 1 and spec.stages > 1:
    plgpu.barrier_arrive(refs["turn"])
    plgpu.barrier_wait(refs["turn"])
