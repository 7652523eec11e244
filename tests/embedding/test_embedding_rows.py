"""Rows of tables: rounding, admission, hashed ids and placement."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import AS_USERS_COMPILE

from jaxrec.embedding import RowAdagrad, RowSGD, Table, Tables, fold_id, place_tables, two_rows
from jaxrec.embedding.layout import Layout
from jaxrec.embedding.placement import MAX_STACK_ROWS
from jaxrec.embedding.rounding import join, split
from jaxrec.parallel.row_shards import RowShards

ONES = jax.nn.initializers.ones


@functools.partial(jax.jit, static_argnums=(0, 3))
def train(tables, state, ids, num_steps):
  """Returns the state after steps whose gradient is 1 for each id."""

  def step(_, state):
    rows, plan = tables.lookup(state, {"item": ids})
    gradient = jax.grad(lambda rows: tables.vectors(rows, plan)["item"].sum())(rows)
    return tables.update(state, plan, gradient)

  return jax.lax.fori_loop(0, num_steps, step, state)


@pytest.mark.parametrize(("rounding", "expected", "slack"), [("nearest", 1, 0), ("stochastic", 0.9375, 0.003)])
def test_small_updates_are_lost_by_nearest_and_unbiased_by_stochastic_rounding(rounding, expected, slack):
  """64 updates of 1 / 1024, a quarter of the spacing of bfloat16 below 1."""
  table = Table(2, 512, jnp.bfloat16, RowSGD(1 / 1024), rounding, ONES, placement="sharded")
  tables = Tables({"item": table})
  state = train(tables, tables.init(jax.random.key(0)), np.array([1]), 64)
  row = state.stacks["stack0_512"]["rows"][1].astype(jnp.float32)
  assert abs(float(row.mean()) - expected) <= slack


def test_rows_with_a_remainder_equal_a_float32_table_whose_reads_are_rounded():
  """Bit by bit: gradients are taken at the rounded rows, updates are made in float32."""

  def initializer(key, shape):
    return jax.random.normal(key, shape).astype(jnp.bfloat16).astype(jnp.float32)

  kinds = {"remainder": (jnp.bfloat16, "float32"), "float32": (jnp.float32, "nearest")}
  every = {
    kind: Tables({"item": Table(9, 4, dtype, RowAdagrad(0.1), rounding, initializer, placement="sharded")})
    for kind, (dtype, rounding) in kinds.items()
  }

  @functools.partial(jax.jit, static_argnums=0, compiler_options=AS_USERS_COMPILE)
  def step(tables, state, ids):
    rows, plan = tables.lookup(state, {"item": ids})
    rounded = {name: split(x)[0].astype(jnp.float32) for name, x in rows.items()}
    gradient = jax.grad(lambda rows: jnp.sum(tables.vectors(rows, plan)["item"] ** 3))(rounded)
    return tables.update(state, plan, gradient)

  states = {kind: tables.init(jax.random.key(0)) for kind, tables in every.items()}
  for seed in range(5):
    ids = np.random.default_rng(seed).integers(0, 9, 12)
    states = {kind: step(every[kind], state, ids) for kind, state in states.items()}
  (half,), (full,) = (states[kind].stacks.values() for kind in ("remainder", "float32"))
  assert np.any(half["remainder"])
  np.testing.assert_array_equal(join(half["rows"], half["remainder"]), full["rows"])
  np.testing.assert_array_equal(half["sum_of_squares"], full["sum_of_squares"])


@pytest.mark.parametrize("placement", ["sharded", "replicated"])
def test_a_row_reads_zeros_and_is_not_updated_until_it_is_admitted(placement):
  table = Table(4, 1, optimizer=RowSGD(0.5), initializer=ONES, admit_after=3, placement=placement)
  tables = Tables({"item": table})
  state = tables.init(jax.random.key(0))
  look = jax.jit(lambda state, ids: tables.vectors(*tables.lookup(state, {"item": ids}))["item"][0, 0])
  seen = []
  for _ in range(3):  # Twice in a step: after two steps it was looked up 4 times.
    (stack,) = state.stacks.values()
    seen.append((float(look(state, np.array([2, 2]))), float(stack["rows"][2, 0]), int(stack["requests"][2])))
    state = train(tables, state, np.array([2, 2]), 1)
  assert seen == [(0, 1, 0), (0, 1, 2), (1, 1, 4)]
  (stack,) = state.stacks.values()
  assert stack["rows"][:, 0].tolist() == [1, 1, 0, 1]  # 1 - 0.5 * 2
  assert stack["requests"].tolist() == [0, 0, 6, 0]


def test_hashed_ids_are_uniform_and_rarely_share_both_rows():
  words = fold_id(np.arange(1, 20_001) * 2**33 + 1)
  rows = np.asarray(two_rows(words, 1001))
  for column in rows.T:  # Poisson, 20 ids per row on average.
    counts = np.bincount(column, minlength=1001)
    assert counts[0] == 0 and 2 <= counts[1:].min() and counts[1:].max() <= 45
    assert abs(counts[1:].var() - 20) < 4
  shared = 20_000 - len(np.unique(rows, axis=0))  # 20,000^2 / 2 pairs, of which 1 in 1000^2 shares both.
  assert 130 < shared < 270
  assert np.mean(rows[:, 0] == rows[:, 1]) < 0.003


def test_hashes_of_other_seeds_differ():
  words = fold_id(np.arange(1, 10_001))
  every = [np.asarray(two_rows(words, 1001, seed)) for seed in range(3)]
  columns = np.concatenate(every, axis=1).T  # [6, ids]
  same = [np.mean(a == b) for i, a in enumerate(columns) for b in columns[:i]]
  assert len(same) == 15 and max(same) < 0.003


def test_ids_of_64_bits_keep_all_of_their_bits():
  ids = np.array([-1, -(2**63), 2**63 - 1, 5, 5 + 2**32])
  assert fold_id(ids).tolist() == [[2**32 - 1, 2**32 - 1], [0, 2**31], [2**32 - 1, 2**31 - 1], [5, 0], [5, 1]]


def test_small_tables_are_replicated_and_large_ones_sharded():
  every = {"item": Table(10**7, 64), "user": Table(10**6, 64), "domain": Table(9, 64), "tag": Table(9, 64)}
  placements = place_tables(every, num_shards=8)
  assert [p.placement for p in placements.values()] == ["sharded", "sharded", "replicated", "replicated"]
  assert placements["item"].stack == placements["user"].stack and placements["user"].first_row == 10**7 // 8
  assert placements["item"].bytes_per_device == 10**7 // 8 * (64 * 4 + 4)


def test_the_description_has_the_bytes_per_device():
  text = Tables({"item": Table(10**7, 64), "domain": Table(9, 64)}).describe().splitlines()
  assert text[0].split() == ["table", "rows", "width", "dtype", "size", "placement", "per", "device"]
  assert text[1].startswith("item    10,000,000  64     float32  2.421 GiB  sharded by 1 (stack0_64)")
  assert text[2].split()[-3:] == ["replicated", "2.285", "KiB"] and text[3].split() == ["total", "2.421", "GiB"]


@pytest.mark.parametrize(
  ("tables", "options", "message"),
  [
    ({"item": Table(10**7, 63)}, {"num_columns": 2}, "divisible"),
    ({"item": Table(MAX_STACK_ROWS + 1, 1)}, {"num_shards": 64}, "too many"),
    ({"item": Table(2**31, 1)}, {}, "too many"),
    ({"item": Table(10**7, 64), "stack0_64": Table(9, 64)}, {}, "name of a stack"),
  ],
)
def test_tables_that_cannot_be_placed_are_refused(tables, options, message):
  with pytest.raises(ValueError, match=message):
    place_tables(tables, **{"num_shards": 1, **options})


@pytest.mark.parametrize(
  "wrong",
  [
    {"num_rows": 0}, {"dtype": jnp.float16}, {"rounding": "up", "dtype": jnp.bfloat16}, {"rounding": "stochastic"},
    {"placement": "host"}, {"admit_after": -1},
  ],
  ids=str,
)  # fmt: skip
def test_invalid_tables_are_refused(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    Table(**{"num_rows": 5, "width": 2, **wrong})


def test_a_catalogue_and_the_tables_agree_which_device_holds_which_row():
  """The layout is written down twice, because `parallel` may not import `embedding`."""
  tables, axis = {"item": Table(11, 4, placement="sharded")}, "data"
  layout = Layout(tables, place_tables(tables, num_shards=4), num_shards=4, axes=(axis,), column_axis=None)
  shards = RowShards(jax.sharding.AbstractMesh((4,), (axis,)), (axis,))
  every_shard = jnp.arange(4)  # A row of `vmap` stands for a device.
  of_catalogue = jax.vmap(lambda _: shards.local_ids(3), axis_name=axis)(every_shard)
  np.testing.assert_array_equal(of_catalogue, jax.vmap(lambda shard: layout.ids("item", shard))(every_shard))
  rows = jax.vmap(lambda _: shards.local_rows(jnp.arange(1, 11)), axis_name=axis)(every_shard)  # [4, 10]
  owner, row = np.divmod(np.asarray(layout.global_rows("item", jnp.arange(1, 11)), np.int64), 3)
  np.testing.assert_array_equal(rows, np.where(owner == np.arange(4)[:, None], row, -1))
