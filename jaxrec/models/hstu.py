"""HSTU as a retrieval model.

Source: Zhai et al. 2024, arXiv 2402.17152, section 3, and the released public configurations.
"""

from __future__ import annotations

from jaxrec.layers.hstu import HSTULayer
from jaxrec.models.sequential import SequentialModel


class HSTU(SequentialModel):
  """A stack of `HSTULayer`s, which describe the options; `attention_length` is the same in training and evaluation.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> from jaxrec.batches import next_item_batch
  >>> model = HSTU(num_items=9, width=8, max_positions=4, head_width=8, value_width=8, attention_length=4)
  >>> batch = next_item_batch(jnp.array([[5, 3, 8, 0]]))
  >>> params = model.init(jax.random.key(0), batch)
  >>> query, items = model.apply(params, batch), model.apply(params, method="item_vectors")
  >>> query.shape, (query @ items.T).shape  # Scores of padding and items 1..9.
  ((1, 4, 8), (1, 4, 10))
  """

  num_layers: int = 2
  num_heads: int = 1
  head_width: int = 50
  value_width: int = 50
  attention_length: int = 211
  dropout: float = 0.0
  time_bias: bool = True
  position_bias: bool = True
  concat_ua: bool = False
  activation: str = "silu"
  linear_activation: str = "silu"
  bias_tables: str = "shared"
  normalizer: str = "length"
  dropout_on: str = "gated"
  feed_forward: int = 0
  implementation: str = "auto"

  def build_layers(self):
    return [HSTULayer(**self.layer_options()) for _ in range(self.num_layers)]

  def layer_options(self):
    """Returns the fields that the layers share with the model."""
    names = (
      "num_heads", "head_width", "value_width", "attention_length", "dropout", "time_bias", "position_bias",
      "concat_ua", "activation", "linear_activation", "bias_tables", "normalizer", "dropout_on", "feed_forward",
      "implementation", "dtype",
    )  # fmt: skip
    return {name: getattr(self, name) for name in names}

  def encode(self, x, context, deterministic):
    for layer in self.layers:
      x = layer(x, context, deterministic)
    return x
