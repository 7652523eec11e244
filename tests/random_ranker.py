"""A small ranking model with random parameters, and what it predicts in a training batch."""

import functools

import jax
import numpy as np

import jaxrec
from jaxrec.batches import ActionType
from jaxrec.data.batches.ranking_batches import RankingBatches, RankingOptions, history_batch
from jaxrec.data.batches.ranking_rows import Examples, RankingColumns
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.models.ranking import RankingModel
from jaxrec.serving.action_ranker import ActionRanker, action_values

DATA = planted_actions(num_users=3, num_genres=2, items_per_genre=4, mean_events=6.0)
ACTIONS = (ActionType("like", "binary"), ActionType("reaction", "multi_class", 3))
LENGTH = 6


@functools.cache
def random_ranker(layout="one_token", actions=ACTIONS):
  columns = RankingColumns(DATA, ("domain",))
  model = RankingModel(
    num_items=DATA.num_items, actions=actions, heads=actions, max_positions=LENGTH, features=(("domain", 2),), width=8,
    num_layers=1, num_heads=1, head_width=8, value_width=8, attention_length=LENGTH, implementation="reference",
  )  # fmt: skip
  batch = history_batch(columns, layout, DATA.offsets[:-1], DATA.offsets[1:], 2 * 16)
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
  return ActionRanker(model, params, DATA, columns, layout, max_length=LENGTH)


def values_in_training(ranker):
  """Returns name -> [3, V], the predictions at the target of a training batch, one item at a time."""
  data = _with_one_more_event()
  end = data.offsets[1:]
  first = np.maximum(data.offsets[:-1], end - LENGTH)
  options = RankingOptions(max_length=LENGTH, layout=ranker.layout, packing=False)
  columns = RankingColumns(data, ("domain",))
  batch = RankingBatches(columns, Examples(first, end - 1, end), options, 1000, shuffle=False)[0]
  row, place = np.nonzero(batch.weight)
  assert row.tolist() == [0, 1, 2]
  run, found = jax.jit(lambda batch: ranker.model.apply({"params": ranker.params}, batch)), []
  for item in range(1, DATA.num_items + 1):
    batch.item_id[row, place], batch.features["domain"][row, place] = item, DATA.item_domain()[item]
    output = {name: np.asarray(x)[row, place] for name, x in run(batch).items()}
    found.append({name: x for head in ranker.model.heads for name, x in action_values(head, output[head.name]).items()})
  return {name: np.stack([one[name] for one in found], axis=1) for name in found[0]}


def _with_one_more_event():
  """Returns the data with an event of item 1 for each user, at the time of the last one: the request."""
  ends = DATA.offsets[1:]
  last = ends - 1

  def more(values, new):
    return np.insert(np.asarray(values), ends, new)

  return jaxrec.PreparedData.from_columns(
    offsets=DATA.offsets + np.arange(len(DATA.offsets)),
    item_id=more(DATA.item_id, 1), domain_id=more(DATA.domain_id, 1),
    timestamp=more(DATA.timestamp, DATA.timestamp[last]), num_items=DATA.num_items, item_domain=DATA.item_domain(),
    actions={name: more(values, 0) for name, values in DATA.actions.items()},
    action_kinds={name: meta["kind"] for name, meta in DATA.action_meta.items()},
  )  # fmt: skip


def events_of(user):
  """Returns the events of a user of the data as the loader of an artifact takes them."""
  span = DATA.user_slice(user)
  columns = [DATA.item_id[span].tolist(), DATA.timestamp[span].tolist()]
  actions = [{name: values[i] for name, values in DATA.actions.items()} for i in range(span.start, span.stop)]
  return list(zip(*columns, actions, strict=True))
