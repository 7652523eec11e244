"""STU as a retrieval model: the production variant of the HSTU layer, trained to predict the next item.

Source: Zhai et al. 2024, arXiv 2402.17152, and its authors' production module `STULayer`.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxrec.layers.stu import STULayer
from jaxrec.models.sequential import SequentialModel


class STUModel(SequentialModel):
  """A stack of `STULayer`s over items and absolute positions; does not read times.

  num_heads: H.
  head_width, value_width: width of a query or key (D) and of a value (E), per head.
  attention_length: divisor of the silu weights, the same in training and evaluation; `normalizer` of `STULayer`.
  scale, group_norm, dropout, implementation: see `jaxrec.layers.stu.STU`.

  Choice: positions count from the start of a sequence. `STUPositionalEncoder` counts back from the end of the history,
    which is known when candidates are ranked but not when every event predicts the next one.

  Raises:
    ValueError: from `init`, a second item table (`attention_width`).

  >>> import jax
  >>> from jaxrec.batches import next_item_batch
  >>> model = STUModel(num_items=9, width=8, max_positions=4, head_width=8, value_width=8, attention_length=4)
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
  scale: float | None = None
  group_norm: bool = False
  dropout: float = 0.0
  implementation: str = "auto"

  def build_layers(self):
    if self.attention_width:
      raise ValueError(
        f"{self.attention_width=}: STU projects queries, keys and values together; use 0, or model 'hstu'"
      )
    options = dict(
      num_heads=self.num_heads, head_width=self.head_width, value_width=self.value_width, scale=self.scale,
      normalizer=self.attention_length, group_norm=self.group_norm, dropout=self.dropout,
      implementation=self.implementation, dtype=self.dtype,
    )  # fmt: skip
    return [STULayer(**options) for _ in range(self.num_layers)]

  def encode(self, x, context, deterministic):
    for layer in self.layers:
      x = jnp.where(context.is_real[..., None], layer(x, context, deterministic), 0)
    return x
