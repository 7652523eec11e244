"""Batch normalisation with running statistics, evaluated with running or with batch statistics."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EVALUATIONS = ("running", "batch")
CURRENT_BATCH_STATS = "current_batch_stats"  # The Flax collection; make it mutable to get the statistics of a batch.


class BatchNorm(nn.Module):
  """`(x - mean) / sqrt(variance + epsilon) * scale + bias`, for each feature separately.

  Training uses batch statistics and moves the running ones, in the collection "batch_stats" (pass it as mutable),
  towards them by `momentum`; the running variance has B - 1 in its denominator. If the collection
  "current_batch_stats" is mutable, it receives the statistics of the batch alone.

  evaluation: "running": rows are normalised by the running statistics, so no row depends on another. "batch": by the
    statistics of the evaluated batch, as in the published scripts of arXiv 2410.02604, which never leave training mode;
    batches must then be large, shuffled, and all of one size.
  momentum: weight of the latest batch in the running statistics.

  Choice: not `flax.linen.BatchNorm`, which can evaluate with batch statistics only if it may also change the running
    ones, and computes the variance as a difference of squares, which is noise for a feature that hardly varies. The
    mean is that of differences from the first row: a feature that is the same in all rows, such as the age of all
    candidates, is exactly 0 after the norm, where a mean that is off by its last bit would be amplified 316 times.

  Raises:
    ValueError: another `evaluation`.

  >>> norm, x = BatchNorm(), jnp.array([[1.0], [3.0]])
  >>> variables = norm.init(jax.random.key(0), x, deterministic=True)
  >>> y, updated = norm.apply(variables, x, deterministic=False, mutable=["batch_stats"])
  >>> y.round(2).tolist(), f"{updated['batch_stats']['mean'].item():.1f}"
  ([[-1.0], [1.0]], '0.2')
  """

  evaluation: str = "running"
  momentum: float = 0.1
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: Float[Array, "B F"], deterministic: bool) -> Float[Array, "B F"]:
    if self.evaluation not in EVALUATIONS:
      raise ValueError(f"{self.evaluation=} is not one of {EVALUATIONS}")
    width = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,), jnp.float32)
    running_variance = self.variable("batch_stats", "variance", jnp.ones, (width,), jnp.float32)
    if deterministic and self.evaluation == "running":
      mean, variance = running_mean.value, running_variance.value
    else:
      mean, variance = batch_statistics(x)
    if not deterministic and not self.is_initializing():
      unbiased = variance * (x.shape[0] / (x.shape[0] - 1))
      for name, running, value in (("mean", running_mean, mean), ("variance", running_variance, unbiased)):
        value = jax.lax.stop_gradient(value).astype(running.value.dtype)
        running.value += self.momentum * (value - running.value)
        self.sow(CURRENT_BATCH_STATS, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    mean, variance, scale, bias = mean[None], variance[None], scale[None], bias[None]
    return (x - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias


def batch_statistics(x: Float[Array, "B F"]) -> tuple[Float[Array, " F"], Float[Array, " F"]]:
  """Returns mean and variance (B in the denominator) of each feature.

  Raises:
    ValueError: a single row, which would be normalised to zero.

  >>> mean, variance = batch_statistics(jnp.array([[1.0], [3.0]]))
  >>> mean.tolist(), variance.tolist()
  ([2.0], [1.0])
  """
  if x.shape[0] < 2:
    raise ValueError("a batch of 1 row has no statistics: use larger batches, or evaluation='running' for a single row")
  shift = jax.lax.stop_gradient(x[:1])  # Of equal rows the mean is then each of them, and not off by its last bit.
  mean = shift[0] + (x - shift).mean(axis=0)
  return mean, jnp.square(x - mean[None]).mean(axis=0)
