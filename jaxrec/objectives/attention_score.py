"""Scores of cross-domain attention, the second loss of AutoCDSR.

For a query i, V_i are the keys that it may attend to, without itself and without events whose domain is hidden (masked
events); o_i is the sum of its absolute weights over the keys of V_i in other domains (and bottleneck tokens), w_i that
over the keys of its own domain.

    visible:   mean of s_i = o_i / (o_i + w_i)
    excess:    mean of max(0, logit s_i - logit u_i - margin), with u_i the share of other domains among the keys V_i
    all_keys:  mean of the share of other domains among all keys; see `cross_domain_attention`

The first two are means over queries whose V_i has both kinds of keys, over heads and over layers. A gate counts some of
these queries as 0.

Source: a_cd of AutoCDSR, arXiv 2505.21811, is `all_keys`.
Choice: that score falls as well where a query attends to itself or to masked events, with no change between domains,
  and SiLU weights of opposite sign cancel in it. "visible" compares domains only. "excess" asks for nothing where a
  query attends to other domains no more than their number of events would make it, if it attended to all alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrec.batches import SequenceBatch
from jaxrec.layers.attention import AttentionSizes, cross_domain_share, is_other_group
from jaxrec.objectives import item_losses

SCORES = ("visible", "excess", "all_keys")
SMALLEST = 1e-12  # Sums of weights below it count as no attention: their reciprocal squared must be a float32.


def visible_share(
  layers: Sequence[AttentionSizes], batch: SequenceBatch, own: str = "query", gate: Bool[Array, "B N"] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Returns the score "visible", 0..1, and the number of queries that have keys of both kinds (mean over the layers).

  Args:
    layers: what each layer attends to.
    batch: the queries.
    own: whose domain is the query's own: that of its event, or of its target where the event's domain is hidden
      ("query"), or always that of its target ("target", where there is one).
    gate: queries that are penalised; None: all.
  """
  domain, asks = own_domain(batch, own)

  def share_of(own_size, other_size, _):
    total = own_size + other_size
    is_any = total > SMALLEST
    return jnp.where(is_any, other_size / jnp.where(is_any, total, 1), 0)

  return _mean_over_queries(layers, domain, asks, gate, share_of)


def excess(
  layers: Sequence[AttentionSizes],
  batch: SequenceBatch,
  own: str = "query",
  margin: float = 0.0,
  gate: Bool[Array, "B N"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Returns the score "excess", in units of log-odds, and the number of queries; arguments as of `visible_share`.

  Args:
    margin: excess that is free of charge: log 2 allows twice the odds of attending to all events alike.
  """
  domain, asks = own_domain(batch, own)

  def excess_of(own_size, other_size, odds):
    log_odds = jnp.log(jnp.maximum(other_size, SMALLEST)) - jnp.log(jnp.maximum(own_size, SMALLEST))
    return jnp.maximum(log_odds - jnp.log(odds) - margin, 0)

  return _mean_over_queries(layers, domain, asks, gate, excess_of)


def cross_domain_attention(
  masses: Sequence[Float[Array, "B S H G"]], batch: SequenceBatch, own: str = "query"
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Returns the score "all_keys", the mean share of attention paid to other domains, and the number of queries.

  Args:
    masses: attention mass by domain of each layer; see `jaxrec.layers.attention.attend`.
    batch: the queries.
    own: see `visible_share`; published is "query".

  Source: a_cd of AutoCDSR, arXiv 2505.21811, and for bottleneck tokens the attention paid to these.
  Choice: a mean over queries, heads and layers, so that it lies in 0..1 whatever the lengths (the paper's is a sum).
  """
  domain, asks = own_domain(batch, own)
  is_real = asks.astype(jnp.float32)
  events = [mass[:, : domain.shape[1]] for mass in masses]  # Without bottleneck tokens.
  share = sum(cross_domain_share(mass, domain).mean(axis=-1) for mass in events) / len(events)  # [B, N]
  return item_losses.weighted_mean(share, is_real), is_real.sum()


def attention_parts(
  layers: Sequence[AttentionSizes], batch: SequenceBatch, own: str = "query"
) -> dict[str, Float[Array, ""]]:
  """Returns, for each layer l, the shares "attention_l/self", ".../hidden", ".../own" and ".../other", which sum to 1.

  They are means over the positions with a target, by their weight, and over heads, of the share of absolute weights:
  of the query's own key, of other events of hidden domain, of its own domain, and of other domains and bottlenecks.
  """
  domain, _ = own_domain(batch, own)
  weight = batch.target_weight
  found = {}
  for index, layer in enumerate(layers):
    own_size, other_size = own_and_other(layer, domain)  # [B, N, H]
    events = layer.sizes[:, : domain.shape[1]]
    parts = {"self": events[..., -1], "hidden": events[..., 0], "own": own_size, "other": other_size}
    total = jnp.maximum(events.sum(axis=-1), SMALLEST)
    for name, part in parts.items():
      share = (part / total).mean(axis=-1)
      found[f"attention_{index}/{name}"] = item_losses.weighted_mean(share, weight.astype(share.dtype))
  return found


def own_domain(batch: SequenceBatch, own: str) -> tuple[Int[Array, "B N"], Bool[Array, "B N"]]:
  """Returns the own domain of each query, and which positions are queries."""
  if own == "target":
    return batch.target_domain, batch.target_weight > 0
  return query_domain(batch), batch.sequence_id != 0


def query_domain(batch: SequenceBatch) -> Int[Array, "B N"]:
  """Returns the domain of each event, or that of its target where the model doesn't see it (a masked event)."""
  return jnp.where(batch.domain_id == 0, batch.target_domain, batch.domain_id)


def own_and_other(
  layer: AttentionSizes, domain: Int[Array, "B N"]
) -> tuple[Float[Array, "B N H"], Float[Array, "B N H"]]:
  """Returns the absolute weights of each event over the other events of this domain, and over those of other domains.

  >>> layer = AttentionSizes(jnp.array([[[[0.5, 1.0, 3.0, 2.0]]]]), jnp.array([[[1.0, 1.0, 2.0]]]))
  >>> [size.tolist() for size in own_and_other(layer, jnp.array([[2]]))]  # hidden .5, domain 1: 1, domain 2: 3, self 2
  [[[[3.0]]], [[[1.0]]]]
  """
  return _split(layer.sizes[:, : domain.shape[1], :, :-1], domain[..., None])


def _split(values, domain):
  """Returns the sums over the own group and over the other ones, `[..., G]` to twice `[...]`."""
  is_other = is_other_group(domain, values.shape[-1])
  group = jnp.arange(values.shape[-1], dtype=jnp.int32).reshape(*(1,) * domain.ndim, -1)
  is_own = ~is_other & (group != 0)
  return jnp.where(is_own, values, 0).sum(axis=-1), jnp.where(is_other, values, 0).sum(axis=-1)


def _mean_over_queries(layers, domain, asks, gate, value_of):
  """Returns the mean of `value_of(own size, other size, odds of the counts)` over queries, heads and layers."""
  total, number = 0.0, 0.0
  for layer in layers:
    own_count, other_count = _split(layer.counts[:, : domain.shape[1]], domain)  # [B, N]
    has_both = asks & (own_count > 0) & (other_count > 0)
    odds = jnp.where(has_both, other_count, 1) / jnp.where(has_both, own_count, 1)
    own_size, other_size = own_and_other(layer, domain)
    value = value_of(own_size, other_size, odds[..., None]).mean(axis=-1)  # [B, N]
    total += jnp.where(has_both if gate is None else has_both & gate, value, 0).sum()
    number += has_both.sum().astype(value.dtype)
  return total / jnp.maximum(number, 1), number / len(layers)
