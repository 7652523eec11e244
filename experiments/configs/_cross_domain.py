"""Encoders and variants that the cross-domain configs have in common."""

from __future__ import annotations

from ml_collections import ConfigDict

ENCODERS = ("hstu", "sasrec", "bert4rec")
AUTOCDSR = (
  "autocdsr", "autocdsr_every4", "autocdsr_target", "autocdsr_target_domain", "autocdsr_plus", "autocdsr_plus_every4",
)  # fmt: skip
# Of HSTU with attention inside a domain: transition-aware positions, states read in every layer or on top, by a gate.
INTRA_DOMAIN = {
  "intra": dict(tape=False, states="none"),
  "intra_tape": dict(states="none"),
  "intra_ddsr": dict(tape=False),
  "intra_tape_ddsr": dict(),
  "intra_tape_ddsr_target_domain": dict(target_domain=True),
  "intra_tape_ddsr_target": dict(read="target"),
  "intra_tape_ddsr_kv": dict(read="key_value"),
  "intra_tape_ddsr_top": dict(states="top"),
  "intra_tape_ddsr_gate": dict(combination="gate"),
}
VARIANTS = ("base", "target_domain", *AUTOCDSR, *INTRA_DOMAIN)


def apply(
  config: ConfigDict, choice: str, *, width: int, num_heads: int, dropout: float, stride: int, output_norm: str = "l2"
) -> ConfigDict:
  """Sets name, model and objectives to those of a choice such as "hstu-autocdsr"; "" is "hstu-base".

  base: attention among all events. target_domain: an embedding of the target domain is an input.
  autocdsr: AutoCDSR; autocdsr_target: the domain of the target counts as the own one; autocdsr_target_domain: that, and
    it is an input; autocdsr_plus: bottleneck tokens; ..._every4: weights are solved for in every fourth step.
  intra...: attention inside a domain, HSTU only; "ddsr" reads domain states; "target_domain": as above; "target": reads
    the state of the target domain only.

  A number behind a third hyphen is a fixed weight of the second objective: "hstu-autocdsr-0.1".

  Args:
    config: changed and returned; its `data.max_length` must be set.
    choice: an encoder and a variant with a hyphen between them.
    width, num_heads, dropout, output_norm: of the encoder, with two layers.
    stride: events from one bottleneck token to the next in "autocdsr_plus".

  Raises:
    ValueError: another choice.
  """
  encoder, variant, weight = [*(choice or "hstu-base").split("-"), "", ""][:3]
  is_autocdsr = variant in AUTOCDSR
  known = encoder in ENCODERS and variant in VARIANTS and (encoder == "hstu" or variant not in INTRA_DOMAIN)
  if not known or (weight and not is_autocdsr):
    raise ValueError(
      f"{choice=} must be one of {ENCODERS}, a hyphen, one of {VARIANTS}, and for AutoCDSR perhaps -weight; intra... is"
      " for hstu"
    )
  config.name = "_".join(filter(None, (config.name, encoder, variant, weight)))
  config.model = dict(
    name=encoder, width=width, num_layers=2, num_heads=num_heads, max_positions=config.data.max_length + 1,
    input_dropout=dropout, dropout=dropout, output_norm=output_norm,
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
  config.model.target_domain = variant in ("target_domain", "autocdsr_target_domain")
  if variant in INTRA_DOMAIN:
    config.model.update(name="multi_domain_hstu", **INTRA_DOMAIN[variant])
  config.eval.protocol = "both"
  if is_autocdsr:
    config.multi_objective.objectives = ("cross_domain_attention",)
  if variant in ("autocdsr_target", "autocdsr_target_domain"):
    config.multi_objective.own_domain = "target"
  if weight:
    config.multi_objective.weighting = {"name": "fixed", "weights": (1.0, float(weight))}
  if variant.endswith("_every4"):
    config.multi_objective.reweight_every = 4
  if variant.startswith("autocdsr_plus"):
    config.model.update(num_bottlenecks=1, bottleneck_stride=stride)
  return config
