"""Batch normalisation with running statistics, and both ways to evaluate it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EVALUATIONS = ("running", "batch")
OF_BATCH = "statistics_of_batch"


class BatchNorm(nn.Module):
  """`(x - mean) / sqrt(variance + epsilon) * scale + bias`, each feature by itself.

  In training the statistics are those of the batch, and the collection "batch_stats" (to be passed as mutable) takes
  on `momentum` of them, the variance with B - 1 in its denominator. The collection "statistics_of_batch", if that is
  mutable, has them as they are, like "batch_stats".

  evaluation: "running": an evaluated row is normalised by the running statistics, and so depends on no other row.
    "batch": by the statistics of the evaluated batch, as the published scripts of arXiv 2410.02604 do, which never
    leave training mode. Batches must then be large, of mixed rows, and none smaller than the others.

  Choice: not `flax.linen.BatchNorm`, which can evaluate with the batch's statistics only where it may also change the
    running ones, and takes the variance as a difference of squares, which is noise for a feature that hardly varies.
  """

  evaluation: str = "running"
  momentum: float = 0.1
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: Float[Array, "B F"], deterministic: bool) -> Float[Array, "B F"]:
    if self.evaluation not in EVALUATIONS:
      raise ValueError(f"{self.evaluation=} is not one of {EVALUATIONS}")
    width = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (width,))
    bias = self.param("bias", nn.initializers.zeros, (width,))
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
    running_variance = self.variable("batch_stats", "variance", jnp.ones, (width,))
    if deterministic and self.evaluation == "running":
      mean, variance = running_mean.value, running_variance.value
    else:
      mean, variance = batch_statistics(x)
    if not deterministic and not self.is_initializing():
      unbiased = variance * (x.shape[0] / (x.shape[0] - 1))
      for name, running, value in (("mean", running_mean, mean), ("variance", running_variance, unbiased)):
        value = jax.lax.stop_gradient(value).astype(running.value.dtype)
        running.value += self.momentum * (value - running.value)
        self.sow(OF_BATCH, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return (x - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias


def batch_statistics(x: Float[Array, "B F"]) -> tuple[Float[Array, " F"], Float[Array, " F"]]:
  """Mean and variance (B in the denominator) of each feature.

  Raises:
    ValueError: a single row, of which nothing would be left after it is normalised by itself.

  >>> mean, variance = batch_statistics(jnp.array([[1.0], [3.0]]))
  >>> mean.tolist(), variance.tolist()
  ([2.0], [1.0])
  """
  if x.shape[0] < 2:
    raise ValueError("a batch of 1 row has no statistics: use larger batches, or evaluation='running' for a single row")
  mean = x.mean(axis=0)
  return mean, jnp.square(x - mean).mean(axis=0)
