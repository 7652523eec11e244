"""A training step with a sharded item table equals one whose item table is a parameter."""

import itertools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import PYTHON_PATH, REPOSITORY, xla_flags
from sequences import NUM_ITEMS, batch_of

from jaxrec.embedding import RowSGD, Table, Tables
from jaxrec.models import build
from jaxrec.multi_objective import multi_objective
from jaxrec.multi_objective.weighting import mgda
from jaxrec.objectives.autocdsr import CrossDomainObjective, shared_parameters
from jaxrec.objectives.item import TABLE, ItemObjective
from jaxrec.train.item_table import Sharded, optimize_dense_only
from jaxrec.train.state import TrainState, create_state
from jaxrec.train.step import make_train_step

RATE, CLIP = 0.5, 0.3
BATCH = batch_of([[[3, 1, 4, 1, 5, 9]], [[2, 6], [5, 3, 5]], [[8, 9, 7]], [[3, 2, 3, 8]]], length=7, num_domains=2)
MODEL = build(
  {"name": "hstu", "width": 8, "num_layers": 1, "max_positions": 9, "num_heads": 2, "head_width": 4, "value_width": 4,
   "attention_length": 7, "dropout": 0.2, "input_dropout": 0.2},
  num_items=NUM_ITEMS, num_domains=2,
)  # fmt: skip


def some_objective(several, sharing="row", loss="sampled_softmax"):
  objective = ItemObjective(loss, num_negatives=4, sharing=sharing, chunk_size=4)
  return CrossDomainObjective(objective) if several else objective


def wrapped(inner, several):
  return multi_objective(mgda("none"), inner, select=shared_parameters) if several else inner


def with_parameter(several, objective, **options):
  """State and step where the table is a parameter."""
  optimizer = wrapped(optax.chain(optax.clip_by_global_norm(CLIP), optax.sgd(RATE)), several)
  state = create_state(MODEL, optimizer, BATCH, seed=0)
  return state, make_train_step(MODEL, objective, optimizer, seed=1, **options)


def with_table(params, several, objective, **options):
  """State and step where it is a table, with the same numbers."""
  tables = Tables({TABLE: Table(NUM_ITEMS + 1, 8, optimizer=RowSGD(RATE), placement="sharded")})
  rest = {name: value for name, value in params.items() if name != TABLE}
  optimizer = wrapped(optimize_dense_only(optax.sgd(RATE), CLIP), several)
  saved = {"step": jnp.zeros((), jnp.int32), "tables": {TABLE: {"rows": params[TABLE]["table"]}}}
  state = TrainState(jnp.zeros((), jnp.int32), rest, copied(optimizer.init(rest)), None, tables.from_logical(saved))
  step = make_train_step(MODEL, objective, optimizer, seed=1, item_table=Sharded(tables), **options)
  return state, step, tables


def copied(tree):
  return jax.tree.map(jnp.copy, tree)


CASES = [(False, 1, "full_softmax"), (True, 2, "sampled_softmax")]
REST = [
  case for case in itertools.product((False, True), (1, 2), ("sampled_softmax", "full_softmax")) if case not in CASES
]


@pytest.mark.parametrize(
  ("several", "accumulate", "loss"), [*CASES, *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in REST)]
)
def test_three_steps_give_the_same_parameters_rows_and_scalars(several, accumulate, loss):
  objective = some_objective(several, loss=loss)
  state, step = with_parameter(several, objective, accumulate=accumulate)
  table_state, table_step, tables = with_table(copied(state.params), several, objective, accumulate=accumulate)
  for _ in range(3):
    state, scalars = step(state, BATCH)
    table_state, table_scalars = table_step(table_state, BATCH)
  expected = dict(state.params)
  table = expected.pop(TABLE)["table"]
  found = tables.to_logical(table_state.tables)["tables"][TABLE]["rows"]
  np.testing.assert_allclose(found[1:], table[1:], atol=2e-6)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), table_state.params, expected)
  for name, value in scalars.items():
    np.testing.assert_allclose(table_scalars[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
  assert int(table_scalars["tables/overflow"]) == 0 == int(table_scalars["tables/out_of_range"])


@pytest.mark.parametrize("sharing", ["position", "batch"])
def test_negatives_may_be_shared_by_none_or_all(sharing):
  params = create_state(MODEL, optax.sgd(RATE), BATCH, seed=0).params
  state, step, tables = with_table(params, False, some_objective(False, sharing), accumulate=2)
  before = np.asarray(tables.to_logical(state.tables)["tables"][TABLE]["rows"])
  state, scalars = step(state, BATCH)
  after = tables.to_logical(state.tables)["tables"][TABLE]["rows"]
  assert np.isfinite(scalars["loss"])
  assert np.abs(after[1:] - before[1:]).max() > 1e-3
  np.testing.assert_array_equal(after[0], before[0])


def test_what_tables_cannot_do_is_refused():
  tables = Tables({TABLE: Table(NUM_ITEMS + 1, 8)})
  with pytest.raises(ValueError, match="average=0.9"):
    make_train_step(MODEL, some_objective(False), optax.sgd(RATE), seed=1, average=0.9, item_table=Sharded(tables))


def test_steps_on_several_meshes_equal_those_on_one_device_and_checkpoints_restore_onto_other_ones(tmp_path):
  """One test, so that one process runs the program."""
  program = REPOSITORY / "tests" / "programs" / "table_step_devices.py"
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": xla_flags(8),
    "PYTHONPATH": PYTHON_PATH,
  }
  done = subprocess.run([sys.executable, str(program), tmp_path], env=env, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert set(found["from one device"]) == {"1", "8", "4x2"}
  assert max(found["from one device"].values()) < 2e-5
  assert np.ptp(list(found["loss"].values())) < 1e-5
  assert max(found["full softmax"].values()) < 2e-5
  assert found["restored"] == dict.fromkeys(["8 to 4", "1 to 8", "8 to 4x2", "4x2 to 1"], 0.0)
