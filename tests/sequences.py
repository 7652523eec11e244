"""Small batches for tests of models and objectives."""

import jax.numpy as jnp
import numpy as np

from jaxrec.batches import SequenceBatch

NUM_ITEMS = 10


def batch_of(rows, length, num_domains=1):
  """A batch of `rows`: lists of sequences, which are lists of items. Times follow from items and positions, domains
  from items.
  """
  names = ("item", "sequence", "position", "time", "target")
  fields = {name: np.zeros((len(rows), length), np.int32) for name in names}
  for row, sequences in enumerate(rows):
    first = 0
    for number, items in enumerate(sequences, 1):
      here = (row, slice(first, first + len(items)))
      place = np.arange(len(items))
      fields["item"][here], fields["sequence"][here], fields["position"][here] = items, number, place
      fields["time"][here] = 1000 * place**3 + 7 * np.array(items)
      fields["target"][here] = np.array(items) % NUM_ITEMS + 1
      first += len(items)
  item, sequence, position, time, target = (jnp.asarray(fields[name]) for name in fields)
  is_real = sequence != 0
  return SequenceBatch(
    item_id=item, domain_id=jnp.where(is_real, item % num_domains + 1, 0), timestamp=time, sequence_id=sequence,
    position=position, target_item=target, target_domain=jnp.where(is_real, target % num_domains + 1, 0),
    target_time=jnp.where(is_real, time + 500, 0), target_weight=is_real.astype(jnp.float32),
  )  # fmt: skip
