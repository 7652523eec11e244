"""The public surface under JAX's strict settings and in its 64-bit mode: traced, not compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sequences import NUM_ITEMS, batch_of

from jaxrec import models, multi_objective
from jaxrec.batches import ActionType, CandidateBatch, next_item_batch
from jaxrec.data.batches.ranking_batches import RankingBatches, RankingOptions, history_batch, training_examples
from jaxrec.data.batches.ranking_rows import RankingColumns
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.embedding import RowAdagrad, RowAdamW, RowSGD, Table, Tables, fold_id, two_rows
from jaxrec.evaluation import catalogue, metrics
from jaxrec.evaluation.protocols import evaluation_negatives
from jaxrec.layers import stu
from jaxrec.layers.cache import CachedRows, Prefill
from jaxrec.models import ctr
from jaxrec.models.ranking import RankingModel
from jaxrec.objectives.action_prediction import ActionObjective
from jaxrec.objectives.autocdsr import CrossDomainObjective
from jaxrec.objectives.click import ClickObjective
from jaxrec.objectives.item import ItemObjective
from jaxrec.serving import history_search, mfalcon, mfalcon_retrieval
from jaxrec.serving.incremental import IncrementalModel
from pallas_kernels import IntervalMask, RelativeBias, segment_attention

BATCH = batch_of([[[3, 1, 4, 1, 5, 9]], [[2, 6], [5, 3, 5]], []], length=8, num_domains=3)
HEADS = {"num_layers": 1, "num_heads": 2}
SIZES = {"width": 8, "max_positions": 9, "num_domains": 3, "input_dropout": 0.5}
HSTU = {"name": "hstu", **SIZES, **HEADS, "head_width": 3, "value_width": 5, "attention_length": 7, "dropout": 0.5}
MODELS = {
  "hstu": HSTU,
  "hstu softmax bottlenecks": {**HSTU, "activation": "softmax", "num_bottlenecks": 2, "bottleneck_stride": 2},
  "hstu concatenated, two tables": {**HSTU, "concat_ua": True, "attention_width": 6, "target_domain": True},
  "hstu bfloat16": {**HSTU, "dtype": jnp.bfloat16},
  "stu": {**HSTU, "name": "stu", "group_norm": True, "output_norm": "layer_norm"},
  "multi-domain": {**HSTU, "name": "multi_domain_hstu", "combination": "gate"},
  "multi-domain keys and values": {**HSTU, "name": "multi_domain_hstu", "read": "key_value", "dtype": jnp.bfloat16},
  "multi-domain top": {**HSTU, "name": "multi_domain_hstu", "states": "top", "read": "target"},
  "sasrec": {"name": "sasrec", **SIZES, **HEADS, "hidden": 6, "dropout": 0.5},
  "bert4rec": {"name": "bert4rec", **SIZES, **HEADS, "hidden": 6, "dropout": 0.5, "dtype": jnp.bfloat16},
}
OBJECTIVES = {
  "full": ItemObjective("full_softmax", chunk_size=4),
  "sampled": ItemObjective("sampled_softmax", 4, log_q=True),
  "log-uniform by row": ItemObjective("sampled_softmax", 4, "log_uniform", "row", log_q=True),
  "in batch": ItemObjective("bce", 4, "in_batch", "batch"),
  "gbce": ItemObjective("gbce", 4, sharing="batch"),
}
CANDIDATES = CandidateBatch(
  history_item=np.array([[0, 5, 3], [7, 1, 9]]), history_category=np.array([[0, 2, 3], [3, 1, 2]]),
  history_age=np.array([[0, 2, 1], [3, 2, 1]]), item=np.array([1, 2]), category=np.array([1, 2]),
  label=np.array([1.0, 0.0], np.float32), user_id=np.array([1, 2]),
)  # fmt: skip


def build(name):
  return models.build(MODELS[name], num_items=NUM_ITEMS)


def parameters(model, batch=BATCH):
  """NumPy arrays, as a checkpoint has them."""
  shapes = jax.eval_shape(model.init, KEY, batch)
  return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)


def trace(function, *arguments):
  """Results as shapes; compiles nothing."""
  return jax.eval_shape(function, *arguments)


def attention(implementation, activation):
  q, ids = np.ones((1, 6, 2, 4), np.float32), jnp.array([[1, 1, 1, 2, 2, 0]], jnp.int32)
  place = np.arange(6, dtype=np.int32)[None]

  def loss(q, time_table, position_table):
    bias = RelativeBias(time_table, place, place, position_table, place, place)
    normalizer = None if activation == "softmax" else np.ones((1, 6), np.float32)
    out, mass = segment_attention(
      q, q, q, IntervalMask.causal(ids).limited(2), activation=activation, bias=bias, implementation=implementation,
      normalizer=normalizer, key_group=np.ones((1, 6), np.int8), num_groups=2,
    )  # fmt: skip
    return (out**2).sum() + mass.sum()

  return trace(jax.grad(loss, (0, 1, 2)), q, np.ones(129, np.float32), np.ones((2, 11), np.float32))


def masks():
  def build(ids, domain, lengths):
    hstu = IntervalMask.hstu(
      lengths, 6, num_targets=lengths, max_attention_length=2, contextual_length=2, min_full_attention_length=1
    )
    return hstu, IntervalMask.full(ids).queries(1, 2), IntervalMask.intra_domain(ids, domain, domain)

  return trace(build, np.ones((2, 6), np.int16), np.ones((2, 6), np.uint8), np.ones(2, np.int32))


def item_gradients(model, objective):
  model, objective = build(model), OBJECTIVES[objective]
  return trace(lambda p, key: objective.gradients(model, p, BATCH, key)[:3], parameters(model)["params"], KEY)


def cross_domain_gradients(model):
  model, objective = build(model), CrossDomainObjective(OBJECTIVES["full"])

  def gradients(params, key):
    losses, weights, grads, to_params_gradient, *_ = objective.gradients(model, params, BATCH, key)
    return losses, weights, to_params_gradient(grads[1]), objective.weighted_gradient(model, params, BATCH, key, losses)

  return trace(gradients, parameters(model)["params"], KEY)


def click_gradients(variant):
  model = ctr.build({"name": variant, "width": 4, "top_k": 2}, num_items=9, num_categories=3)
  variables = dict(parameters(model, CANDIDATES))
  params = variables.pop("params")
  return trace(
    lambda params, rest: ClickObjective().gradients(model, params, CANDIDATES, KEY, model_state=rest)[2],
    params,
    variables,
  )


def step_of_tables(**options):
  tables = Tables({"item": Table(9, 4, **options), "user": Table(7, 4, **options)})

  def step(state):
    ids = {"item": {"seen": np.array([[1, 2], [3, -1]]), "none": np.zeros((0, 2), np.int32)}, "user": np.array([1, 2])}
    rows, plan = tables.lookup(state, ids)
    gradient = jax.grad(lambda rows: sum(x.sum() for x in jax.tree.leaves(tables.vectors(rows, plan))))(rows)
    collected = tables.collect(state, plan, gradient)
    return tables.apply(state, tables.add([collected, collected]))

  trace(lambda key: tables._init(key), KEY)
  state = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), tables.abstract_state())
  return trace(step, state)


def multi_objective_step(weighting, count):
  weighting = getattr(multi_objective, weighting)(**({"learning_rate": 0.1} if weighting == "uncertainty" else {}))
  optimizer = multi_objective.multi_objective(weighting, optax.sgd(0.1), num_objectives=count)
  params = {"w": jnp.ones((3, 2), jnp.float32), "b": jnp.ones(2, jnp.bfloat16)}

  def step(params):
    return optimizer.update((params,) * count, optimizer.init(params), params, losses=jnp.ones(count, jnp.float32))

  return trace(step, params)


def ranks():
  queries, vectors = np.ones((2, 4), np.float32), np.ones((6, 4), np.float32)
  domains = {"item_domain": np.array([0, 1, 1, 2, 2, 2]), "target_domain": np.array([1, 2])}
  target, seen = np.array([1, 3]), np.array([[2, 1], [0, 0]])
  found = catalogue.target_ranks(queries, vectors, target, seen_items=seen, **domains, seen_target="remove")
  catalogue.sampled_target_ranks(queries, vectors, target, evaluation_negatives(np.array([0, -1]), target, 3, 5))
  catalogue.top_k_items(queries, vectors, 2, seen_items=seen)
  return metrics.RankingMetrics.zero((1, 5)).update(found).result()


def incremental():
  model = build("multi-domain")
  serving = IncrementalModel(model, parameters(model)["params"])
  one = np.array([1])
  return serving.query(serving.observe(serving.start(1, 2), one, one, one), one, one)


def history():
  item = np.array([3, 1, 0])
  model = ctr.build({"name": "dare", "width": 4, "top_k": 2}, num_items=9, num_categories=3)
  variables = parameters(model, CANDIDATES)
  query = model.apply(variables, item[:1], item[:1], method="search_queries")
  keys = history_search.history_keys(model, variables, item, item, item)
  return history_search.search(query, keys, 2), history_search.search(query, keys, 2, recall=0.9)


def stack():
  model = stu.STU(num_layers=1, num_heads=2, head_width=4, value_width=4, normalizer=6.0, contextual_length=1)
  encoder = stu.STUPositionalEncoder(num_positions=8, num_time_buckets=5, contextual_length=1)
  x, lengths, targets = np.ones((1, 6, 8), np.float32), np.array([5]), np.array([2], np.uint8)
  trace(encoder.init_with_output, KEY, x, np.arange(6)[None], lengths, targets)
  return trace(model.init_with_output, KEY, x, lengths, targets)


def stack_with_cache():
  model = stu.STU(num_layers=1, num_heads=2, head_width=4, value_width=4, normalizer=6.0)
  x, lengths, targets = np.ones((1, 6, 8), np.float32), np.array([6]), np.array([2], np.uint8)

  def read(key, x):
    params = model.init(key, x, lengths, targets)
    cache = model.apply(params, x, lengths, targets, slot=Prefill(6), mutable=["cache"])[1]
    return model.apply(params | cache, x[:, :2], lengths, targets, slot=CachedRows(np.array([[4, 5]]), 6))

  return trace(read, KEY, x)


RANKING = {
  "hstu": {},
  "stu": {"layer": "stu"},
  "hstu with a window": {"window": 3, "global_tokens": 1},
  "hstu bfloat16": {"dtype": jnp.bfloat16},
}  # fmt: skip


def ranking(name):
  """Model, columns, and the training batch of an interleaved history with context."""
  data = planted_actions(num_users=3, num_genres=2, items_per_genre=4, mean_events=6.0)
  columns = RankingColumns(data, ("domain",), ("user",))
  kinds = {"like": "binary", "reaction": "multi_class", "seconds": "regression"}
  actions = tuple(ActionType(name, kind, 3 if kind == "multi_class" else 2) for name, kind in kinds.items())
  model = RankingModel(
    data.num_items, actions, actions, 8, 12, features=(("domain", 2),), num_context_ids=3, num_heads=1,
    **{"input_dropout": 0.1, "dropout": 0.1} | RANKING[name],
  )  # fmt: skip
  return model, columns, data


def ranking_gradients(name, layout, gradients_at):
  model, columns, data = ranking(name)
  options = RankingOptions(max_length=12, layout=layout)
  batch = RankingBatches(columns, training_examples(data, 0, options), options, 3)[0]
  objective = ActionObjective(model.heads, gradients_at)

  def gradients(params, key):
    losses, weights, grads, to_params_gradient, *_ = objective.gradients(model, params, batch, key)
    return losses, weights, to_params_gradient(grads[1])

  return trace(gradients, parameters(model, batch)["params"], KEY)


def candidates(name):
  model, columns, data = ranking(name)
  batch = history_batch(columns, "one_token", data.offsets[:-1], data.offsets[1:], 12)
  items, time = np.array([[1, 2]] * 3, np.int32), np.array([9] * 3, np.int32)

  def score(params):
    histories = mfalcon.encode_histories(model, 14, params, batch)
    return mfalcon.score_microbatch(model, params, histories, items, {"domain": items % 2 + 1}, time)

  return trace(score, parameters(model, batch)["params"])


def read_candidates(name):
  model = models.build({"name": name, **SIZES}, num_items=9)
  batch = next_item_batch(np.array([[1, 2, 3]], np.int32), np.array([[1, 2, 1]], np.int32))
  items, time = np.array([[1, 2]], np.int32), np.array([9], np.int32)

  def score(params):
    histories = mfalcon_retrieval.encode_histories(model, 8, params, batch)
    return mfalcon_retrieval.read_microbatch(model, False, True, params, histories, time, items, items)

  return trace(score, parameters(model, batch)["params"])


KEY = jax.random.key(0)
SHARDED = {"placement": "sharded"}
TABLES = {
  "with SGD": {"optimizer": RowSGD(weight_decay=0.1)},
  "with admission": {"optimizer": RowAdagrad(), "admit_after": 2, **SHARDED},
  "of bfloat16": {"optimizer": RowAdamW(), "dtype": jnp.bfloat16, "rounding": "stochastic", **SHARDED},
  "with remainders": {
    "optimizer": RowAdamW(second_moment="element"), "dtype": jnp.bfloat16, "rounding": "float32"
  },
}  # fmt: skip
SURFACE = {
  **{
    f"attention {implementation} {activation}": (attention, implementation, activation)
    for implementation in ("reference", "dense", "xla", "auto")
    for activation in ("silu", "softmax")
  },
  "masks": (masks,),
  **{f"gradients of {name}": (item_gradients, name, "full") for name in MODELS},
  **{f"gradients of {name}": (item_gradients, "sasrec", name) for name in OBJECTIVES},
  **{f"AutoCDSR of {name}": (cross_domain_gradients, name) for name in ("hstu", "hstu softmax bottlenecks")},
  **{f"clicks by {name}": (click_gradients, name) for name in ctr.VARIANTS},
  **{f"tables {name}": (functools.partial(step_of_tables, **options),) for name, options in TABLES.items()},
  "hashed ids": (lambda: two_rows(fold_id(np.array([0, 7, 2**40])), 1000),),
  **{
    f"{name} of {count}": (multi_objective_step, name, count)
    for name in ("mgda", "pcgrad", "cagrad", "uncertainty")
    for count in (2, 3)
  },
  "pareto": (multi_objective_step, "pareto", 2),
  "ranks": (ranks,),
  "incremental": (incremental,),
  "history search": (history,),
  "STU": (stack,),
  "STU with a cache": (stack_with_cache,),
  **{f"ranking by {name}": (ranking_gradients, name, "one_token", "shared") for name in RANKING},
  "ranking, interleaved": (ranking_gradients, "hstu", "interleaved", "full"),
  **{f"M-FALCON by {name}": (candidates, name) for name in ("hstu", "stu")},
  **{f"M-FALCON of retrieval by {name}": (read_candidates, name) for name in ("sasrec", "multi_domain_hstu")},
  "batches": (lambda: next_item_batch(np.array([[5, 3, 8, 0]])),),
}  # fmt: skip


@pytest.mark.parametrize("name", SURFACE)
def test_the_public_surface_works_under_strict_promotion_of_ranks_and_types(name):
  run, *arguments = SURFACE[name]
  with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
    run(*arguments)


@pytest.mark.parametrize("name", SURFACE)
def test_the_public_surface_works_in_the_64_bit_mode(name):
  run, *arguments = SURFACE[name]
  with jax.enable_x64(True):
    results = run(*arguments)
  floats = {x.dtype for x in jax.tree.leaves(results) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)}
  assert np.dtype(np.float64) not in floats, "float32 grew into float64"
