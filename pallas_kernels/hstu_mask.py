"""The option grid of the production HSTU kernel, as intervals.

Source: Zhai et al. 2024, arXiv 2402.17152, section 4.5 (targets that do not see each other); the windows and the
contextual prefix are options of the authors' released attention operators.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.mask import IntervalMask


def hstu_mask(
  lengths: Int[Array, " B"],
  num_tokens: int,
  num_targets: Int[Array, " B"] | None = None,
  max_attention_length: int = 0,
  contextual_length: int = 0,
  min_full_attention_length: int = 0,
  causal: bool = True,
) -> IntervalMask:
  """Mask for rows `[contextual prefix | history | targets | padding]`.

  Every token reads itself. The tokens of the prefix share place 0, the history counts on from there, and all targets
  share the place after its end. A token reads the tokens of smaller places (of any other place if not `causal`),
  so that neither targets nor the tokens of the prefix see each other; but prefix tokens also read everything before
  the targets.

  Args:
    lengths: tokens in the row, prefix and targets included.
    num_tokens: N, the padded length.
    num_targets: how many of the last tokens are targets; None says that there are none.
    max_attention_length: if positive, the largest difference of places that is read.
    contextual_length: tokens in the prefix.
    min_full_attention_length: the last so many places before the targets, and the targets, ignore
      `max_attention_length`.
    causal: whether only smaller places are read.

  Raises:
    ValueError: if a length is negative.
  """
  for name in ("max_attention_length", "contextual_length", "min_full_attention_length"):
    if locals()[name] < 0:
      raise ValueError(f"{name}={locals()[name]} must not be negative")
  lengths = lengths.astype(jnp.int32)[:, None]  # [B, 1]
  shift = max(contextual_length - 1, 0)
  last = lengths - shift - (0 if num_targets is None else num_targets.astype(jnp.int32)[:, None])
  index = jnp.arange(num_tokens, dtype=jnp.int32)[None]  # [1, N]
  place = jnp.broadcast_to(jnp.maximum(index - shift, 0), (lengths.shape[0], num_tokens))
  place = place if num_targets is None else jnp.minimum(place, last)  # [B, N]

  def first_index_of(x):
    """The first token at place x or later."""
    return jnp.where(x > 0, x + shift, 0)

  window = jnp.int32(max_attention_length or num_tokens)
  if min_full_attention_length:
    window = jnp.where(place >= last - min_full_attention_length, num_tokens, window)
  start_a, end_a = first_index_of(place - window), first_index_of(place)
  start_b, end_b = jnp.zeros_like(place), jnp.zeros_like(place)
  if not causal:
    start_b, end_b = first_index_of(place + 1), _end_of_window(place, window, last, lengths, shift, num_targets)
  if contextual_length:
    is_prefix = (place == 0) & (last > 0)
    start_a = jnp.where(is_prefix, 0, start_a)
    end_a = jnp.where(is_prefix, last + shift, end_a)
    start_b = jnp.where(is_prefix, jnp.maximum(start_b, last + shift), start_b)
  return _without_padding(lengths, start_a, end_a, start_b, end_b)


def _end_of_window(place, window, last, lengths, shift, num_targets):
  """One past the last token whose place is at most `place + window`."""
  reach = place + window
  end = jnp.minimum(reach + 1 + shift, lengths)
  if num_targets is None:
    return end
  return jnp.where(place == last, 0, jnp.where(reach >= last, lengths, end))


def _without_padding(lengths, start_a, end_a, start_b, end_b) -> IntervalMask:
  is_real = jnp.arange(start_a.shape[1])[None] < lengths  # [B, N]
  end_a = jnp.where(is_real, jnp.minimum(end_a, lengths), start_a)
  end_b = jnp.where(is_real, jnp.minimum(end_b, lengths), start_b)
  return IntervalMask(start_a, end_a, start_b, end_b, include_self=is_real)
