"""Encoders and variants that the cross-domain configs have in common."""

from __future__ import annotations

import re

from ml_collections import ConfigDict

from jaxrec.objectives.attention_score import SCORES

ENCODERS = ("hstu", "sasrec", "bert4rec")
AUTOCDSR = (
  "autocdsr", "autocdsr_every4", "autocdsr_target", "autocdsr_target_domain", "autocdsr_plus", "autocdsr_plus_every4",
  "autocdsr_visible", "autocdsr_excess", "autocdsr_plus_visible", "autocdsr_visible_gate",
  "autocdsr_target_domain_gate",
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
  "intra_tape_ddsr_last2": dict(last_states=2),
  "intra_tape_ddsr_last4": dict(last_states=4),
  "intra_tape_ddsr_kv_last4": dict(read="key_value", last_states=4),
  "intra_tape_ddsr_top": dict(states="top"),
  "intra_tape_ddsr_gate": dict(combination="gate"),
}
# Weightings by name, after a third hyphen; each takes --config.multi_objective.weighting.start_after=STEPS.
RULES = {
  "pareto": {"name": "pareto"},
  "path": {"name": "pareto", "smoothing": 0.9, "clamp": (0.0, 1.0)},  # Inner products on the path of attention.
  "loss+": {"name": "mgda", "normalization": "loss+", "clamp": (0.0, 0.5)},
  "band10": {"name": "band", "count": 10},
  "band20": {"name": "band", "count": 20},
  "keep.83": {"name": "set_point", "kappa": 0.83},
  "keep.5": {"name": "set_point", "kappa": 0.5},
  "keep.25": {"name": "set_point", "kappa": 0.25},
}
VARIANTS = ("base", "target_domain", *AUTOCDSR, *INTRA_DOMAIN)


def apply(
  config: ConfigDict, choice: str, *, width: int, num_heads: int, dropout: float, stride: int, output_norm: str = "l2"
) -> ConfigDict:
  """Sets name, model and objectives to those of a choice such as "hstu-autocdsr"; "" is "hstu-base".

  base: attention among all events. target_domain: an embedding of the target domain is an input.
  autocdsr: AutoCDSR; autocdsr_target: the domain of the target counts as the own one; autocdsr_target_domain: that, and
    it is an input; autocdsr_plus: bottleneck tokens; ..._every4: weights are solved for in every fourth step.
  AutoCDSR choices have the published score of all keys, with which the recorded results were obtained; ..._visible and
    ..._excess name the other scores of `jaxrec.objectives.attention_score`. autocdsr_visible_gate penalises only the
    queries that their own domain alone predicts better, autocdsr_target_domain_gate those that the domain of the target
    alone does, with the score of visible keys.
  intra...: attention inside a domain, HSTU only; "ddsr" reads domain states; "target_domain": as above; "target": reads
    the state of the target domain only; "last4": the states of the four latest events of each other domain.

  A number behind a third hyphen is a fixed weight of the second objective, "hstu-autocdsr-0.1"; else it is one of
  `RULES`, "sasrec-autocdsr_visible-keep.5".

  Args:
    config: changed and returned; its `data.max_length` must be set.
    choice: an encoder and a variant with a hyphen between them.
    width, num_heads, dropout, output_norm: of the encoder, with two layers.
    stride: events from one bottleneck token to the next in "autocdsr_plus".

  Raises:
    ValueError: another choice.
  """
  encoder, variant, rule = [*(choice or "hstu-base").split("-"), "", ""][:3]
  is_autocdsr = variant in AUTOCDSR
  known = encoder in ENCODERS and variant in VARIANTS and (encoder == "hstu" or variant not in INTRA_DOMAIN)
  is_rule = rule in RULES or re.fullmatch(r"[0-9.]+", rule)
  if not known or (rule and not (is_autocdsr and is_rule)):
    raise ValueError(
      f"{choice=} must be one of {ENCODERS}, a hyphen, one of {VARIANTS}, and for AutoCDSR perhaps a hyphen and a"
      f" weight or one of {tuple(RULES)}; intra... is for hstu"
    )
  config.name = "_".join(filter(None, (config.name, encoder, variant, rule)))
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
  config.model.target_domain = variant in ("target_domain", "autocdsr_target_domain", "autocdsr_target_domain_gate")
  if variant in INTRA_DOMAIN:
    config.model.update(name="multi_domain_hstu", **INTRA_DOMAIN[variant])
  config.eval.protocol = "both"
  if is_autocdsr:
    config.multi_objective.objectives = ("cross_domain_attention",)
    is_gated, score = variant.endswith("_gate"), variant.removesuffix("_gate").rpartition("_")[2]
    config.multi_objective.score = score if score in SCORES else ("visible" if is_gated else "all_keys")
    config.multi_objective.gate = is_gated
  if variant.startswith("autocdsr_target"):
    config.multi_objective.own_domain = "target"
  if rule:
    weighting = RULES[rule] if rule in RULES else {"name": "fixed", "weights": (1.0, float(rule))}
    config.multi_objective.weighting = weighting | {"start_after": 0}
  if rule == "path":
    config.multi_objective.inner_products = "attention_path"
  if variant.endswith("_every4"):
    config.multi_objective.reweight_every = 4
  if variant.startswith("autocdsr_plus"):
    config.model.update(num_bottlenecks=1, bottleneck_stride=stride)
  return config
