"""SASRec, as configured in the baseline of the HSTU paper, and with other layers.

Source: Kang and McAuley 2018, arXiv 1808.09781; released code and configurations of arXiv 2402.17152. gSASRec, arXiv
  2308.07192, is this model with the objective "gbce"; eSASRec, arXiv 2508.06450, is it with `layer="ligr"` and
  "sampled_softmax".
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxrec.layers.ligr import LiGRLayer
from jaxrec.layers.transformer import SASRecLayer
from jaxrec.models.sequential import SequentialModel

LAYERS = ("sasrec", "ligr")


class SASRec(SequentialModel):
  """Causal softmax transformer over items and absolute positions; does not read times.

  num_layers, num_heads, dropout, implementation: of the layers.
  layer: "sasrec" (`SASRecLayer`) or "ligr" (`LiGRLayer`).
  hidden: width of the hidden feed-forward layers.
  feed_forward_activation: of "sasrec"; "ligr" has SwiGLU.

  Raises:
    ValueError: from `init`, an unknown layer.

  >>> import jax
  >>> from jaxrec.batches import next_item_batch
  >>> model = SASRec(num_items=9, width=8, max_positions=4, hidden=16)
  >>> batch = next_item_batch(jnp.array([[5, 3, 8, 0]]))
  >>> params = model.init(jax.random.key(0), batch)
  >>> query, items = model.apply(params, batch), model.apply(params, method="item_vectors")
  >>> query.shape, (query @ items.T).shape  # Scores of padding and items 1..9.
  ((1, 4, 8), (1, 4, 10))
  """

  num_layers: int = 2
  num_heads: int = 1
  hidden: int = 50
  feed_forward_activation: str = "relu"
  dropout: float = 0.0
  implementation: str = "auto"
  layer: str = "sasrec"

  def build_layers(self):
    if self.layer not in LAYERS:
      raise ValueError(f"{self.layer=} is not one of {LAYERS}")
    if self.layer == "ligr":
      options = self.num_heads, self.hidden, self.dropout, self.implementation, self.dtype
      return [LiGRLayer(*options) for _ in range(self.num_layers)]
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
