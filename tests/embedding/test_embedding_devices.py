"""Tables on several devices, simulated and in several processes, and the compiled programs of a step."""

import json
import os
import re
import socket
import subprocess
import sys

import dense_tables
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import AS_USERS_COMPILE, PYTHON_PATH, REPOSITORY

from jaxrec.embedding import Table, Tables

PROGRAMS = REPOSITORY / "tests" / "programs"


def start(program, *arguments, num_devices=1, **variables):
  """Starts a program of `tests/programs`, which compiles as users do."""
  flags = f"--xla_force_host_platform_device_count={num_devices}"
  environment = {**os.environ, "PYTHONPATH": PYTHON_PATH, "XLA_FLAGS": flags, **variables}
  command = [sys.executable, str(PROGRAMS / program), *map(str, arguments)]
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output_of(processes, seconds):
  """Returns the output of the first process; all of them must succeed, and none is left running."""
  try:
    outputs = [process.communicate(timeout=seconds) for process in processes]
  finally:
    for process in processes:
      process.kill()
      process.wait()
  assert [process.returncode for process in processes] == [0] * len(processes), outputs[0][1][-3000:]
  return outputs[0][0]


@pytest.fixture(scope="module")
def results():
  """Returns the results of `table_devices.py`."""
  return json.loads(output_of([start("table_devices.py", num_devices=8)], seconds=400))


def test_steps_on_any_mesh_equal_those_of_dense_tables(results):
  assert len(results["differences"]) == 3
  assert {kind: difference for kind, difference in results["differences"].items() if difference > 1e-5} == {}
  assert not any(map(any, results["counted"].values()))


def test_initial_rows_depend_on_neither_devices_nor_placement(results):
  one, eight, replicated = results["initial"]
  assert one == eight == replicated and np.unique(one).size == 37 * 3


def test_stochastic_rounding_depends_on_neither_devices_nor_placement(results):
  one, *others = results["stochastic"].values()
  assert len(others) == 3 and all(rows == one for rows in others)
  assert np.unique(one).size > 2


def test_overflow_is_counted_and_other_rows_are_right(results):
  """Each of 8 devices requests rows 1, 9 and 17 from device 1 with a capacity of two; row 2 has two ids."""
  assert results["overflow"] == {
    "counts": {"overflow": 8, "out_of_range": 0, "rows": 24}, "rows": {"1": 8, "9": 8, "2": 16}
  }  # fmt: skip


def test_a_state_moves_between_8_4_and_1_devices(results):
  assert results["moved"] == [0, 0]


@pytest.mark.parametrize("num_processes", [2, 4])
def test_several_processes_equal_dense_tables(num_processes):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # Compiles faster.
  every = [start("table_process.py", address, num_processes, index, **quick) for index in range(num_processes)]
  difference, overflow = map(float, output_of(every, seconds=200).split()[-2:])
  assert difference < 1e-5 and overflow == 0


def scatters(lowered):
  """Returns, for each scatter of a StableHLO program, the operand's rows and whether indices are sorted and unique."""
  found = re.findall(
    r'"stablehlo.scatter".*?indices_are_sorted = (\w+).*?unique_indices = (\w+).*?\}\) : \(tensor<(\d+)x',
    lowered, flags=re.DOTALL,
  )  # fmt: skip
  return [(int(rows), is_sorted == is_unique == "true") for is_sorted, is_unique, rows in found]


def compiled_scatters(compiled):
  """Returns the same for a compiled program."""
  lines = re.findall(r"= \w+\[(\d+)[^ ]* scatter\((.*)", compiled)
  return [
    (int(rows), all(f"{x}=true" in text for x in ("indices_are_sorted", "unique_indices"))) for rows, text in lines
  ]


def assert_scatters_are_safe(program):
  """Checks that the rows and their slot are scattered to once each, by sorted, unique indices."""
  for found in (scatters(program["lowered"]), compiled_scatters(program["compiled"])):
    assert [is_safe for rows, is_safe in found if rows == program["rows"]] == [True, True]


def program_of(update):
  """Returns the lowered and the compiled program of a step on one device."""
  state = jax.ShapeDtypeStruct((1237, 4), jnp.float32), jax.ShapeDtypeStruct((1237,), jnp.float32)
  lowered = jax.jit(update, donate_argnums=(0, 1)).lower(*state, np.zeros(6, np.int32))
  return {"lowered": lowered.as_text(), "compiled": lowered.compile(AS_USERS_COMPILE).as_text(), "rows": 1237}


def test_no_large_scatter_has_duplicates_on_one_device():
  tables = Tables({"item": Table(1237, 4, placement="sharded")})
  made = {"item": np.zeros((2, 3), np.int32)}, {"item": np.zeros((2, 3, 4), np.float32)}
  step = jax.jit(lambda state, *batch: dense_tables.step(tables, state, *batch), donate_argnums=0)
  lowered = step.lower(tables.abstract_state(), *made)
  assert_scatters_are_safe(
    {"lowered": lowered.as_text(), "compiled": lowered.compile(AS_USERS_COMPILE).as_text(), "rows": 1237}
  )


def test_no_large_scatter_has_duplicates_on_8_devices(results):
  assert_scatters_are_safe(results["program"])


def test_the_check_of_scatters_sees_duplicates():
  program = program_of(lambda rows, slot, ids: (rows.at[ids].add(1.0), slot.at[ids].add(1.0)))
  with pytest.raises(AssertionError):
    assert_scatters_are_safe(program)


def test_nothing_as_large_as_a_table_is_communicated(results):
  program = results["program"]
  sent = re.findall(r"= (.*?) (?:all-|reduce-scatter|collective-)[\w-]*\(", program["compiled"])
  shapes = [
    int(np.prod([int(n) for n in dims.split(",") if n])) for text in sent for dims in re.findall(r"\[([\d,]*)\]", text)
  ]
  assert len(sent) >= 4 and max(shapes) <= 8 * 3 * 4
