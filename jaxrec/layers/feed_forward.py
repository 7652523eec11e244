"""Networks that act on each position by itself: the feed-forward layers of transformers."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.layers.item_embedding import dropout

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}


class FeedForward(nn.Module):
  """`dropout(W2 dropout(activation(W1 x + b1)) + b2)`.

  hidden: width of the hidden layer.
  activation: "relu" or "gelu".

  Raises:
    ValueError: another `activation`.

  >>> y, params = FeedForward(hidden=16).init_with_output(jax.random.key(0), jnp.ones((1, 4, 8)))
  >>> y.shape, params["params"]["hidden"]["kernel"].shape
  ((1, 4, 8), (8, 16))
  """

  hidden: int
  activation: str = "relu"
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B N M"], deterministic: bool = True) -> Float[Array, "B N M"]:
    if self.activation not in ACTIVATIONS:
      raise ValueError(f"{self.activation=} is not one of {tuple(ACTIVATIONS)}")
    init = nn.initializers.xavier_normal()
    hidden = ACTIVATIONS[self.activation](nn.Dense(self.hidden, kernel_init=init, dtype=self.dtype, name="hidden")(x))
    hidden = dropout(self, hidden, self.dropout, deterministic)
    y = nn.Dense(x.shape[-1], kernel_init=init, dtype=self.dtype, name="output")(hidden)
    return dropout(self, y, self.dropout, deterministic)


class GatedFeedForward(nn.Module):
  """SwiGLU: `W_o dropout(silu(W_h x) * W_g x)`, without biases.

  hidden: width of the hidden layer.

  Source: Shazeer 2020, arXiv 2002.05202, equation 6.

  >>> layer, eye = GatedFeedForward(hidden=1), jnp.ones((1, 1))
  >>> params = {"params": {name: {"kernel": eye} for name in ("hidden", "gate", "output")}}
  >>> f"{layer.apply(params, jnp.full((1, 1, 1), 2.0)).item():.4f}"  # silu(2) * 2
  '3.5232'
  """

  hidden: int
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B N M"], deterministic: bool = True) -> Float[Array, "B N M"]:
    def dense(name, width):
      init = nn.initializers.xavier_normal()
      return nn.Dense(width, use_bias=False, kernel_init=init, dtype=self.dtype, name=name)

    hidden = jax.nn.silu(dense("hidden", self.hidden)(x)) * dense("gate", self.hidden)(x)
    return dense("output", x.shape[-1])(dropout(self, hidden, self.dropout, deterministic))
