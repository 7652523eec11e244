"""The domain of the next event as an input: Transition-Aware Positional Embeddings, and a plain embedding of it.

Both make the prediction conditional on the domain that is asked for, which a recommender knows when a page of that
domain is opened. Nothing else of the next event is an input.

Source: TAPE, Loureiro et al. 2025, arXiv 2508.20945, equations 1 and 2.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def transition_table(
  domains: Float[Array, "C M"], weight: Float[Array, "M M"], bias: Float[Array, " M"]
) -> Float[Array, "C1 C1 M"]:
  """`r[c, d] = e_d * (W e_c + b)` for a step from domain c to another domain d; zero where c = d or either is 0.

  Args:
    domains: e, the vectors of the domains 1..C.
    weight, bias: W and b; W acts as `e @ weight`.

  Source: equation 2.

  >>> table = transition_table(jnp.array([[1.0], [10.0]]), jnp.array([[2.0]]), jnp.array([3.0]))
  >>> table[..., 0].tolist()  # From 1 to 2: 10 (2 * 1 + 3); from 2 to 1: 1 (2 * 10 + 3).
  [[0.0, 0.0, 0.0], [0.0, 0.0, 50.0], [0.0, 23.0, 0.0]]
  """
  r = domains[None] * (domains @ weight + bias)[:, None]  # [C, C, M]
  changes = ~jnp.eye(len(domains), dtype=bool)
  return jnp.pad(jnp.where(changes[..., None], r, 0), ((1, 0), (1, 0), (0, 0)))  # [C + 1, C + 1, M]


class TransitionAwarePositionalEmbedding(nn.Module):
  """TAPE: what is added to an event before a change of domains; exactly zero where the domain stays the same.

  There are only C (C - 1) different vectors, so they are made once a step instead of once an event.

  num_domains: C.
  width: M.
  """

  num_domains: int
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, domain_id: Int[Array, "B N"], next_domain: Int[Array, "B N"]) -> Float[Array, "B N M"]:
    """The vectors for events of `domain_id` that are followed by one of `next_domain`; 0 = none or not known."""
    init = nn.initializers.truncated_normal(math.sqrt(1 / self.width))
    domains = self.param("domain_table", init, (self.num_domains, self.width))
    weight = self.param("weight", nn.initializers.xavier_uniform(), (self.width, self.width))
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    table = transition_table(domains, weight, bias).astype(self.dtype)
    return table[domain_id, next_domain]


class TargetDomainEmbedding(nn.Module):
  """A vector for the domain that is asked for: what gives models without TAPE the same knowledge.

  Choice: it is added to the last event's embedding rather than standing as a token of its own, which would double the
    length of the sequence.
  """

  num_domains: int
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, next_domain: Int[Array, "B N"]) -> Float[Array, "B N M"]:
    """Its vectors; zero for domain 0."""
    init = nn.initializers.truncated_normal(math.sqrt(1 / self.width))
    table = self.param("table", init, (self.num_domains, self.width))
    return jnp.pad(table, ((1, 0), (0, 0))).astype(self.dtype)[next_domain]
