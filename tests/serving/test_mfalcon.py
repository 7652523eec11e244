"""M-FALCON equals one candidate at a time, for every microbatch, layout, layer and context; one program for all m."""

import jax
import numpy as np
import pytest

from jaxrec.batches import ActionType
from jaxrec.data.batches.ranking_batches import RankingBatches, RankingOptions, history_batch
from jaxrec.data.batches.ranking_rows import Examples, RankingColumns
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.models.ranking import RankingModel
from jaxrec.serving import mfalcon
from jaxrec.serving.mfalcon import MFalcon, microbatch_bytes, plan_microbatch

DATA = planted_actions(num_users=3, num_genres=2, items_per_genre=8, mean_events=8.0)
ACTIONS = (ActionType("like", "binary"), ActionType("reaction", "multi_class", 3))
USERS = np.arange(3)
FIRST, LAST = DATA.offsets[:-1], DATA.offsets[1:] - 1  # The last event of each user stands for the request.
CAPACITY = 32
CANDIDATES = np.stack([np.random.default_rng(user).permutation(16)[:11] + 1 for user in USERS])


def columns_of(context):
  return RankingColumns(DATA, ("domain",), context)


def model_of(context, **fields):
  shape = {
    "width": 8, "num_layers": 2, "num_heads": 2, "head_width": 4, "value_width": 4, "attention_length": 16,
    "head_hidden": 0,
  }  # fmt: skip
  return RankingModel(
    num_items=DATA.num_items, actions=ACTIONS, heads=ACTIONS, max_positions=16, features=(("domain", 2),),
    num_context_ids=DATA.num_users if context else 0, **{**shape, "implementation": "reference", **fields},
  )  # fmt: skip


def one_at_a_time(model, params, columns, layout):
  """The predictions for each candidate as the last event of a history of its own, from a full forward pass."""
  options = RankingOptions(max_length=16, layout=layout, packing=False)
  batches = RankingBatches(columns, Examples(FIRST, LAST, LAST + 1), options, 1000, shuffle=False)
  batch = batches[0]
  row, place = np.nonzero(batch.weight)
  assert row.tolist() == USERS.tolist()
  run = jax.jit(lambda batch: model.apply({"params": params}, batch))
  found = []
  for k in range(CANDIDATES.shape[1]):
    batch.item_id[row, place] = CANDIDATES[:, k]
    batch.features["domain"][row, place] = DATA.item_domain()[CANDIDATES[:, k]]
    found.append({name: np.asarray(x)[row, place] for name, x in run(batch).items()})
  return {name: np.stack([one[name] for one in found], axis=1) for name in found[0]}, batch.timestamp[row, place]


CASES = {
  "hstu": ("one_token", ("user",), {}),
  "interleaved": ("interleaved", ("user",), {}),
  "stu": ("one_token", (), {"layer": "stu"}),
  "semi_local": ("one_token", ("user",), {"window": 3, "global_tokens": 2}),
  "tiled": ("one_token", ("user",), {"implementation": "xla"}),
}


@pytest.mark.parametrize("case", CASES)
def test_candidates_against_the_cache_equal_one_at_a_time(case):
  layout, context, fields = CASES[case]
  columns, model = columns_of(context), model_of(context, **fields)
  batch = history_batch(columns, layout, FIRST, LAST, CAPACITY)
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(1), x.shape), params)
  expected, time = one_at_a_time(model, params, columns, layout)
  features = {"domain": DATA.item_domain()[CANDIDATES]}
  for microbatch in (1, 4, 16) if case == "hstu" else (4,):
    scorer = MFalcon(model, params, CAPACITY, microbatch)
    found = scorer.score(scorer.encode(batch), CANDIDATES, time, features)
    for name, values in expected.items():
      assert found[name].shape == values.shape and np.ptp(values) > 1e-3
      np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=f"{name} {microbatch}")


@pytest.fixture(scope="module")
def scorer():
  columns, model = columns_of(()), model_of((), num_layers=1)
  batch = history_batch(columns, "one_token", FIRST, LAST, CAPACITY)
  return MFalcon(model, jax.jit(model.init)(jax.random.key(0), batch)["params"], CAPACITY, 4), batch


def score(scorer, batch, items):
  return scorer.score(scorer.encode(batch), items, np.full(3, 9), {"domain": DATA.item_domain()[items]})["like"]


def test_other_candidates_change_nothing(scorer):
  before = score(*scorer, CANDIDATES)
  changed = CANDIDATES.copy()
  changed[:, 1:] = changed[:, 1:] % 16 + 1
  after = score(*scorer, changed)
  np.testing.assert_array_equal(before[:, 0], after[:, 0])
  assert (before[:, 1:] != after[:, 1:]).all()


def test_one_program_serves_every_number_of_candidates(scorer):
  score(*scorer, CANDIDATES)
  compiled = mfalcon.score_microbatch._cache_size()
  for count in (1, 2, 5, 9):
    np.testing.assert_allclose(score(*scorer, CANDIDATES[:, :count]), score(*scorer, CANDIDATES)[:, :count], atol=1e-6)
  assert mfalcon.score_microbatch._cache_size() == compiled


def test_wrong_arguments_are_errors(scorer):
  falcon, batch = scorer
  with pytest.raises(ValueError, match="features .* must be those of the model"):
    falcon.score(falcon.encode(batch), CANDIDATES, np.zeros(3, int))
  with pytest.raises(ValueError, match="have 32 tokens, more than self.capacity=16"):
    MFalcon(falcon.model, falcon.params, 16).encode(batch)
  with pytest.raises(ValueError, match="several histories"):
    falcon.encode(batch.replace(sequence_id=batch.sequence_id * 2))
  with pytest.raises(ValueError, match="history 1 is empty"):
    history_batch(columns_of(()), "one_token", FIRST, np.array([FIRST[0] + 1, FIRST[1], LAST[2]]), CAPACITY)
  with pytest.raises(ValueError, match="microbatch=0"):
    MFalcon(falcon.model, falcon.params, 16, 0)


def test_the_plan_fits_memory_and_candidates():
  model = model_of(())
  for memory in (2**18, 2**20, 2**24):
    size = plan_microbatch(model, 2048, 4096, memory_bytes=memory)
    fits = microbatch_bytes(model, 2048, size) <= memory or size == mfalcon.SMALLEST
    assert fits and (size == mfalcon.LARGEST or microbatch_bytes(model, 2048, 2 * size) > memory)
  assert plan_microbatch(model, 2048, 40) == 64
