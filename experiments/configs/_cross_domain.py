"""Encoders and variants that the cross-domain configs have in common."""

from __future__ import annotations

from ml_collections import ConfigDict

ENCODERS = ("hstu", "sasrec", "bert4rec")
VARIANTS = ("base", "autocdsr", "autocdsr_target", "autocdsr_plus")


def apply(config: ConfigDict, choice: str, *, width: int, num_heads: int, dropout: float, stride: int) -> ConfigDict:
  """Sets name, model and objectives to those of a choice such as "hstu-autocdsr"; "" is "hstu-base".

  A number behind a third hyphen is a fixed weight of the second objective: "hstu-autocdsr-0.1".

  Args:
    config: changed and returned; its `data.max_length` must be set.
    choice: an encoder and a variant with a hyphen between them.
    width, num_heads, dropout: of the encoder, with two layers.
    stride: events from one bottleneck token to the next in "autocdsr_plus".

  Raises:
    ValueError: another choice.
  """
  encoder, variant, weight = [*(choice or "hstu-base").split("-"), "", ""][:3]
  if encoder not in ENCODERS or variant not in VARIANTS or (weight and variant == "base"):
    raise ValueError(f"{choice=} must be one of {ENCODERS}, a hyphen, one of {VARIANTS}, and perhaps -weight")
  config.name = "_".join(filter(None, (config.name, encoder, variant, weight)))
  config.model = dict(
    name=encoder, width=width, num_layers=2, num_heads=num_heads, max_positions=config.data.max_length + 1,
    input_dropout=dropout, dropout=dropout,
  )  # fmt: skip
  if encoder == "hstu":
    head = width // num_heads
    config.model.update(head_width=head, value_width=head, attention_length=config.data.max_length + 1)
  else:
    config.model.hidden = 4 * width if encoder == "bert4rec" else width
  if encoder == "bert4rec":
    config.data.task = "masked_item"
    config.data.mask_probability = 0.2
    config.data.mask_last_probability = 0.1
  if variant != "base":
    config.multi_objective.objectives = ("cross_domain_attention",)
  if variant == "autocdsr_target":
    config.multi_objective.own_domain = "target"
  if weight:
    config.multi_objective.weighting = {"name": "fixed", "weights": (1.0, float(weight))}
  if variant == "autocdsr_plus":
    config.model.update(num_bottlenecks=1, bottleneck_stride=stride)
  return config
