"""Inputs of the kernels: block sizes, padded arrays, integers of each token, lists of live tiles."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.bias import RelativeBias
from pallas_kernels.mask import IntervalMask

ROWS = 64  # of an accumulator of wgmma: what a warpgroup multiplies at a time
LANES = 128  # threads of a warpgroup
SPANS = 5  # start_a, end_a, start_b, end_b, own key
NO_RUN = -(2**29)  # in place of the first position of a block: positions do not go up by one in it
TABLE = 96  # buckets that are copied to shared memory: a multiple of 128 bytes
_MAX_COMPARED = 256  # tiles that are put in order by comparing each with each, which is one launch; more are sorted
_PAD = 128  # lengths are padded to multiples of it


@dataclasses.dataclass(frozen=True)
class BlockSizes:
  """Sizes that change speed, never results.

  consumers: warpgroups that multiply, 1 or 2; each owns 64 queries (in the dk, dv kernel: 64 keys).
  forward_keys: keys in a tile of the forward kernel: 64 or 128.
  dq_keys: keys in a tile of the dq kernel: 64 or 128.
  dkv_queries: queries in a tile of the dk, dv kernel: 64 or 128.
  forward_stages, dq_stages, dkv_stages: tiles that shared memory holds at a time.

  Raises:
    ValueError: sizes that the kernels do not have.
  """

  consumers: int = 2
  forward_keys: int = 128
  dq_keys: int = 64
  dkv_queries: int = 64
  forward_stages: int = 2
  dq_stages: int = 2
  dkv_stages: int = 2

  def __post_init__(self):
    tiles = (self.forward_keys, self.dq_keys, self.dkv_queries)
    stages = (self.forward_stages, self.dq_stages, self.dkv_stages)
    if self.consumers not in (1, 2) or any(tile not in (64, 128) for tile in tiles) or min(stages) < 1:
      raise ValueError(f"{self} needs 1 or 2 consumers, tiles of 64 or 128, and at least one stage")


@dataclasses.dataclass(frozen=True)
class Spec:
  """Static facts, known at compilation.

  stages: of the kernel at hand.
  """

  activation: str
  scale: float
  blocks: BlockSizes
  simulate: bool
  has_time: bool
  has_position: bool
  stages: int = 0

  @property
  def position_row(self) -> int:
    """The first row of the positions among those of `token_rows`."""
    return 3 if self.has_time else 0


def padded(x: Float[Array, "B N H D"]) -> Float[Array, "B N2 H D2"]:
  """Pads with zeros to a length that is a multiple of 128 and a width that is a multiple of 64."""
  return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _PAD), (0, 0), (0, -x.shape[3] % 64)))


def padded_tables(bias: RelativeBias) -> tuple[Float[Array, "_ T"] | None, Float[Array, "_ W"] | None]:
  """The tables as float32 with a head axis, of size 1 where the heads share them: `[_, 96]` and `[_, 2P-1]`."""
  time, position = bias.time_table, bias.position_table
  time = None if time is None else jnp.atleast_2d(time)[:, :TABLE].astype(jnp.float32)
  return time, None if position is None else jnp.atleast_2d(position).astype(jnp.float32)


def query_rows(mask: IntervalMask, bias: RelativeBias, num_keys: int) -> Int[Array, "B R N2"]:
  """Returns five rows with the mask of each query, followed by the rows of `token_rows`."""
  spans = jnp.stack([jnp.minimum(x, num_keys).astype(jnp.int32) for x in mask.spans()], axis=1)
  # Queries added by padding repeat the last one, so that they make no tile live and spoil none without masked pairs.
  spans = _padded_tokens(spans)
  rows = token_rows(bias.query_time, bias.query_position)
  return spans if rows is None else jnp.concatenate([spans, rows], axis=1)


def key_rows(bias: RelativeBias) -> Int[Array, "B R S2"] | None:
  """Returns the rows of `token_rows` for the keys, or None without tables."""
  return token_rows(bias.key_time, bias.key_position)


def token_rows(time: Int[Array, "B N"] | None, position: Int[Array, "B N"] | None) -> Int[Array, "B R N2"] | None:
  """Returns what the bias needs to know about each token.

  Three rows for the time table: the time, and the first and the last time in the token's block of 64. Two rows for the
  position table: the position, and the first position of the block if positions increase by one in it, else `NO_RUN`.
  """
  rows = []
  if time is not None:
    time = _padded_tokens(time)
    blocks = time.reshape(time.shape[0], -1, ROWS)
    rows += [time, _for_each_token(blocks.min(axis=-1)), _for_each_token(blocks.max(axis=-1))]
  if position is not None:
    position = _padded_tokens(position)
    blocks = position.reshape(position.shape[0], -1, ROWS)
    is_run = (blocks[..., 1:] == blocks[..., :-1] + 1).all(axis=-1) & (jnp.abs(blocks[..., 0]) < -NO_RUN)
    rows += [position, _for_each_token(jnp.where(is_run, blocks[..., 0], NO_RUN))]
  return jnp.stack(rows, axis=1) if rows else None


def _padded_tokens(x):
  return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, -x.shape[-1] % _PAD),), mode="edge")


def _for_each_token(x: Int[Array, "B T"]) -> Int[Array, "B N"]:
  return jnp.repeat(x, ROWS, axis=1)


def tile_kinds(
  rows: Int[Array, "B R N"], num_keys: int, block_q: int, block_k: int
) -> tuple[Bool[Array, "B Tq Tk"], Bool[Array, "B Tq Tk"]]:
  """Whether a tile may have an allowed pair, and whether all its pairs are allowed. rows: of `query_rows`.

  The same as `schedule.live_tiles` and `schedule.interior_tiles`, in one reduction: each operation of the preparation
  is a launch on the GPU, and they take longer than the attention of short rows.
  """
  start_a, end_a, start_b, end_b, own = jnp.moveaxis(rows[:, :SPANS], 1, 0)  # each [B, N]
  starts = jnp.stack([start_a, start_b, own], axis=1)  # [B, 3, N]
  ends = jnp.stack([end_a, end_b, jnp.where(own >= 0, own + 1, own)], axis=1)
  is_empty = starts >= ends
  first, last = jnp.where(is_empty, num_keys, starts), jnp.where(is_empty, 0, ends)
  bounds = jnp.concatenate([-first, last, starts[:, :2], -ends[:, :2]], axis=1)  # [B, 10, N]
  bounds = bounds.reshape(*bounds.shape[:2], -1, block_q).max(axis=-1)[..., None]  # [B, 10, Tq, 1]
  first_key = jnp.arange(0, num_keys, block_k, dtype=jnp.int32).reshape(1, 1, 1, -1)  # [1, 1, 1, Tk]
  live = (first_key < bounds[:, 3:6]) & (first_key + block_k > -bounds[:, :3])  # [B, 3, Tq, Tk]
  full = (bounds[:, 6:8] <= first_key) & (-bounds[:, 8:] >= first_key + block_k)  # [B, 2, Tq, Tk]
  return live.any(axis=1), full.any(axis=1)


def tile_lists(live: Bool[Array, "B T U"], full: Bool[Array, "B T U"]) -> dict[str, Int[Array, "..."]]:
  """order: for each tile of axis T those of axis U, first the full ones, then the other live ones, the dead ones last
  `[B, T, U]`. counts: how many are full, and how many are live `[B, T, 2]`."""
  kind = jnp.where(full, 0, jnp.where(live, 1, 2))
  counts = jnp.stack([full.sum(-1), (full | live).sum(-1)], axis=-1).astype(jnp.int32)
  if kind.shape[-1] > _MAX_COMPARED:
    return {"order": jnp.argsort(kind, axis=-1, stable=True).astype(jnp.int32), "counts": counts}
  index = jnp.arange(kind.shape[-1])
  is_before = (kind[..., None, :] < kind[..., None]) | (  # [B, T, U, U]
    (kind[..., None, :] == kind[..., None]) & (index < index[:, None])
  )
  place = is_before.sum(axis=-1)  # [B, T, U]
  order = jnp.where(place[..., None, :] == index[:, None], index, 0).sum(axis=-1)
  return {"order": order.astype(jnp.int32), "counts": counts}
