"""A program for 8 simulated devices: prints the results of training steps on one device and on meshes of eight.

Started by `test_parallel.py` because the number of devices is set when a process starts.
"""

import functools
import json
import re
import sys
import types
from unittest import mock

import jax
import numpy as np
import optax
from sequences import batch_of

from jaxrec import parallel
from jaxrec.models import build
from jaxrec.objectives import item_losses
from jaxrec.objectives.item import ItemObjective
from jaxrec.train.checkpoint import Checkpoints
from jaxrec.train.state import create_state
from jaxrec.train.step import make_train_step
from pallas_kernels import IntervalMask, RelativeBias, aot, api, segment_attention, xla

CONFIG = {
  "name": "hstu", "width": 8, "num_layers": 1, "max_positions": 9, "num_heads": 2, "head_width": 4, "value_width": 4,
  "attention_length": 7, "dropout": 0.2, "input_dropout": 0.2,
}  # fmt: skip
MESHES = {"data": {"data": 8}, "mixed": {"data": 2, "fsdp": 2, "model": 2}}
ROWS = [[[3, 1, 4]], [[2, 6], [5, 3, 5]], [], [[1, 2]], *([[9, 8, 7]],) * 4]


def main(folder):
  """Trains on each mesh; saves on one of them and restores on the others."""
  assert jax.device_count() == 8
  meshes = {"one": parallel.make_mesh(devices=jax.devices()[:1])}
  meshes |= {name: parallel.make_mesh(axes) for name, axes in MESHES.items()}
  states = {name: trained(mesh) for name, mesh in meshes.items()}
  results = {name: numbers(state) for name, state in states.items()}
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(states["mixed"], {}, None)
    for name in meshes:
      restored, _ = checkpoints.restore(states[name])
      assert layout(restored) == layout(states[name])
      results[f"restored on {name}"] = numbers(restored)
  results["layout"] = layout(states["mixed"])
  results["collectives"] = collectives(meshes["data"])
  results["negatives"] = negatives_on_devices(meshes)
  results["kernel"] = kernel_error(meshes["mixed"])
  print(json.dumps(results))


def trained(mesh):
  """Returns the state after two steps."""
  model, optimizer = build(CONFIG, num_items=11, num_domains=1), optax.sgd(0.1, momentum=0.9)
  batch = jax.device_get(batch_of(ROWS, length=7))
  shardings_of = functools.partial(parallel.parameter_shardings, mesh=mesh)
  state = create_state(model, optimizer, batch, seed=1, keep_average=True, shardings_of=shardings_of)
  step = make_train_step(model, ItemObjective("full_softmax"), optimizer, seed=1, average=0.5, mesh=mesh, like=state)
  before, batch = layout(state), parallel.shard_batch(batch, mesh)
  if mesh.shape["fsdp"] > 1:
    program = step.lower(state, batch).compile().as_text()
    gathered = re.findall(r" = \w+\[([0-9,]+)\]\S* all-gather", program)
    assert gathered and not any(str(batch.item_id.shape[1]) in shape.split(",") for shape in gathered), gathered
  for _ in range(2):
    state, _ = step(state, batch)
  assert layout(state) == before
  return state


def numbers(state):
  """Returns all numbers of a state as one list."""
  return np.concatenate([np.ravel(jax.device_get(x)) for x in jax.tree.leaves(state)]).astype(float).tolist()


def layout(state):
  """Returns {name: PartitionSpec} of the sharded arrays."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
  return {
    n: list(x.sharding.spec) for n, (_, x) in zip(names, leaves, strict=True) if not x.sharding.is_fully_replicated
  }


def kernel_error(mesh):
  """Returns the largest difference in outputs and gradients when a kernel runs on shards of rows and heads.

  XLA code replaces the kernel, because Pallas's interpreter does not run under `shard_map`.
  """
  api.tpu = types.SimpleNamespace(attention=xla.attention)
  rng = np.random.default_rng(0)
  q, k, v = (rng.normal(size=(4, 16, 2, 8)).astype(np.float32) for _ in range(3))
  mask = IntervalMask.causal(np.ones((4, 16), np.int32))
  time, table = np.tile(100 * np.arange(16), (4, 1)), rng.normal(size=(2, 129)).astype(np.float32)

  def of(attention, q, table):
    bias = RelativeBias(time_table=table, query_time=time, key_time=time)
    out = attention(q, k, v, mask, bias, activation="silu", scale=1.0)
    return (out**2).sum(), out

  results = []
  for attention in (xla.attention, api._xla_on_each_device, api._tpu_on_each_device):
    function = parallel.with_mesh(jax.value_and_grad(functools.partial(of, attention), (0, 1), has_aux=True), mesh)
    (_, out), grads = jax.jit(function)(*parallel.replicate((q, table), mesh))
    results.append(numbers((out, grads)))
  whole = np.array(results[0])
  return float(max(np.abs(whole - result).max() for result in results[1:]) / np.abs(whole).max())


def negatives_on_devices(meshes):
  """Returns the loss and gradient with negatives of each position by mesh, and what devices send each other.

  The rows of one position are looked up at a time: what a loop sends, it would send many times.
  """
  objective, found = ItemObjective(num_negatives=3, sharing="position"), {}
  one_by_one = functools.partial(item_losses.scores_of_rows, block_size=1)
  batch = jax.device_get(batch_of(ROWS, length=7))
  model = build(CONFIG, num_items=11, num_domains=1)
  params = model.init(jax.random.key(0), batch)["params"]

  def loss(params, batch):
    with mock.patch.object(item_losses, "scores_of_rows", one_by_one):
      return objective(model, params, batch, jax.random.key(1), deterministic=True)[0]

  for name in ("one", "data"):
    step = jax.jit(parallel.with_mesh(jax.value_and_grad(loss), meshes[name]))
    arguments = parallel.replicate(params, meshes[name]), parallel.shard_batch(batch, meshes[name])
    found[name] = numbers(step(*arguments))
  program = step.lower(*arguments).compile()
  found["collectives"] = aot.collectives_of(program)
  in_loops = re.sub(r"\nENTRY .*?\n}", "", program.as_text(), flags=re.DOTALL)
  found["in_loops"] = len(re.findall(r" all-reduce\(", in_loops))
  return found


def collectives(mesh):
  """Returns what devices send each other in a forward pass of attention, which is nothing: each has its own rows."""
  rows = parallel.row_sharding(mesh)
  x = jax.ShapeDtypeStruct((8, 64, 2, 8), np.float32, sharding=rows)
  sequence_id = jax.ShapeDtypeStruct((8, 64), np.int32, sharding=rows)

  def attend(q, k, v, sequence_id):
    return segment_attention(q, k, v, IntervalMask.causal(sequence_id))

  program = jax.jit(parallel.with_mesh(attend, mesh)).lower(x, x, x, sequence_id).compile()
  return aot.collectives_of(program)


if __name__ == "__main__":
  main(sys.argv[1])
