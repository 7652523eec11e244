"""`hstu_attention_*`: segment attention under the production masks, on full rows and on the ends of cached rows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks.compile import quick_jit
from golden_checks.golden_file import Check, GoldenFile
from golden_checks.layout import Layout
from jaxrec.layers.cache import CachedRows
from pallas_kernels import IntervalMask, segment_attention


def check(implementation: str) -> Check:
  return Check(functools.partial(_compute, implementation=implementation))


def _compute(golden: GoldenFile, dtype: type, implementation: str) -> dict:
  compute = _cached_rows if "delta_size" in golden.config else _full_rows
  return compute(golden.config, golden.inputs(dtype), implementation)


def _full_rows(config, inputs, implementation):
  layout = _layout(config, inputs)
  padded = layout.grown()
  mask = _mask(config, inputs, padded)
  q, k, v, d_out = (padded.pad(inputs[name]) for name in ("q", "k", "v", "dout"))
  scale = inputs.get("attn_scale", np.asarray(1 / config["max_seq_len"], q.dtype))
  per_query = padded.pad(np.broadcast_to(scale, inputs["q"].shape[:1]))  # [B, N]
  out, grads = _attend(q, k, v, per_query, mask, d_out, alpha=config["alpha"], implementation=implementation)
  results = {f"grad/{name}": padded.unpad(grad) for name, grad in zip(("q", "k", "v"), grads[:3], strict=True)}
  results["grad/attn_scale"] = padded.unpad(grads[3]) if scale.ndim else padded.unpad(grads[3]).sum()
  return results | {"out/o": padded.unpad(out), "out/valid_attn_mask": _comparable_mask(mask, layout)}


def _cached_rows(config, inputs, implementation):
  """Queries are the last tokens of each row; keys and values of the others come from the cache of `CachedRows`."""
  layout = _layout(config, inputs).grown()
  last = Layout(np.where(layout.lengths > 0, config["delta_size"], 0), config["delta_size"]).grown(columns=4)
  index = layout.lengths[:, None] - config["delta_size"] + np.arange(last.width)  # [B, delta]
  index = np.where(last.is_real, index, layout.width)
  slot = CachedRows(jnp.asarray(index), layout.width)
  mask = _mask(config, inputs, layout)
  k, v, full_q = (layout.pad(inputs[name]) for name in ("k", "v", "full_q"))
  delta_q, d_out = last.pad(inputs["delta_q"]), last.pad(inputs["dout"])
  divide = functools.partial(np.full, fill_value=1 / config["max_seq_len"], dtype=k.dtype)
  options = dict(alpha=config["alpha"], implementation=implementation)
  out, grads = _attend(delta_q, k, v, divide(index.shape), mask.take(slot.index), d_out, slot, **options)
  full, _ = _attend(full_q, k, v, divide(mask.shape), mask, np.zeros_like(v), **options)
  return {
    "out/o": last.unpad(out),
    "out/full_o_rows": last.unpad(
      np.take_along_axis(np.asarray(full), np.minimum(index, layout.width - 1)[..., None, None], axis=1)
    ),
    "grad/delta_q": last.unpad(grads[0]),
    "grad/k": layout.unpad(grads[1]),
    "grad/v": layout.unpad(grads[2]),
  }


def _layout(config, inputs) -> Layout:
  layout, (heads, width) = Layout.of_offsets(inputs["seq_offsets"], config["max_seq_len"]), inputs["k"].shape[1:]
  config.confirm(lengths=layout.lengths.tolist(), num_heads=heads, attention_dim=width)
  config.confirm(hidden_dim=inputs["v"].shape[-1])
  return layout


def _mask(config, inputs, layout: Layout) -> IntervalMask:
  targets = inputs.get("num_targets")
  return IntervalMask.hstu(
    jnp.asarray(layout.lengths),
    layout.width,
    num_targets=None if targets is None else jnp.asarray(layout.pad_rows(targets)),
    max_attention_length=config["max_attn_len"],
    contextual_length=config["contextual_seq_len"],
    min_full_attention_length=config.get("min_full_attn_seq_len", 0),
    causal=config.get("causal", True),
  )


def _through_cache(slot: CachedRows, x):
  """Returns `x [B, S, H, D]`, whose entries at `slot.index` were not in the cache but come with the queries."""
  row, place = jnp.arange(len(x))[:, None], jnp.minimum(slot.index, slot.capacity - 1)
  new = x[row, place]  # [B, Q, H, D]
  cached = x.at[row, slot.index].set(0, mode="drop")
  return slot.insert(cached, new)


def _comparable_mask(mask: IntervalMask, layout: Layout) -> np.ma.MaskedArray:
  """Returns the dense mask; what the reference says of padding has no meaning and is masked out of the comparison."""
  rows, width = layout.is_real.shape
  dense = np.asarray(mask.to_dense(mask.shape[1]))[:rows, :width, :width]
  is_real = layout.is_real[:, :, None] & layout.is_real[:, None, :]
  return np.ma.array(dense, mask=~is_real)


@functools.partial(quick_jit, static_argnames=("alpha", "implementation"))
def _attend(q, k, v, weight_scale, mask, d_out, slot=None, *, alpha, implementation):
  """`weight_scale` [B, N] multiplies the weights; what it is on padding does not matter."""

  def attend(q, k, v, weight_scale):
    if slot is not None:
      k, v = _through_cache(slot, k), _through_cache(slot, v)
    normalizer = 1 / jnp.where(weight_scale == 0, 1, weight_scale)
    return segment_attention(
      q, k, v, mask, scale=alpha, normalizer=normalizer, implementation=implementation,
      interpret=implementation == "tpu",
    )  # fmt: skip

  out, pull_back = jax.vjp(attend, q, k, v, weight_scale)
  return out, pull_back(d_out)
