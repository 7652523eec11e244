"""SASRec, as the baseline of the HSTU paper runs it.

Source: Kang and McAuley 2018, arXiv 1808.09781; released code and configurations of arXiv 2402.17152.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxrec.layers.transformer import SASRecLayer
from jaxrec.models.sequential import SequentialModel


class SASRec(SequentialModel):
  """Causal softmax transformer over items and absolute positions; reads no times."""

  num_layers: int = 2
  num_heads: int = 1
  hidden: int = 50
  feed_forward_activation: str = "relu"
  dropout: float = 0.0
  implementation: str = "auto"

  def build_layers(self):
    return [
      SASRecLayer(
        self.num_heads, self.hidden, self.feed_forward_activation, self.dropout, self.implementation, self.dtype
      )
      for _ in range(self.num_layers)
    ]

  def encode(self, x, context, deterministic):
    for layer in self.layers:
      x = jnp.where(context.is_real[..., None], layer(x, context, deterministic), 0)
    return x
