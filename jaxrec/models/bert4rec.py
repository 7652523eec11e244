"""BERT4Rec: a bidirectional transformer trained to predict masked items.

Source: Sun et al. 2019, arXiv 1904.06690.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn

from jaxrec.layers.feed_forward import ACTIVATIONS
from jaxrec.layers.norm import widen
from jaxrec.layers.transformer import BERT4RecLayer
from jaxrec.models.sequential import SequentialModel


class BERT4Rec(SequentialModel):
  """Reads sequences in which some items are the mask token `num_items + 1`; `num_special` must be at least 1.

  Choice: scores have no output bias per item, unlike in the paper, so that all models here score alike.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> from jaxrec.batches import next_item_batch
  >>> model = BERT4Rec(num_items=9, width=8, max_positions=4, hidden=16)
  >>> batch = next_item_batch(jnp.array([[5, 3, 10, 0]]))  # 10 is the mask token.
  >>> query, params = model.init_with_output(jax.random.key(0), batch)
  >>> query.shape
  (1, 4, 8)
  """

  num_layers: int = 2
  num_heads: int = 2
  hidden: int = 256
  feed_forward_activation: str = "gelu"
  dropout: float = 0.0
  implementation: str = "auto"
  num_special: int = 1

  causal: ClassVar[bool] = False

  def build_layers(self):
    self.head = nn.Dense(self.width, kernel_init=nn.initializers.xavier_normal(), dtype=self.dtype)
    self.head_norm = nn.LayerNorm()
    self.final_norm = nn.LayerNorm()
    return [
      BERT4RecLayer(
        self.num_heads, self.hidden, self.feed_forward_activation, self.dropout, self.implementation, self.dtype
      )
      for _ in range(self.num_layers)
    ]

  def encode(self, x, context, deterministic):
    for layer in self.layers:
      x = layer(x, context, deterministic)
    x = ACTIVATIONS[self.feed_forward_activation](self.head(self.final_norm(widen(x)).astype(self.dtype)))
    return self.head_norm(widen(x)).astype(self.dtype)
