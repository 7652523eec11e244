"""Meshes, sharding rules, joining processes; sharding does not change values."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import PYTHON_PATH, xla_flags
from jax.sharding import AbstractMesh, PartitionSpec
from programs import parallel_devices

from jaxrec import parallel
from jaxrec.parallel.mesh import _host_shard, _mesh_shape
from jaxrec.train.config import check_config, default_config

MESH = AbstractMesh((2, 2, 2), parallel.AXES)


def specs(shapes, **tables):
  """Returns the PartitionSpec of each array of a flat dict of shapes."""
  shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
  return {name: s.spec for name, s in parallel.parameter_shardings(shapes, MESH, **tables).items()}


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
  """Returns the results of `parallel_devices.py`."""
  command = [sys.executable, parallel_devices.__file__, str(tmp_path_factory.mktemp("checkpoints"))]
  environment = {**os.environ, "XLA_FLAGS": xla_flags(8), "PYTHONPATH": PYTHON_PATH}
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


@pytest.mark.parametrize("mesh", ["data", "mixed"])
def test_steps_on_eight_devices_equal_those_of_one(on_eight_devices, mesh):
  expected = np.array(on_eight_devices["one"])
  np.testing.assert_allclose(on_eight_devices[mesh], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("mesh", ["one", "data", "mixed"])
def test_a_checkpoint_of_one_mesh_is_restored_on_another_value_for_value(on_eight_devices, mesh):
  assert on_eight_devices[f"restored on {mesh}"] == on_eight_devices["mixed"]


def test_moments_and_average_are_sharded_like_their_parameters(on_eight_devices):
  layout = on_eight_devices["layout"]
  for prefix in ("params", "opt_state/0/trace", "average"):
    assert layout[f"{prefix}/layers_0/uvqk/kernel"] == ["fsdp", "model"]
    assert layout[f"{prefix}/items/table"] == ["model", "fsdp"]
  assert len(layout) == 3 * 3  # The third is the kernel of the output.


def test_a_kernel_runs_on_shards_of_rows_and_heads(on_eight_devices):
  assert on_eight_devices["kernel"] < 1e-5


def test_attention_of_rows_on_their_devices_sends_nothing(on_eight_devices):
  assert on_eight_devices["collectives"] == {}


def test_negatives_of_each_position_are_scored_on_their_devices(on_eight_devices):
  found = on_eight_devices["negatives"]
  np.testing.assert_allclose(found["data"], found["one"], rtol=1e-4, atol=1e-6)
  assert set(found["collectives"]) == {"all-reduce"}, found["collectives"]  # Of the loss, weights and gradients.
  assert found["in_loops"] == 0


def test_parameters_of_every_layer_have_a_rule():
  sharded = specs({
    "a/items/table": (10, 4), "layers_0/uvqk/kernel": (4, 32), "layers_0/attention/query/kernel": (4, 4),
    "layers_0/attention/output/kernel": (8, 4), "layers_1/feed_forward/hidden/kernel": (4, 16),
    "layers_1/feed_forward/output/kernel": (16, 4), "layer_0/output_kernel": (12, 4), "head/kernel": (4, 4),
    "layers_0/output/bias": (4,), "layers_0/time_table": (129,),
  })  # fmt: skip
  reads, writes, replicated = PartitionSpec("fsdp", "model"), PartitionSpec("model", "fsdp"), PartitionSpec()
  assert sharded == {
    "a/items/table": writes, "layers_0/uvqk/kernel": reads, "layers_0/attention/query/kernel": reads,
    "layers_0/attention/output/kernel": writes, "layers_1/feed_forward/hidden/kernel": reads,
    "layers_1/feed_forward/output/kernel": writes, "layer_0/output_kernel": writes, "head/kernel": reads,
    "layers_0/output/bias": replicated, "layers_0/time_table": replicated,
  }  # fmt: skip


def test_an_axis_that_is_not_divisible_is_not_sharded_and_is_logged(caplog):
  with caplog.at_level("INFO"):
    assert specs({"items/table": (11, 4)}) == {"items/table": PartitionSpec(None, "fsdp")}
  assert "items/table (11, 4) is not sharded along vocabulary: 2 shards do not divide it" in caplog.text


def test_an_array_of_another_rank_than_its_rule_is_replicated_and_logged(caplog):
  assert specs({"v_row/items/table": (10,)}) == {"v_row/items/table": PartitionSpec()}
  assert "its rule has 2 axes" in caplog.text


def test_custom_rules_replace_those_of_the_library():
  tables = {"rules": [("kernel", (None, "out"))], "mesh_axes": {"out": ("fsdp", "model")}}
  assert specs({"a/kernel": (3, 8), "items/table": (8, 8)}, **tables) == {
    "a/kernel": PartitionSpec(None, ("fsdp", "model")),
    "items/table": PartitionSpec(),
  }


@pytest.mark.parametrize(
  ("rules", "mesh_axes", "text"),
  [
    ([("x", ("a",))], {"a": "tensor"}, r"mesh_axes\['a'\] names 'tensor', which is not an axis of the mesh \('data',"),
    ([("x", ("b",))], {"a": "model"}, r"the rule 'x' has logical names \['b'\]; mesh_axes has \['a'\]"),
    ([("x", ("a", "a"))], {"a": "model"}, "sharded over .*'model', 'model'.*, one mesh axis twice"),
  ],
)
def test_rules_that_do_not_fit_are_refused(rules, mesh_axes, text):
  with pytest.raises(ValueError, match=text):
    specs({"x": (4, 4)}, rules=rules, mesh_axes=mesh_axes)


def test_the_moments_of_any_optax_chain_are_found_by_name():
  params = {"items": {"table": jnp.zeros((10, 4))}}
  state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
  placed = [s.spec for s in jax.tree.leaves(parallel.parameter_shardings(state, MESH))]
  assert placed == [PartitionSpec(), PartitionSpec("model", "fsdp"), PartitionSpec("model", "fsdp")]


def test_one_axis_takes_the_remaining_devices():
  assert _mesh_shape({"data": -1, "fsdp": 4}, 16) == (4, 4, 1)
  assert parallel.make_mesh().shape_tuple == (("data", jax.device_count()), ("fsdp", 1), ("model", 1))


@pytest.mark.parametrize(
  ("axes", "text"),
  [
    ({"rows": 2}, r"unknown=\['rows'\] are not axes of the mesh, which has \('data', 'fsdp', 'model'\)"),
    ({"data": -1, "model": 3}, "3 does not divide the 8 devices"),
    ({"data": 2, "model": 2}, "use 4 of the 8 devices; set one of them to -1"),
    ({"data": -1, "model": -1}, "one of them may be -1"),
    ({"data": 0}, "must be at least 1"),
  ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(axes, text):
  with pytest.raises(ValueError, match=text):
    _mesh_shape(axes, 8)


def test_hosts_that_share_only_some_rows_are_refused():
  hosts = np.array([[0, 0, 1], [1, 2, 2]])  # Three devices along "model", two on a host.
  with pytest.raises(ValueError, match="hosts share rows unevenly.*config.parallel.model"):
    _host_shard(hosts, 0)


def test_hosts_in_any_order_take_the_rows_of_their_devices():
  assert [_host_shard(np.array([[1], [0], [1], [0]]), host) for host in (0, 1)] == [(1, 2), (0, 2)]


@pytest.mark.parametrize(
  ("arguments", "text"),
  [
    ({"num_processes": 2}, "num_processes=2 need coordinator_address"),
    ({"coordinator_address": "a:1"}, "needs num_processes and process_id too; or distributed=True"),
    ({"coordinator_address": "a:1", "num_processes": 2}, "needs process_id too"),
    ({"coordinator_address": "a", "num_processes": 2, "process_id": 0}, "must be host:port"),
    ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, "process_id=2 must be between 0 and"),
  ],
)
def test_incomplete_arguments_of_initialize_are_refused(arguments, text):
  with pytest.raises(ValueError, match=text):
    parallel.initialize(**arguments)


@pytest.mark.parametrize(("axis", "size"), [("data", 0), ("fsdp", -2), ("model", -1)])
def test_a_config_with_impossible_axes_is_refused(axis, size):
  config = default_config()
  config.data.source = "synthetic"
  config.parallel[axis] = size
  with pytest.raises(ValueError, match=re.escape("config.parallel={")):
    check_config(config)
