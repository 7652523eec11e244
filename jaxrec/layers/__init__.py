"""Linen modules that hold parameters and call pure functions; each works on its own.

    import jaxrec.layers
    layer = jaxrec.layers.HSTULayer(num_heads=2, head_width=8, value_width=8, attention_length=64)

Sequences: `HSTULayer`, `STU`, `STULayer`, `STUPositionalEncoder`, `SASRecLayer`, `LiGRLayer`, `BERT4RecLayer`,
`MultiHeadAttention`, `FeedForward`, `GatedFeedForward`, `ItemEmbedding`, `SequenceEmbedding`, under a context from
`causal_context`, `bidirectional_context`, `intra_domain_context` or `with_bottlenecks`. Domains:
`TransitionAwarePositionalEmbedding`, `TargetDomainEmbedding`, `DomainStateAttention`, `Combination`,
`BottleneckTokens`. Click-through: `DecoupledEmbedding`, `FieldEmbedding`, `FieldProjection`, `AttentionUnit`,
`BatchNorm`. Actions: `ActionEmbedding`, `ActionHeads`. Names are loaded when they are first used.
"""

from __future__ import annotations

import importlib

_HOMES = {
  "ActionEmbedding": "action_tokens",
  "ActionHeads": "action_tokens",
  "AttentionContext": "context",
  "AttentionUnit": "ctr.target_attention",
  "BERT4RecLayer": "transformer",
  "BatchNorm": "ctr.batch_norm",
  "BottleneckTokens": "bottleneck",
  "Combination": "domain_states",
  "DecoupledEmbedding": "ctr.decoupled",
  "DomainStateAttention": "domain_states",
  "FeedForward": "feed_forward",
  "FieldEmbedding": "ctr.decoupled",
  "FieldProjection": "ctr.decoupled",
  "FieldWidths": "ctr.decoupled",
  "GatedFeedForward": "feed_forward",
  "HSTULayer": "hstu",
  "ItemEmbedding": "item_embedding",
  "LiGRLayer": "ligr",
  "MultiHeadAttention": "transformer",
  "SASRecLayer": "transformer",
  "STU": "stu",
  "STULayer": "stu",
  "STUPositionalEncoder": "stu",
  "SequenceEmbedding": "item_embedding",
  "TargetDomainEmbedding": "transitions",
  "TransitionAwarePositionalEmbedding": "transitions",
  "bidirectional_context": "context",
  "causal_context": "context",
  "intra_domain_context": "intra_domain",
  "l2_normalize": "norm",
  "layer_norm": "norm",
  "with_bottlenecks": "bottleneck",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
  if name in _HOMES:
    return getattr(importlib.import_module(f"jaxrec.layers.{_HOMES[name]}"), name)
  raise AttributeError(f"module 'jaxrec.layers' has no attribute {name!r}; it has {__all__}")


def __dir__() -> list[str]:
  return __all__
