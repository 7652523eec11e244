"""HSTU for retrieval.

Source: Zhai et al. 2024, arXiv 2402.17152, section 3, and the released public configurations.
"""

from __future__ import annotations

from jaxrec.layers.hstu import HSTULayer
from jaxrec.models.sequential import SequentialModel


class HSTU(SequentialModel):
  """A stack of `HSTULayer`s. See there for options; `attention_length` is N, the same in training and evaluation."""

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
  implementation: str = "auto"

  def build_layers(self):
    return [HSTULayer(**self.layer_options()) for _ in range(self.num_layers)]

  def layer_options(self):
    """The fields that the layers have under the same names."""
    names = (
      "num_heads", "head_width", "value_width", "attention_length", "dropout", "time_bias", "position_bias",
      "concat_ua", "activation", "linear_activation", "implementation", "dtype",
    )  # fmt: skip
    return {name: getattr(self, name) for name in names}

  def encode(self, x, context, deterministic):
    for layer in self.layers:
      x = layer(x, context, deterministic)
    return x
