"""A program for 8 simulated devices: prints one JSON line with the updates of each way of sharding a step.

Started by `test_multi_objective.py` because the number of devices is set when a process starts.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.multi_objective import gram_matrix, mgda, multi_objective, task_gradients

ROWS, REPLICATED = PartitionSpec("rows"), PartitionSpec()


def problem():
  """Returns parameters and a batch of 16 rows."""
  rng = np.random.default_rng(0)
  params = {"w": rng.normal(size=(8, 4)), "u": rng.normal(size=4), "v": rng.normal(size=4)}
  batch = {"x": rng.normal(size=(16, 8)), "y": rng.normal(size=16), "z": rng.normal(size=16)}
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, batch))


def gradients(params, batch):
  """Returns the means of two losses over the rows of `batch`, and their gradients."""
  heads = [
    lambda hidden, params: jnp.mean((hidden @ params["u"] - batch["y"]) ** 2),
    lambda hidden, params: jnp.mean((hidden @ params["v"] - batch["z"]) ** 2),
  ]
  losses, _, grads = task_gradients(lambda params: jnp.tanh(batch["x"] @ params["w"]), heads, params)
  return losses, grads


def step(params, batch, axis_name=None):
  """Returns the update of one step and the weights; gradients are averaged over `axis_name`."""
  optimizer = multi_objective(mgda("l2"), optax.sgd(0.1))
  if axis_name is None:
    losses, grads = gradients(params, batch)
  else:  # cast to varying, because gradients of replicated parameters are summed over the devices already
    varying = jax.lax.pcast(params, axis_name, to="varying")
    losses, grads = jax.lax.pmean(gradients(varying, batch), axis_name)
  updates, state = optimizer.update(grads, optimizer.init(params), params, losses=losses)
  return updates, state.weights


def numbers(tree):
  """Returns all numbers of a tree as one list."""
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).tolist()


def main():
  """Runs the step on one device, with rows sharded by `jit` and by `shard_map`, and with sharded gradients."""
  assert jax.device_count() == 8
  mesh = Mesh(np.array(jax.devices()), ("rows",))
  params, batch = problem()
  sharded = jax.device_put(batch, NamedSharding(mesh, ROWS))
  replicated = jax.device_put(params, NamedSharding(mesh, REPLICATED))

  def each(params, batch):
    return step(params, batch, "rows")

  def products(grads):
    return gram_matrix(grads, axis_name="rows")

  mapped = jax.shard_map(each, mesh=mesh, in_specs=(REPLICATED, ROWS), out_specs=REPLICATED)
  grads = [grad["w"] for grad in gradients(params, batch)[1]]
  summed = jax.shard_map(products, mesh=mesh, in_specs=(ROWS,), out_specs=REPLICATED)
  results = {
    "one": numbers(jax.jit(step)(params, batch)),
    "jit": numbers(jax.jit(step)(replicated, sharded)),
    "shard_map": numbers(jax.jit(mapped)(replicated, sharded)),
    "gram": numbers(gram_matrix(grads)),
    "gram of shards": numbers(jax.jit(summed)(jax.device_put(grads, NamedSharding(mesh, ROWS)))),
  }
  print(json.dumps(results))


if __name__ == "__main__":
  main()
