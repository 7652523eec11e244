"""Small batches for tests of models and objectives."""

import jax.numpy as jnp
import numpy as np

from jaxrec.batches import SequenceBatch

NUM_ITEMS = 10


def batch_of(rows, length, num_domains=1):
  """A batch of `rows`, each a list of sequences, each a list of items; times and domains are functions of these."""
  names = ("item", "sequence", "position", "time", "target")
  fields = {name: np.zeros((len(rows), length), np.int32) for name in names}
  for row, sequences in enumerate(rows):
    first = 0
    for sequence_id, items in enumerate(sequences, 1):
      span = (row, slice(first, first + len(items)))
      position = np.arange(len(items))
      fields["item"][span], fields["sequence"][span], fields["position"][span] = items, sequence_id, position
      fields["time"][span] = 1000 * position**3 + 7 * np.array(items)
      fields["target"][span] = np.array(items) % NUM_ITEMS + 1
      first += len(items)
  item, sequence, position, time, target = (jnp.asarray(fields[name]) for name in fields)
  is_real = sequence != 0
  return SequenceBatch(
    item_id=item, domain_id=jnp.where(is_real, item % num_domains + 1, 0), timestamp=time, sequence_id=sequence,
    position=position, target_item=target, target_domain=jnp.where(is_real, target % num_domains + 1, 0),
    target_time=jnp.where(is_real, time + 500, 0), target_weight=is_real.astype(jnp.float32),
  )  # fmt: skip
