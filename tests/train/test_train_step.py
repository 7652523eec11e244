"""The training step, checkpoints of its state, and the optimizer."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.batches import SequenceBatch
from jaxrec.objectives.objective import FunctionObjective
from jaxrec.train.checkpoint import Checkpoints, load_state
from jaxrec.train.optimizer import make_optimizer, make_schedule
from jaxrec.train.state import create_state, state_shapes
from jaxrec.train.step import check_compiler_options, make_train_step


class TinyModel(nn.Module):
  """Scores every item by a table, after dropout."""

  num_items: int = 5
  width: int = 3
  dropout: float = 0.0

  @nn.compact
  def __call__(self, batch, deterministic=True):
    x = nn.Embed(self.num_items + 1, self.width)(batch.item_id)
    return nn.Dense(self.num_items + 1)(nn.Dropout(self.dropout)(x, deterministic=deterministic))


def softmax_objective(model, params, batch, rng, deterministic=False):
  logits = model.apply({"params": params}, batch, deterministic=deterministic, rngs={"dropout": rng})
  value = optax.softmax_cross_entropy_with_integer_labels(logits, batch.target_item)
  weight = batch.target_weight.sum()
  loss = (value * batch.target_weight).sum() / weight
  return loss, {"loss": loss, "hits": (logits.argmax(-1) == batch.target_item).mean(), "weight": weight}


def some_batch(rows=4, length=3):
  ids = np.random.default_rng(0).integers(1, 6, (rows, length)).astype(np.int32)
  zeros = np.zeros_like(ids)
  weight = np.ones((rows, length), np.float32)
  weight[0, 1:] = 0  # The rows, and so the parts of a batch, have different numbers of targets.
  weight[1, 2:] = 0
  return SequenceBatch(ids, zeros + 1, zeros, zeros + 1, zeros, ids[:, ::-1], zeros + 1, zeros, weight)


def fresh(model=None, optimizer=None, **options):
  model, optimizer = model or TinyModel(), optimizer or optax.sgd(0.1)
  state = create_state(model, optimizer, some_batch(), seed=0, keep_average=options.get("average", 0) > 0)
  return state, make_train_step(model, FunctionObjective(softmax_objective), optimizer, seed=1, **options)


def assert_trees_close(one, other, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
  whole, step = fresh()
  whole, scalars = step(whole, some_batch())
  cut, step = fresh(accumulate=parts)
  cut, scalars_of_parts = step(cut, some_batch())
  assert_trees_close(whole.params, cut.params, rtol=1e-6, atol=1e-7)
  assert_trees_close(
    {k: v for k, v in scalars.items() if k != "hits"},
    {k: scalars_of_parts[k] for k in ("grad_norm", "loss")},
    rtol=1e-6,
  )


def test_rows_that_cannot_be_cut_into_parts_are_refused():
  state, step = fresh(accumulate=3)
  with pytest.raises(ValueError, match="the 4 rows of a batch must be divisible by accumulate=3"):
    step(state, some_batch())


def test_the_same_step_draws_the_same_dropout_and_another_step_another():
  losses = []
  for first_step in (0, 0, 1):
    state, step = fresh(TinyModel(dropout=0.5))
    _, scalars = step(state.replace(step=jnp.int32(first_step)), some_batch())
    losses.append(float(scalars["loss"]))
  assert losses[0] == losses[1] != losses[2]


def test_the_average_moves_towards_the_parameters():
  state, step = fresh(average=0.75)
  before = jax.device_get(state.params)
  state, _ = step(state, some_batch())
  expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, before, jax.device_get(state.params))
  assert_trees_close(state.average, expected, rtol=1e-5, atol=1e-6)
  assert state.evaluated is state.average


def test_without_an_average_the_parameters_are_evaluated():
  state, _ = fresh()
  assert state.average is None
  assert state.evaluated is state.params


def test_the_old_state_is_donated():
  state, step = fresh()
  new, _ = step(state, some_batch())
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
  assert int(new.step) == 1


def test_a_checkpoint_holds_its_step_though_training_goes_on(tmp_path):
  state, step = fresh(optimizer=optax.adam(0.1))
  with Checkpoints(str(tmp_path)) as checkpoints:
    state, _ = step(state, some_batch())
    saved = jax.device_get(state)
    checkpoints.save(state, {"batches": {"next_index": 1}}, best_step=None)
    for _ in range(5):
      state, _ = step(state, some_batch())
    restored, position = checkpoints.restore(state)
  assert_trees_close(jax.device_get(restored), saved, rtol=0)
  assert position["batches"] == {"next_index": 1}


def test_the_two_latest_and_the_best_checkpoint_are_kept(tmp_path):
  state, step = fresh()
  with Checkpoints(str(tmp_path)) as checkpoints:
    for best_step in (1, 2, 2, 2, 2):
      state, _ = step(state, some_batch())
      checkpoints.save(state, {}, best_step)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5"]
  assert load_state(str(tmp_path), state, "best")[1] == 2
  assert load_state(str(tmp_path), state, "latest")[1] == 5


def test_a_checkpoint_of_another_model_is_refused_with_the_differences(tmp_path):
  state, _ = fresh()
  with Checkpoints(str(tmp_path)) as checkpoints:
    checkpoints.save(state, {}, None)
  other, _ = fresh(TinyModel(width=4), optax.adam(0.1))
  with pytest.raises(ValueError, match="is of another model or optimizer") as error:
    load_state(str(tmp_path), other)
  text = str(error.value)
  assert "params/Embed_0/embedding: float32[6, 3] in the checkpoint, float32[6, 4] in this model" in text
  assert "opt_state/0/count: only in this model, int32[]" in text


def test_a_folder_without_checkpoints_is_named(tmp_path):
  state, _ = fresh()
  with pytest.raises(FileNotFoundError, match="nowhere"):
    load_state(str(tmp_path / "nowhere"), state)
  with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
    load_state(str(tmp_path), state)


def test_the_shapes_of_a_state_are_found_without_making_it():
  shapes = state_shapes(TinyModel(), optax.sgd(0.1), some_batch())
  assert jax.tree.map(jnp.shape, fresh()[0]) == jax.tree.map(lambda x: x.shape, shapes)


def test_all_parameters_can_start_uniform():
  arguments = TinyModel(), optax.sgd(0.1), some_batch()
  plain, one, same, other = (
    create_state(*arguments, seed=seed, uniform_start=start).params
    for seed, start in ((0, 0.0), (0, 0.05), (0, 0.05), (1, 0.05))
  )
  jax.tree.map(np.testing.assert_array_equal, one, same)
  assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, plain)
  values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(one)])
  assert 0.03 < np.abs(values).max() <= 0.05 and np.unique(values).size == values.size
  assert all((a != b).any() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_the_state_stays_on_every_device_of_the_mesh():
  state, _ = fresh()
  mesh = parallel.make_mesh()
  state = parallel.replicate(state, mesh)
  step = make_train_step(TinyModel(), FunctionObjective(softmax_objective), optax.sgd(0.1), seed=1, mesh=mesh)
  state, _ = step(state, parallel.shard_batch(some_batch(), mesh))
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))


def settings(**changes):
  base = {
    "learning_rate": 0.5, "b1": 0.9, "b2": 0.98, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0,
    "clip_norm": 0.0,
  }  # fmt: skip
  return ConfigDict({**base, **changes})


@pytest.mark.parametrize(
  ("schedule", "warmup", "expected"),
  [
    ("constant", 0, [0.5, 0.5, 0.5]),
    ("constant", 4, [0.0, 0.5, 0.5]),
    ("linear", 0, [0.5, 0.25, 0.0]),
    ("cosine", 0, [0.5, 0.25, 0.0]),
    ("warmup_cosine", 4, [0.0, 0.5, 0.0]),
  ],
)
def test_a_schedule_at_the_start_the_middle_and_the_end(schedule, warmup, expected):
  rate = make_schedule(settings(schedule=schedule, warmup_steps=warmup), total_steps=8)
  np.testing.assert_allclose([rate(0), rate(4), rate(8)], expected, atol=1e-7)


def test_a_warm_up_longer_than_the_run_is_refused():
  with pytest.raises(ValueError, match="optimizer.warmup_steps=9 must be less than the 8 steps"):
    make_schedule(settings(warmup_steps=9), total_steps=8)


def test_the_first_step_of_adamw_has_the_size_of_the_learning_rate():
  """Adam's first update is the sign of the gradient; decay adds learning_rate * weight_decay * parameter."""
  optimizer = make_optimizer(settings(weight_decay=0.1), total_steps=8)
  params = {"w": jnp.array([2.0, -4.0])}
  updates, _ = optimizer.update({"w": jnp.array([3.0, -0.1])}, optimizer.init(params), params)
  np.testing.assert_allclose(updates["w"], [-0.5 - 0.1, 0.5 + 0.2], rtol=1e-5)


def test_clipping_scales_the_whole_gradient():
  optimizer = make_optimizer(settings(clip_norm=1.0), total_steps=8)
  params = {"w": jnp.zeros(2)}
  _, state = optimizer.update({"w": jnp.array([3.0, 4.0])}, optimizer.init(params), params)
  first_moment = optax.tree_utils.tree_get(state, "mu")["w"]
  np.testing.assert_allclose(first_moment, 0.1 * np.array([0.6, 0.8]), rtol=1e-5)


def test_each_row_of_a_batch_lies_on_one_device():
  batch = parallel.shard_batch(some_batch(rows=8), parallel.make_mesh())
  assert batch.item_id.sharding.spec == jax.sharding.PartitionSpec(("data", "fsdp"))
  np.testing.assert_array_equal(batch.item_id, some_batch(rows=8).item_id)
  assert [field.name for field in dataclasses.fields(batch)][0] == "item_id"


def test_compiler_options_reach_the_compiler():
  state, step = fresh(compiler_options={"xla_no_such_option": True})
  with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_no_such_option'"):
    step(state, some_batch())


def test_options_that_the_compiler_refuses_are_an_error_of_the_setting():
  check_compiler_options({"xla_backend_optimization_level": 1})
  for options, message in (({"xla_nope": 1}, "No such"), ({"xla_cpu_enable_fast_math": "perhaps"}, "not a valid bool")):
    with pytest.raises(ValueError, match=f"config.train.compiler_options=.* on 'cpu': .*{message}"):
      check_compiler_options(options)
