"""The LiGR layer: a pre-norm transformer block whose two residual branches are gated by the residual stream itself.

`z = x + sigmoid(x W_a + b_a) * MHA(LN(x))`;  `y = z + sigmoid(z W_f + b_f) * SwiGLU(LN(z))`.

Source: LiGR, arXiv 2502.03417 (learned gates on the residual branches); eSASRec, arXiv 2508.06450, which takes these
  layers with SASRec's shifted sequences and a sampled softmax; SwiGLU: Shazeer 2020, arXiv 2002.05202.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.layers.context import AttentionContext, check_context
from jaxrec.layers.feed_forward import GatedFeedForward
from jaxrec.layers.item_embedding import dropout
from jaxrec.layers.norm import layer_norm, widen
from jaxrec.layers.transformer import MultiHeadAttention


class LiGRLayer(nn.Module):
  """A transformer block whose attention and feed-forward layer pass through learned gates; see the module.

  Queries and keys are projected from `context.attention_input` if it is set.

  num_heads, dropout, implementation: see `MultiHeadAttention`.
  hidden: of `GatedFeedForward`.

  Choice: gates start at 1/2 plus noise (biases 0), the papers give no start; the output of each branch has dropout, as
    in `BERT4RecLayer`.

  >>> from jaxrec.batches import next_item_batch
  >>> from jaxrec.layers.context import causal_context
  >>> layer = LiGRLayer(num_heads=2, hidden=16)
  >>> x, context = jnp.ones((1, 4, 8)), causal_context(next_item_batch(jnp.array([[5, 3, 8, 0]])))
  >>> y, params = layer.init_with_output(jax.random.key(0), x, context)
  >>> y.shape
  (1, 4, 8)
  """

  num_heads: int
  hidden: int
  dropout: float = 0.0
  implementation: str = "auto"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "B N M"], context: AttentionContext, deterministic: bool = True
  ) -> Float[Array, "B N M"]:
    check_context(context)
    x = context.without_padding(x)
    v = nn.LayerNorm(name="attention_norm")(widen(x)).astype(self.dtype)
    a = v if context.attention_input is None else layer_norm(context.without_padding(context.attention_input))
    attention = MultiHeadAttention(self.num_heads, self.dropout, self.implementation, self.dtype, name="attention")
    x = x + self._gated("attention_gate", x, attention(a, a, v, context, deterministic), deterministic)
    v = nn.LayerNorm(name="feed_forward_norm")(widen(x)).astype(self.dtype)
    feed_forward = GatedFeedForward(self.hidden, self.dropout, self.dtype, name="feed_forward")
    return x + self._gated("feed_forward_gate", x, feed_forward(v, deterministic), deterministic)

  def _gated(self, name, x, branch, deterministic):
    gate = nn.Dense(x.shape[-1], kernel_init=nn.initializers.xavier_normal(), dtype=self.dtype, name=name)
    return jax.nn.sigmoid(gate(x)) * dropout(self, branch, self.dropout, deterministic)
