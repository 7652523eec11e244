"""The target domain as an input: Transition-Aware Positional Embeddings (TAPE), and a plain embedding.

Both condition the prediction on the domain of the next event, which a recommender knows when a user opens a page of
that domain. Nothing else about the next event is an input.

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
  """Returns `r[c, d] = e_d * (W e_c + b)` for a step from domain c to another domain d; zero if c = d or either is 0.

  Args:
    domains: e, the vectors of domains 1..C.
    weight, bias: W and b; W is applied as `e @ weight`.

  Source: equation 2.

  >>> table = transition_table(jnp.array([[1.0], [10.0]]), jnp.array([[2.0]]), jnp.array([3.0]))
  >>> table[..., 0].tolist()  # From 1 to 2: 10 (2 * 1 + 3); from 2 to 1: 1 (2 * 10 + 3).
  [[0.0, 0.0, 0.0], [0.0, 0.0, 50.0], [0.0, 23.0, 0.0]]
  """
  r = domains[None] * (domains @ weight + bias[None])[:, None]  # [C, C, M]
  changes = ~jnp.eye(len(domains), dtype=bool)
  return jnp.pad(jnp.where(changes[..., None], r, 0), ((1, 0), (1, 0), (0, 0)))  # [C + 1, C + 1, M]


class TransitionAwarePositionalEmbedding(nn.Module):
  """TAPE: a vector added to an event that precedes a change of domain; exactly zero where the domain stays the same.

  There are only C (C - 1) different vectors, so they are computed once per step, not once per event.

  num_domains: C.
  width: M.

  >>> import jax
  >>> tape, domain_id = TransitionAwarePositionalEmbedding(num_domains=2, width=4), jnp.array([[1, 1, 2]])
  >>> r, params = tape.init_with_output(jax.random.key(0), domain_id, target_domain=jnp.array([[1, 2, 0]]))
  >>> r.shape, r.any(axis=-1).tolist()
  ((1, 3, 4), [[False, True, False]])
  """

  num_domains: int
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, domain_id: Int[Array, "B N"], target_domain: Int[Array, "B N"]) -> Float[Array, "B N M"]:
    """Returns the vectors of events of `domain_id` that precede an event of `target_domain`; 0 = none or unknown."""
    init = nn.initializers.truncated_normal(math.sqrt(1 / self.width))
    domains = self.param("domain_table", init, (self.num_domains, self.width), jnp.float32)
    weight = self.param("weight", nn.initializers.xavier_uniform(), (self.width, self.width), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
    table = transition_table(domains, weight, bias).astype(self.dtype)
    return table[domain_id, target_domain]


class TargetDomainEmbedding(nn.Module):
  """A vector for the target domain: gives models without TAPE the same information.

  num_domains: C.
  width: M.

  Choice: the vector is added to the embedding of the event that predicts, rather than inserted as a token, which would
    double the length of the sequence.

  >>> import jax
  >>> embedding = TargetDomainEmbedding(num_domains=2, width=4)
  >>> vectors, params = embedding.init_with_output(jax.random.key(0), jnp.array([[2, 0]]))
  >>> vectors.shape, vectors.any(axis=-1).tolist()
  ((1, 2, 4), [[True, False]])
  """

  num_domains: int
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, target_domain: Int[Array, "B N"]) -> Float[Array, "B N M"]:
    """Returns the vector of each target domain; zero for domain 0."""
    init = nn.initializers.truncated_normal(math.sqrt(1 / self.width))
    table = self.param("table", init, (self.num_domains, self.width), jnp.float32)
    return jnp.pad(table, ((1, 0), (0, 0))).astype(self.dtype)[target_domain]
