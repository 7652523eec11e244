"""Tables on one device: what a lookup returns, which rows a step updates, and which it leaves."""

import dense_tables
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.embedding import RowAdamW, RowSGD, Table, Tables, place_tables
from jaxrec.embedding.layout import Layout
from jaxrec.multi_objective import gram_matrix, min_norm_weights

ONES = jax.nn.initializers.ones
TWO_LOSSES = (lambda v: jnp.sum(v**2), lambda v: jnp.sum(jnp.sin(v) * jnp.arange(1.0, 5)))


def one_step(tables, state, ids):
  """Makes a step whose gradient is 1 for each id."""

  @jax.jit
  def step(state, ids):
    rows, plan = tables.lookup(state, ids)
    gradient = jax.grad(lambda rows: sum(x.sum() for x in jax.tree.leaves(tables.vectors(rows, plan))))(rows)
    return tables.update(state, plan, gradient), plan

  return step(state, ids)


def look_up(tables, state, ids):
  """Returns the vectors of ids, and the plan."""

  @jax.jit
  def find(state, ids):
    rows, plan = tables.lookup(state, ids)
    return tables.vectors(rows, plan), plan

  return find(state, ids)


@pytest.mark.parametrize("placement", ["sharded", "replicated"])
def test_steps_equal_those_of_dense_tables(placement):
  tables = Tables(dense_tables.problem_tables(placement))
  made = dense_tables.batches()
  expected = dense_tables.Dense.like(tables).train(made)
  state, counts = dense_tables.train(tables, made)
  assert dense_tables.largest_difference(dense_tables.logical(tables, state), expected) < 1e-5
  assert all(count["overflow"] == count["out_of_range"] == 0 for count in counts)


def test_padding_reads_zeros_and_is_never_updated():
  tables = Tables({"item": Table(10, 4, placement="sharded")})
  state = tables.init(jax.random.key(0))
  after, _ = one_step(tables, state, {"item": np.array([[0, -1]])})
  assert not np.any(look_up(tables, state, {"item": np.array([[0, -1]])})[0]["item"])
  for before, now in zip(jax.tree.leaves(state.stacks), jax.tree.leaves(after.stacks), strict=True):
    np.testing.assert_array_equal(before, now)


@pytest.mark.parametrize("placement", ["sharded", "replicated"])
def test_vectors_are_the_rows_of_ids(placement):
  tables = Tables({"item": Table(5, 2, placement=placement), "user": Table(4, 2, placement=placement)})
  state = tables.init(jax.random.key(0))
  saved = dense_tables.logical(tables, state)
  ids = {"item": {"seen": np.array([[4, 1], [4, 0]])}, "user": np.array([3, 2])}
  vectors, _ = look_up(tables, state, ids)
  np.testing.assert_array_equal(vectors["item"]["seen"][1], [saved["item", "rows"][4], [0, 0]])
  np.testing.assert_array_equal(vectors["user"], saved["user", "rows"][[3, 2]])


def test_ids_may_be_any_pytree():
  tables = Tables({"item": Table(5, 2, placement="sharded"), "user": Table(4, 2, placement="sharded")})
  state = tables.init(jax.random.key(0))
  saved = dense_tables.logical(tables, state)
  vectors, plan = look_up(tables, state, {"user": np.array([3]), "item": (np.array([4]), [np.array([[1, 9]])])})
  np.testing.assert_array_equal(vectors["item"][0], saved["item", "rows"][[4]])
  np.testing.assert_array_equal(vectors["item"][1][0], [[saved["item", "rows"][1], [0, 0]]])
  np.testing.assert_array_equal(vectors["user"], saved["user", "rows"][[3]])
  assert int(plan.counts["out_of_range"]) == 1


@pytest.mark.parametrize("placement", ["sharded", "replicated"])
def test_ids_out_of_range_are_counted_and_read_zeros(placement):
  tables = Tables({"item": Table(5, 2, placement=placement, initializer=ONES)})
  ids = {"item": np.array([4, 5, 2**31 - 1, -3, 0])}
  vectors, plan = look_up(tables, tables.init(jax.random.key(0)), ids)
  assert vectors["item"].tolist() == [[1, 1], [0, 0], [0, 0], [0, 0], [0, 0]]
  assert (int(plan.counts["out_of_range"]), int(plan.counts["rows"])) == (2, 1)


def test_overflow_is_counted_and_the_other_rows_are_right():
  table = Table(9, 2, optimizer=RowSGD(1.0), placement="sharded", initializer=ONES)
  tables = Tables({"item": table}, capacity=2)
  state, plan = one_step(tables, tables.init(jax.random.key(0)), {"item": np.array([7, 3, 3, 5, 8])})
  assert (int(plan.counts["overflow"]), int(plan.counts["rows"])) == (2, 2)
  assert state.stacks["stack0_2"]["rows"][:, 0].tolist() == [1, 1, 1, -1, 1, 0, 1, 1, 1]


def test_ids_of_more_than_31_bits_are_numbered():
  tables = {"item": Table(2**32 - 4, 1, placement="sharded")}
  layout = Layout(tables, place_tables(tables, num_shards=4), num_shards=4, axes=("rows",), column_axis=None)
  ids = jnp.array([2**31 + 5, 2**32 - 5, 2**32 - 4, 2**32 - 1], jnp.uint32)
  per_device = 2**30 - 1
  expected = [per_device + 2**29 + 1, 3 * per_device + 2**30 - 2, 2**32 - 1, 2**32 - 1]
  assert layout.global_rows("item", ids).tolist() == expected
  assert layout.is_padding("item", ids).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
  ("ids", "message"),
  [
    ({"items": np.array([1])}, "there is no table"),
    ({"item": np.array([1.0])}, "array of integers"),
    ({"item": 3}, "array of integers"),
    ({"item": np.array([2**40])}, "fold_id"),
  ],
)
def test_ids_that_cannot_be_looked_up_are_refused(ids, message):
  tables = Tables({"item": Table(5, 2)})
  with pytest.raises(ValueError, match=message):
    tables.lookup(tables.init(jax.random.key(0)), ids)


def test_the_state_is_updated_in_place():
  tables = Tables({"item": Table(50_000, 4, optimizer=RowAdamW(), placement="sharded")})
  state = tables.init(jax.random.key(0))
  step = jax.jit(lambda state, ids: one_step(tables, state, {"item": ids})[0], donate_argnums=0)
  memory = step.lower(state, np.array([3, 9])).compile().memory_analysis()
  size = 50_000 * tables.tables["item"].bytes_per_row
  assert memory.alias_size_in_bytes >= size and memory.temp_size_in_bytes < size / 100
  step(state, np.array([3, 9]))
  assert all(array.is_deleted() for array in jax.tree.leaves(state.stacks))


def gradients_of_two(tables, state, ids):
  """Collects the gradients of two losses of the same lookup."""

  @jax.jit
  def collected(state, ids):
    rows, plan = tables.lookup(state, ids)
    each = [jax.grad(lambda rows, f=f: f(tables.vectors(rows, plan)["item"]))(rows) for f in TWO_LOSSES]
    return [tables.collect(state, plan, gradient) for gradient in each]

  return collected(state, ids)


def dense_of_two(tables, state, ids):
  """Returns the dense gradients of the same losses."""
  table = dense_tables.logical(tables, state)["item", "rows"]
  return [jax.grad(lambda table, f=f: f(table[ids]))(jnp.asarray(table)) for f in TWO_LOSSES]


def values(gradients):
  """Drops row indices and occurrences."""
  return {name: gradient.value for name, gradient in gradients.items()}


def test_norms_and_inner_products_of_row_gradients_equal_those_of_dense_gradients():
  tables = Tables({"item": Table(9, 4, placement="sharded", initializer=jax.nn.initializers.normal())})
  state, ids = tables.init(jax.random.key(0)), np.array([3, 3, 8, 2, 3])
  ours, dense = gradients_of_two(tables, state, {"item": ids}), dense_of_two(tables, state, ids)
  gram = gram_matrix([values(gradient) for gradient in ours])
  np.testing.assert_allclose(gram, gram_matrix(dense), rtol=1e-5)
  np.testing.assert_allclose(min_norm_weights(gram), min_norm_weights(gram_matrix(dense)), rtol=1e-5)
  with_params = optax.tree.norm((jnp.array([3.0]), values(ours[0])))
  np.testing.assert_allclose(with_params, optax.tree.norm((jnp.array([3.0]), dense[0])), rtol=1e-6)


@pytest.mark.parametrize("placement", ["sharded", "replicated"])
def test_gradients_of_microbatches_add_up_to_those_of_the_batch(placement):
  tables = Tables({"item": Table(9, 4, placement=placement, initializer=jax.nn.initializers.normal())})
  state, ids = tables.init(jax.random.key(0)), np.array([3, 3, 8, 2, 3, 0])
  parts = [gradients_of_two(tables, state, {"item": part})[0] for part in (ids[:2], ids[2:])]
  whole = gradients_of_two(tables, state, {"item": ids})[0]
  after, expected = jax.jit(lambda g: tables.apply(state, tables.add(g)))(parts), jax.jit(tables.apply)(state, whole)
  for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_bias_correction_counts_the_steps_of_the_whole_table():
  tables = Tables({"item": Table(4, 1, optimizer=RowAdamW(1.0, b1=0.5, b2=0.5), placement="sharded", initializer=ONES)})
  state = tables.init(jax.random.key(0))
  for _ in range(2):
    state, _ = one_step(tables, state, {"item": np.array([0])})
  state, _ = one_step(tables, state, {"item": np.array([2])})
  first, second = 0.5 / (1 - 0.5**3), 0.5 / (1 - 0.5**3)  # by hand: g = 1, third step
  np.testing.assert_allclose(state.stacks["stack0_1"]["rows"][:, 0], [1, 1, 1 - first / second**0.5, 1], rtol=1e-6)


def test_a_bfloat16_second_moment_would_never_fall_so_it_is_float32():
  slots = RowAdamW(second_moment="element", moment_dtype=jnp.bfloat16).slots(4)
  assert {name: dtype for name, (_, dtype) in slots.items()} == {
    "first_moment": jnp.bfloat16,
    "second_moment": "float32",
  }
