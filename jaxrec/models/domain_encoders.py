"""AutoCDSR+ with an encoder for each domain below one of all events.

    domain encoders: events of a domain and T bottleneck tokens; a token becomes the mean over domains after each layer
    x + sum of what the domain encoders made of an event, normalised
    shared encoder: all events of a sequence; its attention is not part of the second objective

Source: AutoCDSR+, arXiv 2505.21811, section 4 as described in public notes: encoders for each domain with bottleneck
  tokens, and a full encoder above them, without a penalty.
Choice: positions are learned and absolute, and the blocks are those of `BERT4Rec`, as in the other models here.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxrec.layers.context import bidirectional_context
from jaxrec.layers.domain_encoder import EncoderContexts, domain_contexts
from jaxrec.layers.norm import widen
from jaxrec.layers.transformer import BERT4RecLayer
from jaxrec.models.bert4rec import BERT4Rec


class DomainEncoders(BERT4Rec):
  """A BERT4Rec above encoders of the domains; see the module. A masked event is in the encoders of all domains.

  num_layers: of the shared encoder.
  num_domain_layers: of the encoder of each domain, which has parameters of its own.
  num_bottlenecks: T; 0: the domain encoders exchange nothing.
  bottleneck_stride: sequences of fewer events have no bottleneck tokens.

  The score "all_keys" of `CrossDomainObjective` is the published attention to bottleneck tokens divided by the number
  of domains, since an event is in the encoder of one of them.

  Raises:
    ValueError: from `init`, a second item table (`attention_width`).
    NotImplementedError: from `within_domain`; attention inside a domain is for models of all events.

  >>> import jax
  >>> from jaxrec.batches import next_item_batch
  >>> model = DomainEncoders(num_items=9, width=8, max_positions=4, hidden=16, num_domains=2, bottleneck_stride=2)
  >>> batch = next_item_batch(jnp.array([[5, 3, 10, 0]]), domain_id=jnp.array([[1, 2, 0, 0]]))
  >>> query, params = model.init_with_output(jax.random.key(0), batch)
  >>> query.shape
  (1, 4, 8)
  """

  num_domain_layers: int = 2
  num_bottlenecks: int = 4

  def build_layers(self):
    if self.attention_width:
      raise ValueError(f"{self.attention_width=}: the encoders of domains have one item table only")
    options = self.num_heads, self.hidden, self.feed_forward_activation, self.dropout, self.implementation, self.dtype
    # Layer l of domain d (from 0) is number l C + d.
    self.domain_layers = [BERT4RecLayer(*options) for _ in range(self.num_domain_layers * self.num_domains)]
    self.residual_norm = nn.LayerNorm()
    return super().build_layers()

  def within_domain(self, batch, deterministic=True, item=None, own="query"):
    raise NotImplementedError("DomainEncoders: attention inside a domain is for models of all events")

  def build_context(self, x, batch):
    return x, bidirectional_context(batch, self.num_domains).replace(is_scored=False)

  def layer_context(self, context, batch, deterministic):
    shared = super().layer_context(context, batch, deterministic)
    domains = domain_contexts(batch, self.num_domains, self.num_bottlenecks, self.bottleneck_stride)
    return EncoderContexts(shared, domains)

  def encode(self, x, context, deterministic):
    num_events, domains = x.shape[1], range(self.num_domains)
    states = [self._with_tokens(x, context)] * self.num_domains  # [B, N + Z, M] each, in the order of the batch
    for index in range(self.num_domain_layers):
      outputs = []
      for d in domains:
        layer, own = self.domain_layers[index * self.num_domains + d], context.domains[d]
        outputs.append(own.order.undo(layer(own.order(states[d]), own, deterministic)))
      tokens = sum(y[:, num_events:] for y in outputs) / self.num_domains
      states = [jnp.concatenate([y[:, :num_events], tokens], axis=1) for y in outputs]
    encoded = sum(jnp.where(context.belongs(d)[..., None], states[d][:, :num_events], 0) for d in domains)
    x = self.residual_norm(widen(x + encoded)).astype(self.dtype)
    x = jnp.where(context.shared.is_real[..., None], x, 0)
    return super().encode(x, context.shared, deterministic)

  def _with_tokens(self, x, context):
    if not self.num_bottlenecks:
      return x
    sequences = (context.domains[0].mask.shape[1] - x.shape[1]) // self.num_bottlenecks
    tokens = jnp.tile(self.bottlenecks().astype(x.dtype), (x.shape[0], sequences, 1))  # [B, Z, M]
    return jnp.concatenate([x, tokens], axis=1)
