"""HSTU with attention inside each domain; TAPE and dynamic domain states carry information between domains.

Source: Loureiro et al. 2025, arXiv 2508.20945. See `jaxrec.layers.transitions` for TAPE, and
`jaxrec.layers.domain_states` for which equations of the domain states are published and which are ours.
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
  """An `HSTULayer` that may read states of other domains: `Y = (combine(LN(A V), states) * U) W_o + b_o + X`.

  num_domains: C.
  read: "all" or "target" (see `DomainStateAttention`); "key_value": softmax attention of the layer's own queries to the
    keys and values of the latest event of each other domain; "": no states.
  combination: "sum" or "gate".

  >>> import jax
  >>> import jax.numpy as jnp
  >>> from jaxrec.batches import next_item_batch
  >>> batch = next_item_batch(jnp.array([[5, 3, 8, 0]]), domain_id=jnp.array([[1, 2, 1, 0]]))
  >>> sizes = dict(num_heads=2, head_width=4, value_width=4, attention_length=4)
  >>> layer, context = MultiDomainHSTULayer(**sizes, num_domains=2, read="all"), intra_domain_context(batch, 2)
  >>> y, params = layer.init_with_output(jax.random.key(0), context.order(jnp.ones((1, 4, 8))), context)
  >>> context.order.undo(y).shape
  (1, 4, 8)
  """

  num_domains: int = 1
  read: str = ""
  combination: str = "sum"

  def combine_domains(self, normalized, q, k, v, context):
    if not self.read:
      return normalized
    if self.read == "key_value":
      other = layer_norm(read_states(self, q, k, v, context).reshape(normalized.shape))
    else:
      states = DomainStateAttention(self.num_domains, self.num_heads, self.read, self.dtype, name="domain_states")
      other = states(normalized, context)
    return Combination(self.combination, self.dtype, name="combination")(normalized, other)


class MultiDomainHSTU(HSTU):
  """HSTU with attention inside each domain, TAPE at the input, and domain states between domains.

  It predicts events of `batch.target_domain`, in training as in serving. With one domain it equals `HSTU`.

  tape: add transition-aware positional embeddings.
  states: "every_layer", "top" (once, on the output of the last layer) or "none".
  read: which states a token reads: "all", "target", or "key_value", which needs "every_layer".
  combination: "sum" or "gate" of the outputs of attention and states.
  last_states: K, latest events of each other domain whose states a token reads.

  Raises:
    ValueError: from `init`, an unknown option, options that contradict each other, or bottleneck tokens.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> from jaxrec.batches import next_item_batch
  >>> model = MultiDomainHSTU(num_items=9, width=8, max_positions=4, attention_length=4, num_domains=2)
  >>> batch = next_item_batch(jnp.array([[5, 3, 8, 0]]), domain_id=jnp.array([[1, 2, 1, 0]]))
  >>> params = model.init(jax.random.key(0), batch)
  >>> query, items = model.apply(params, batch), model.apply(params, method="item_vectors")
  >>> query.shape, (query @ items.T).shape  # Scores of padding and items 1..9.
  ((1, 4, 8), (1, 4, 10))
  """

  tape: bool = True
  states: str = "every_layer"
  read: str = "all"
  combination: str = "sum"
  last_states: int = 1

  def build_layers(self):
    if self.last_states < 1:
      raise ValueError(f"{self.last_states=} must be at least 1; states='none' reads none")
    for name, value, known in (("states", self.states, STATES), ("read", self.read, READS)):
      if value not in known:
        raise ValueError(f"{name}={value!r} is not one of {known}")
    if self.states == "top" and self.read == "key_value":
      raise ValueError("read='key_value' reads the keys and values of attention: it needs states='every_layer'")
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
  def num_states(self):
    return self.last_states

  @property
  def needs_target_domain(self):
    return self.target_domain or self.tape or self.states != "none"

  def domain_embedding(self, batch):
    target = super().domain_embedding(batch)
    if not self.tape:
      return target
    r = self.transitions(batch.domain_id, batch.target_domain)  # [B, N, M]
    return r if target is None else target + r

  def build_context(self, x, batch):
    if self.num_bottlenecks:
      raise ValueError(f"{self.num_bottlenecks=}: bottleneck tokens need attention among all events; use 'hstu'")
    context = intra_domain_context(batch, self.num_domains, num_states=self.last_states)
    return context.order(x), context

  def encode(self, x, context, deterministic):
    for layer in self.layers:
      x = layer(x, context, deterministic)
    if self.states == "top":
      x = self.top_combination(x, self.top_states(x, context))
    return x if context.order is None else context.order.undo(x)
