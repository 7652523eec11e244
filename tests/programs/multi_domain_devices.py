"""A program for 8 simulated devices: prints the parameters after a training step on one device and on eight, as JSON.

Started by `test_multi_domain.py`, because the number of devices is set when a process starts.
"""

import json

import jax
import numpy as np
import optax
from sequences import NUM_ITEMS, batch_of

from jaxrec import parallel
from jaxrec.models import build
from jaxrec.objectives.item import ItemObjective
from jaxrec.train.state import create_state
from jaxrec.train.step import make_train_step

CONFIG = {
  "name": "multi_domain_hstu", "width": 8, "num_layers": 1, "max_positions": 9, "num_heads": 2, "head_width": 4,
  "value_width": 4, "attention_length": 7,
}  # fmt: skip


def main():
  """Makes the same step twice."""
  assert jax.device_count() == 8
  model = build(CONFIG, num_items=NUM_ITEMS, num_domains=3)
  batch = batch_of([[[3, 1, 4]], [[2, 6], [5, 3, 5]], [], [[1, 2]], *([[9, 8, 7]],) * 4], length=7, num_domains=3)
  objective, optimizer = ItemObjective(loss="full_softmax"), optax.sgd(0.1)
  results = []
  for mesh in (parallel.make_mesh(devices=jax.devices()[:1]), parallel.make_mesh()):
    state = parallel.replicate(create_state(model, optimizer, batch, seed=1), mesh)
    step = make_train_step(model, objective, optimizer, seed=1, mesh=mesh)
    state, _ = step(state, parallel.shard_batch(jax.tree.map(np.asarray, batch), mesh))
    results.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)]).tolist())
  print(json.dumps(results))


if __name__ == "__main__":
  main()
