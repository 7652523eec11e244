"""Softmax and retrieval over tables that are spread over devices, against the same on one device."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import PYTHON_PATH, REPOSITORY, xla_flags
from programs import sharded_catalogue_devices


@pytest.fixture(scope="module")
def on_devices():
  environment = {**os.environ, "XLA_FLAGS": xla_flags(8), "PYTHONPATH": PYTHON_PATH}
  command = [sys.executable, sharded_catalogue_devices.__file__]
  result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY)
  assert result.returncode == 0, result.stderr[-3000:]
  return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("num_devices", [1, 8])
def test_losses_gradients_rows_and_optimizer_state_are_those_of_one_dense_table(on_devices, num_devices):
  leaves, structure = jax.tree.flatten(on_devices[f"training {num_devices}"])
  expected, expected_structure = jax.tree.flatten(on_devices["dense"])
  assert structure == expected_structure
  np.testing.assert_allclose(leaves, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("kind", ["floats", "ties"])
def test_ranks_and_best_items_are_those_of_one_dense_table(on_devices, kind, num_devices):
  assert on_devices[f"{kind} {num_devices}"] == on_devices[f"{kind} None"]


def test_nothing_that_is_sent_between_devices_grows_with_the_table(on_devices):
  few, many = on_devices["collectives 1001"], on_devices["collectives 3001"]
  assert few == many
  assert any("all-gather" in line for line in few) and any("all-to-all" in line for line in few)
