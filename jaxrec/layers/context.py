"""What every attention layer of a model shares for one batch: the mask, inputs of the relative bias, domains."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrec.types import SequenceBatch
from pallas_kernels import IntervalMask, permute


@flax.struct.dataclass
class AttentionContext:
  """The mask and the O(N) inputs of the relative bias. There are Q queries for S tokens; Q = S = N without bottlenecks.

  mask: which tokens each query reads.
  query_position, key_position: index of a token in its own sequence.
  query_time: when its prediction is asked for, in seconds.
  key_time: when it happened, in seconds.
  is_real: whether a token is one, and not padding (nor an event whose item is unknown).
  group: what kind of key a token is: its domain 1..C, C + 1 for a bottleneck token, 0 for one whose domain is hidden.
  num_groups: C + 1, or C + 2 with bottlenecks.
  bottlenecks: how tokens make queries and items are told from bottlenecks; None where there are items only.
  attention_input: of what queries and keys are made; None: of the tokens that the layer is given, as values are.
  """

  mask: IntervalMask
  query_position: Int[Array, "B Q"]
  key_position: Int[Array, "B S"]
  query_time: Int[Array, "B Q"]
  key_time: Int[Array, "B S"]
  is_real: Bool[Array, "B S"]
  group: Int[Array, "B S"]
  num_groups: int = flax.struct.field(pytree_node=False)
  bottlenecks: Bottlenecks | None = None
  attention_input: Float[Array, "B S A"] | None = None


@flax.struct.dataclass
class Permutation:
  """An order of the columns of each row, and the way back."""

  order: Int[Array, "B X"]
  inverse: Int[Array, "B X"]

  def __call__(self, x: Array) -> Array:
    """`[B, X, ...]` in this order."""
    return permute(x, self.order, self.inverse)

  def undo(self, x: Array) -> Array:
    """`[B, X, ...]` back from it."""
    return permute(x, self.inverse, self.order)


@flax.struct.dataclass
class Bottlenecks:
  """Tokens are the N events and then Z bottleneck tokens; each of the latter asks once in each domain.

  keys, queries: the orders in which attention sees them, so that what is read together lies together.
  share: of each domain in what a bottleneck token takes on; sums to 1 over the domains that have an event before it.
  """

  keys: Permutation
  queries: Permutation
  share: Float[Array, "B Z C"]

  def asked(self, x: Array) -> Array:
    """Tokens `[B, N + Z, ...]` as sorted queries."""
    num_items = x.shape[1] - self.share.shape[1]
    per_domain = jnp.repeat(x[:, num_items:], self.share.shape[2], axis=1)
    return self.queries(jnp.concatenate([x[:, :num_items], per_domain], axis=1))

  def answered(self, y: Array) -> Array:
    """What sorted queries found, as the tokens' `[B, N + Z, ...]`: of a bottleneck token the mean over domains."""
    y = self.queries.undo(y)
    num_items = y.shape[1] - self.share.shape[1] * self.share.shape[2]
    of_domains = y[:, num_items:].reshape(*self.share.shape, *y.shape[2:])  # [B, Z, C, ...]
    mean = jnp.einsum("bzc,bzc...->bz...", self.share.astype(y.dtype), of_domains)  # [B, Z, ...]
    return jnp.concatenate([y[:, :num_items], mean], axis=1)


def causal_context(batch: SequenceBatch, num_domains: int = 1) -> AttentionContext:
  """Each token reads itself and earlier tokens of its sequence; the query's time is that of the event to be predicted.

  Choice: the published HSTU compares the *next* event's time with the times of the keys; data pipelines decide whether
  `target_time` is that (`request_time="target"`) or the token's own time (`"last_event"`).
  """
  batch = jax.tree.map(jnp.asarray, batch)  # Data pipelines make NumPy arrays.
  return _plain(batch, IntervalMask.causal(batch.sequence_id), batch.target_time, num_domains)


def bidirectional_context(batch: SequenceBatch, num_domains: int = 1) -> AttentionContext:
  """Each token reads its whole sequence."""
  batch = jax.tree.map(jnp.asarray, batch)
  return _plain(batch, IntervalMask.full(batch.sequence_id), batch.timestamp, num_domains)


def _plain(batch, mask, query_time, num_domains):
  return AttentionContext(
    mask, batch.position, batch.position, query_time, batch.timestamp, batch.item_id != 0, batch.domain_id,
    num_domains + 1,
  )  # fmt: skip
