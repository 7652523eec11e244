"""The held-out loss of a model that ranks a catalogue: how improbable it finds what users chose."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.data.prepared import PreparedData
from jaxrec.evaluation.model import ModelRanker, evaluation_batches
from jaxrec.objectives import item_losses

SOFTMAX = ("sampled_softmax", "full_softmax")


def log_perplexity(
  ranker: ModelRanker, data: PreparedData, config: ConfigDict, split: int, mesh: Mesh | None = None
) -> float:
  """Returns the mean of `-log softmax` of the held-out targets over all items of the data, in nats.

  No item is left out, those that the user had before neither. A uniform guess has the logarithm of the number of items.
  A model that was trained with sampled negatives is held to the whole catalogue too, which its loss in training is not.

  Args:
    ranker: of `jaxrec.evaluation.model.model_ranker`, with a catalogue in one piece.
    data: prepared columns.
    config: `config.objective` has the temperature, `config.eval` says which events of a split are targets.
    split: 1 validation, 2 test.
    mesh: devices to use; None takes all.

  Raises:
    ValueError: an objective whose scores are no logits of a softmax, or a sharded catalogue.
  """
  name, temperature = config.objective.name, config.objective.get("temperature", 0.05)
  if name not in SOFTMAX:
    raise ValueError(f"config.objective.name={name!r} has no softmax over items; the held-out loss is for {SOFTMAX}")
  if ranker.catalogue.shards.axes:
    raise ValueError("the held-out loss needs the item vectors in one piece: config.tables.placement=parameter")
  mesh = mesh or parallel.make_mesh(config.parallel.to_dict())
  total, count = 0.0, 0
  for batch in evaluation_batches(data, config, split, mesh):
    losses = np.asarray(_losses(ranker.queries(batch), ranker.catalogue.vectors, batch.target_item, temperature))
    is_real = np.asarray(batch.user) >= 0
    total, count = total + float(losses[is_real].sum(dtype=np.float64)), count + int(is_real.sum())
  return total / count


@jax.jit
def _losses(queries, vectors, target, temperature):
  return item_losses.full_softmax(queries / temperature, vectors, jnp.asarray(target))
