"""Mistakes that people made on their first day: each is refused with the argument, what came and what is needed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrec
from jaxrec import models, multi_objective
from jaxrec.data.batches.training import TrainingBatches, TrainingOptions
from jaxrec.data.prepared import PreparedData
from jaxrec.embedding import Table, Tables
from jaxrec.layers.context import AttentionContext, causal_context
from jaxrec.layers.hstu import HSTULayer
from jaxrec.models import ctr
from jaxrec.serving.incremental import IncrementalModel
from jaxrec.train.config import check_config, default_config
from jaxrec.train.named_configs import named_config
from pallas_kernels import IntervalMask, RelativeBias, segment_attention

Q = jnp.zeros((1, 4, 2, 8))
MASK = IntervalMask.causal(jnp.ones((1, 4), jnp.int32))
IDS = jnp.array([[1, 2, 3, 0]])
LAYER = HSTULayer(num_heads=1, head_width=4, value_width=4, attention_length=4)
SASREC = jaxrec.SASRec(num_items=9, width=4, max_positions=4)
DATA = PreparedData.from_columns(user=[0] * 4 + [1] * 4, item_id=[1, 2, 3, 4] * 2)


def attend(**changes):
  return segment_attention(**{"q": Q, "k": Q, "v": Q, "mask": MASK} | changes)


def encode(batch):
  return SASREC.init(jax.random.key(0), batch)


def columns(**changes):
  return PreparedData.from_columns(**{"user": [0, 0, 0], "item_id": [1, 2, 3]} | changes)


def config_with(name, value):
  config = default_config()
  config.data.source, config.name = "synthetic", "x"
  with config.ignore_type():
    config.update_from_flattened_dict({name: value})
  check_config(config)


def observe(item, domain=1, time=1):
  serving = IncrementalModel(
    SASREC, jax.eval_shape(SASREC.init, jax.random.key(0), jaxrec.next_item_batch(IDS))["params"]
  )
  state = serving.start(batch_size=1, capacity=4)
  return serving.observe(state, np.array([item]), np.array([domain]), np.array([time]))


MISUSES = {
  # Kernels.
  "rank-3 queries": (lambda: attend(q=Q[0]), r"q, k, v must be \[B, N, H, D\]; got \(4, 2, 8\)"),
  "another number of heads": (lambda: attend(k=Q[:, :, :1]), "must agree in rows, heads and width"),
  "a mask of other rows": (lambda: attend(mask=IntervalMask.causal(IDS[:, :3])), r"mask is for queries \(1, 3\)"),
  "softmax with a normalizer": (
    lambda: attend(activation="softmax", normalizer=4.0),
    "normalizer is for activation='silu'",
  ),
  "an unknown activation": (lambda: attend(activation="relu"), "activation='relu' is not one of"),
  "an unknown implementation": (lambda: attend(implementation="cuda"), "implementation='cuda' is not one of"),
  "a time bias without times": (
    lambda: attend(bias=RelativeBias(time_table=jnp.zeros(129))),
    "bias.time_table and bias.*together",
  ),
  "64 time buckets": (
    lambda: attend(bias=RelativeBias(time_table=jnp.zeros(64), query_time=IDS, key_time=IDS)),
    "bias.time_table has 64 buckets",
  ),
  # Layers and contexts.
  "ids of one row without its axis": (
    lambda: AttentionContext.causal(jnp.ones(4, jnp.int32)),
    r"sequence_id has shape \(4,\), needs \[B, N\]",
  ),
  "float times": (lambda: AttentionContext.causal(IDS, time=jnp.ones((1, 4))), "time"),
  "times of another shape": (
    lambda: AttentionContext.causal(IDS, time=IDS[:, :2]),
    r"time has shape \(1, 2\), needs \(1, 4\)",
  ),
  "a batch where a context is needed": (
    lambda: LAYER.init(jax.random.key(0), jnp.zeros((1, 4, 8)), jaxrec.next_item_batch(IDS)),
    "context is a SequenceBatch.*AttentionContext.causal",
  ),
  # Batches and models.
  "a dict as a batch": (lambda: encode({"item_id": IDS}), "batch is a dict.*SequenceBatch"),
  "ids as a batch": (lambda: encode(IDS), "batch is a.*SequenceBatch"),
  "ids of rank 1": (lambda: jaxrec.next_item_batch(jnp.array([1, 2])), r"item_id has shape \(2,\), needs \[B, N\]"),
  "integer queries": (lambda: attend(q=Q.astype(jnp.int32)), "q"),
  "float sequence ids": (lambda: IntervalMask.causal(jnp.ones((1, 4))), "integer"),
  "milliseconds": (lambda: jaxrec.next_item_batch(IDS, timestamp=np.full((1, 4), 1_700_000_000_000)), "timestamp"),
  "float ids": (lambda: jaxrec.next_item_batch(jnp.ones((1, 4))), "item_id must hold integers, not float32"),
  "ids beyond the model": (
    lambda: jaxrec.check_batch(jaxrec.next_item_batch(IDS + 9), SASREC),
    r"item_id\[0, 0\] = 10",
  ),
  "negative ids": (lambda: jaxrec.check_batch(jaxrec.next_item_batch(IDS - 3), SASREC), "must not be negative"),
  "more events than positions": (
    lambda: jaxrec.check_batch(jaxrec.next_item_batch(jnp.ones((1, 6), jnp.int32)), SASREC),
    r"position\[0, 4\] = 4 is outside 0..3",
  ),
  "an unknown model": (lambda: models.build({"name": "gru4rec"}, num_items=9), "model 'gru4rec' is not one of"),
  "a field that the model lacks": (lambda: models.build({"name": "sasrec", "layers": 2}, num_items=9), "has no field"),
  "one width for three fields": (
    lambda: ctr.build({"name": "dare", "widths": 16}, num_items=9, num_categories=2),
    "width",
  ),
  # Data.
  "item 0": (lambda: columns(item_id=[0, 1, 2]), "item_id"),
  "domain 0": (lambda: columns(domain_id=[0, 1, 1]), "domain_id"),
  "unsorted users": (lambda: columns(user=[1, 0, 0]), "user"),
  "falling times": (lambda: columns(timestamp=[3, 2, 1]), "timestamp"),
  "fewer titles than items": (lambda: columns(titles=["a"]), "titles has 1 entries, needs 3"),
  "an unknown split": (lambda: columns(split="random"), "split='random' is not known"),
  "rows shorter than histories": (
    lambda: TrainingBatches(DATA, TrainingOptions(max_length=8, row_length=4, rows_per_batch=1)),
    "row_length=4 is shorter than max_length=8",
  ),
  "an unknown user": (lambda: DATA.user_index("ann"), "user 'ann' is not in the prepared data"),
  "an unknown item": (lambda: DATA.item_index("tea"), "item 'tea' is not in the prepared data"),
  "an unknown option of a source": (lambda: jaxrec.prepare("synthetic", users=5), "users.*known"),
  "an unknown source": (lambda: jaxrec.prepare("movielens", "ml"), "source='movielens' is not known"),
  # Tables and objectives.
  "an unknown table": (
    lambda: Tables({"item": Table(4, 2)}).lookup(Tables({"item": Table(4, 2)}).init(jax.random.key(0)), {"user": IDS}),
    "user",
  ),
  "an unknown loss": (lambda: jaxrec.ItemObjective("hinge"), "loss='hinge' is not one of"),
  "three gradients for two objectives": (
    lambda: (t := multi_objective.multi_objective(multi_objective.build({"name": "pareto"}), optax.sgd(0.1))).update(
      (jnp.ones(2),) * 3, t.init(jnp.ones(2)), jnp.ones(2), losses=jnp.ones(3)
    ),
    "got 3 gradients for num_objectives=2",
  ),
  # Settings.
  "a misspelt setting": (lambda: config_with("train.batchsize", 3), "config.train.batchsize is unknown; did you mean"),
  "a text for a number": (
    lambda: config_with("train.batch_size", "3"),
    "config.train.batch_size='3' must be of type int",
  ),
  "a negative rate": (lambda: config_with("optimizer.learning_rate", -1.0), "config.optimizer.learning_rate=-1.0 must"),
  "an unknown choice": (
    lambda: config_with("optimizer.schedule", "step"),
    "config.optimizer.schedule='step' is unknown",
  ),
  "a metric that is not computed": (
    lambda: config_with("eval.metric", "AUC"),
    "config.eval.metric='AUC' is not computed",
  ),
  "an unknown config": (lambda: named_config("gru", DATA), "config 'gru' is neither a file nor a name"),
  "several domains for data of one": (lambda: named_config("autocdsr", DATA), "needs data of several domains"),
  # Serving.
  "an item that the model does not have": (lambda: observe(999_999), "item=999999"),
  "a domain that the model does not have": (lambda: observe(1, domain=3), "domain=3"),
  "milliseconds in serving": (lambda: observe(1, time=1_700_000_000_000), "time"),
}


@pytest.mark.unchecked_shapes
@pytest.mark.parametrize("mistake", MISUSES)
def test_it_is_refused_with_what_is_needed(mistake):
  call, message = MISUSES[mistake]
  with pytest.raises(ValueError, match=message):
    call()


def test_a_layer_needs_no_batch():
  """The context of a layer is made from what it reads, and equals that of a batch."""
  ids, time = jnp.array([[1, 1, 2, 0]]), jnp.array([[5, 9, 3, 0]])
  context = AttentionContext.causal(ids, time=time, position=jnp.array([[0, 1, 0, 0]]))
  x = jax.random.normal(jax.random.key(0), (1, 4, 8))
  output, _ = LAYER.init_with_output(jax.random.key(1), x, context)
  batch = jaxrec.next_item_batch(ids, timestamp=time)
  batch = batch.replace(sequence_id=ids, position=jnp.array([[0, 1, 0, 0]]), target_time=time)
  expected, _ = LAYER.init_with_output(jax.random.key(1), x, causal_context(batch))
  np.testing.assert_array_equal(output, expected)
  assert AttentionContext.causal(ids).query_position.tolist() == [[0, 1, 0, 0]]
