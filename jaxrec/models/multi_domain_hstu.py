"""HSTU over several domains whose attention stays inside a domain: TAPE and dynamic domain states carry the rest.

Source: Loureiro et al. 2025, arXiv 2508.20945. See `jaxrec.layers.transitions` for TAPE, and
`jaxrec.layers.domain_states` for what of the domain states is published and what is ours.
"""

from __future__ import annotations

from jaxrec.layers.domain_states import READS, Combination, DomainStateAttention, read_states
from jaxrec.layers.hstu import HSTULayer
from jaxrec.layers.intra_domain import intra_domain_context
from jaxrec.layers.norm import layer_norm
from jaxrec.layers.transitions import TransitionAwarePositionalEmbedding
from jaxrec.models.hstu import HSTU

STATES = ("none", "every_layer", "top")


class MultiDomainHSTULayer(HSTULayer):
  """An `HSTULayer` that may read the states of other domains: `Y = (combine(LN(A V), read) * U) W_o + b_o + X`.

  num_domains: C.
  read: "all", "target" (see `DomainStateAttention`), "key_value": softmax attention of the layer's own queries to the
    keys and values of the latest event of each other domain; or "" for none.
  combination: "sum" or "gate".
  """

  num_domains: int = 1
  read: str = ""
  combination: str = "sum"

  def across_domains(self, normalized, q, k, v, context):
    if not self.read:
      return normalized
    if self.read == "key_value":
      other = layer_norm(read_states(self, q, k, v, context).reshape(normalized.shape))
    else:
      states = DomainStateAttention(self.num_domains, self.num_heads, self.read, self.dtype, name="domain_states")
      other = states(normalized, context)
    return Combination(self.combination, self.dtype, name="combination")(normalized, other)


class MultiDomainHSTU(HSTU):
  """HSTU with attention inside each domain, TAPE at the input, and domain states between the domains.

  It predicts for the domain that `batch.target_domain` asks for, the same at training and at serving time. With one
  domain it is a plain `HSTU`.

  tape: transition-aware positional embeddings.
  states: "every_layer", "top" (once, on what the last layer returns) or "none".
  read: what is read of the states: "all", "target" or, in every layer only, "key_value".
  combination: "sum" or "gate" of what attention and states have found.
  """

  tape: bool = True
  states: str = "every_layer"
  read: str = "all"
  combination: str = "sum"

  def build_layers(self):
    for name, value, known in (("states", self.states, STATES), ("read", self.read, READS)):
      if value not in known:
        raise ValueError(f"{name}={value!r} is not one of {known}")
    if self.states == "top" and self.read == "key_value":
      raise ValueError("read='key_value' reads what attention has: it needs states='every_layer'")
    if self.tape:
      self.transitions = TransitionAwarePositionalEmbedding(self.num_domains, self.width, self.dtype)
    if self.states == "top":
      self.top_states = DomainStateAttention(self.num_domains, self.num_heads, self.read, self.dtype)
      self.top_combination = Combination(self.combination, self.dtype)
    read = self.read if self.states == "every_layer" else ""
    options = {**self.layer_options(), "num_domains": self.num_domains, "read": read, "combination": self.combination}
    return [MultiDomainHSTULayer(**options) for _ in range(self.num_layers)]

  @property
  def num_cache_groups(self):
    return self.num_domains

  @property
  def asks_for_domain(self):
    return self.target_domain or self.tape or self.states != "none"

  def of_domains(self, batch):
    added = super().of_domains(batch)
    if not self.tape:
      return added
    r = self.transitions(batch.domain_id, batch.target_domain)  # [B, N, M]
    return r if added is None else added + r

  def in_context(self, x, batch):
    if self.num_bottlenecks:
      raise ValueError(f"{self.num_bottlenecks=}: bottleneck tokens are for attention among all events")
    context = intra_domain_context(batch, self.num_domains)
    return context.order(x), context

  def encode(self, x, context, deterministic):
    for layer in self.layers:
      x = layer(x, context, deterministic)
    if self.states == "top":
      x = self.top_combination(x, self.top_states(x, context))
    return x if context.order is None else context.order.undo(x)
