"""Cross-domain attention: shares, strata, trajectories, sweeps and the planted truth, worked by hand."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.analysis import autocdsr_plots as plots
from jaxrec.analysis.autocdsr_analysis import (
  QueryAttention,
  attention_by_strata,
  attention_to_usefulness,
  query_attention,
  query_shares,
  weight_sweep,
  weight_trajectory,
)
from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.data.generators.planted_transfer import planted_transfer, planted_truth
from jaxrec.data.prepared import PreparedData
from jaxrec.data.single_domain import only_domain
from jaxrec.layers.attention import MASS, cross_domain_share, masses_by_layer
from jaxrec.models import build

LENGTH = 8
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SIZES = {"width": 4, "num_layers": 2, "max_positions": LENGTH + 1, "num_domains": 2, "num_heads": 2}
MODELS = {
  "sasrec": {"name": "sasrec", **SIZES, "hidden": 4},
  "bert4rec": {"name": "bert4rec", **SIZES, "hidden": 4},
  "hstu": {"name": "hstu", **SIZES, "head_width": 2, "value_width": 3, "attention_length": LENGTH},
  "hstu_plus": {
    **{"name": "hstu", **SIZES, "head_width": 2, "value_width": 3, "attention_length": LENGTH},
    **{"num_bottlenecks": 1, "bottleneck_stride": 2},
  },
}
HISTORIES = [[1, 1, 2, 1, 2], [2, 2, 2, 2, 1, 1], [1, 1, 1, 1], [2, 1, 2]]  # Domains; the last event is the target.


@pytest.fixture(scope="module")
def data():
  domain = [d for history in HISTORIES for d in history]
  user = [u for u, history in enumerate(HISTORIES) for _ in history]
  item = [5 * (d - 1) + i % 5 + 1 for i, d in enumerate(domain)]
  return PreparedData.from_columns(item_id=item, domain_id=domain, user=user, timestamp=60 * np.arange(len(item)))


@functools.cache
def model_and_params(name, scale):
  model = build(MODELS[name], num_items=10)
  (batch,) = evaluation_batches(PreparedData.from_columns(item_id=[1, 6, 2], user=[0] * 3), 2, 1, LENGTH)
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch.batch)["params"]
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(1)
  return model, jax.tree.unflatten(tree, [jnp.asarray(scale * rng.normal(size=x.shape), x.dtype) for x in leaves])


def batches_of(data, name, size=3):
  task = "masked_item" if name == "bert4rec" else "next_item"
  return evaluation_batches(data, 2, size, LENGTH, task)


def attention_of(data, name, scale=0.0, size=3):
  return query_attention(*model_and_params(name, scale), batches_of(data, name, size))


def test_uniform_attention_equals_the_shares_of_events(data):
  attention = attention_of(data, "sasrec")
  assert attention.user.tolist() == [0, 1, 2, 3]
  expected = np.array([[0, 3, 1], [0, 1, 4], [0, 3, 0], [0, 1, 1]])
  expected = expected / expected.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(attention.events, expected, rtol=1e-5)
  np.testing.assert_allclose(attention.share, expected, atol=1e-5)
  assert attention.query_domain.tolist() == [1, 1, 1, 1]
  assert attention.target_domain.tolist() == [2, 1, 1, 2]
  np.testing.assert_allclose(attention.cross_domain_share(), [1 / 4, 4 / 5, 0, 1 / 2], atol=1e-5)
  np.testing.assert_allclose(attention.cross_domain_share("target"), [3 / 4, 4 / 5, 0, 1 / 2], atol=1e-5)


def test_a_mask_token_attends_to_itself_and_has_the_domain_of_the_target(data):
  attention = attention_of(data, "bert4rec")
  np.testing.assert_allclose(attention.share[0], [1 / 5, 3 / 5, 1 / 5], atol=1e-5)
  assert attention.query_domain.tolist() == attention.target_domain.tolist() == [2, 1, 1, 2]
  np.testing.assert_allclose(attention.cross_domain_share(), [3 / 5, 4 / 6, 0, 1 / 3], atol=1e-5)


@pytest.mark.parametrize("name", ["hstu", "hstu_plus"])
def test_shares_equal_those_of_the_objective(data, name):
  model, params = model_and_params(name, 0.5)
  attention = attention_of(data, name, 0.5, size=4)
  (batch,) = batches_of(data, name, size=4)
  domain = jnp.asarray(batch.batch.domain_id)
  apply = jax.jit(functools.partial(model.apply, mutable=[MASS]), compiler_options=QUICK)
  masses = masses_by_layer(apply({"params": params}, batch.batch)[1][MASS])
  layers = [cross_domain_share(mass[:, : domain.shape[1]], domain) for mass in masses]
  for row, user in enumerate(batch.user):
    position = np.flatnonzero(batch.batch.target_weight[row])[0]
    expected = np.mean([layer[row, position].mean() for layer in layers])
    np.testing.assert_allclose(attention.cross_domain_share()[user], expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(attention.share.sum(axis=1), 1, atol=1e-3)
  assert attention.share.shape[1] == (4 if name == "hstu_plus" else 3)


def test_the_visible_share_leaves_out_the_query_itself_and_hidden_events(data):
  attention = attention_of(data, "sasrec")  # Uniform; events of the own and of the other domain with the query itself:
  np.testing.assert_allclose(attention.others[0], [0, 2 / 4, 1 / 4, 1 / 4], atol=1e-5)  # 3 and 1,
  expected = [1 / 3, 4 / 4, 0, 1 / 1]  # 1 and 4, 3 and 0, 1 and 1.
  np.testing.assert_allclose(attention.cross_domain_share(score="visible"), expected, atol=1e-5)
  masked = attention_of(data, "bert4rec")
  np.testing.assert_allclose(masked.cross_domain_share(score="visible")[:2], [3 / 4, 4 / 5], atol=1e-5)
  with pytest.raises(ValueError, match="score='excess' is unknown"):
    attention.cross_domain_share(score="excess")


def test_the_size_of_the_batches_changes_nothing(data):
  one, other = attention_of(data, "sasrec", 0.5, size=2), attention_of(data, "sasrec", 0.5, size=3)
  np.testing.assert_allclose(one.share, other.share, rtol=1e-4)
  np.testing.assert_array_equal(one.user, other.user)
  shares = query_shares(*model_and_params("sasrec", 0.5), batches_of(data, "sasrec"), own="target")
  np.testing.assert_allclose(shares, one.cross_domain_share("target"), rtol=1e-4)


def test_with_one_domain_there_is_no_cross_domain_attention(data):
  alone = attention_of(only_domain(data, "domain 1"), "sasrec", 0.5)
  assert alone.user.tolist() == [1, 2]
  np.testing.assert_array_equal(alone.cross_domain_share(), 0)


def test_users_can_be_selected(data):
  attention = attention_of(data, "sasrec")
  assert attention.select(np.array([3, 1])).events.tolist() == attention.events[[1, 3]].tolist()
  with pytest.raises(ValueError, match=r"users \[7\] have no query here"):
    attention.select(np.array([1, 7]))
  with pytest.raises(ValueError, match="own='both' is unknown"):
    attention.cross_domain_share("both")


def test_models_without_cross_domain_attention_are_refused(data):
  model, params = model_and_params("sasrec", 0.0)
  with pytest.raises(ValueError, match="model.num_domains=1: cross-domain attention needs at least two"):
    query_attention(model.clone(num_domains=1), params, batches_of(data, "sasrec"))
  with pytest.raises(ValueError, match="Dense is not a SequentialModel"):
    query_attention(nn.Dense(1), params, batches_of(data, "sasrec"))


def test_strata_depend_on_which_model_ranks_the_target_high():
  shares = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
  strata = attention_by_strata(shares, np.array([10, 11, 3, 99, 12]), np.array([11, 10, 1, 50, 4]))
  assert {name: cell.count for name, cell in strata.items()} == {
    "single right": 1,
    "cross right": 2,
    "both": 1,
    "none": 1,
  }
  assert strata["single right"] == (1, 0.1, None)
  np.testing.assert_allclose(strata["cross right"], (2, 0.35, 0.15))
  assert attention_by_strata(shares, np.full(5, 2), np.full(5, 2), k=1)["both"] == (0, None, None)


@pytest.mark.parametrize(
  ("single", "k", "message"),
  [
    ([0, 1], 10, "single_ranks contains 0; ranks start at 1"),
    ([1], 10, "one of each per user"),
    ([1, 1], 0, "k=0 must be"),
  ],
)
@pytest.mark.unchecked_shapes
def test_invalid_ranks_are_refused(single, k, message):
  with pytest.raises(ValueError, match=message):
    attention_by_strata(np.zeros(2), np.array(single), np.array([1, 1]), k=k)


def record(step, weight, kind="train", phase="select"):
  values = {"cosine": 0.5, "cross_domain_attention": 0.2, "recommendation": 3.0}
  more = {} if weight is None else {"weight/cross_domain_attention": weight, **values}
  return {"phase": phase, "step": step, "epoch": 1, "kind": kind, "loss": 3.0, **more}


def test_a_trajectory_has_the_values_of_the_training_records():
  records = [record(20, 0.5), record(20, None, "validation"), record(40, 0.25), record(20, 9.0, phase="final")]
  values = weight_trajectory(records)
  assert values["step"].tolist() == [20, 40]
  assert values["weight/cross_domain_attention"].tolist() == [0.5, 0.25]
  with pytest.raises(ValueError, match="has 'weight/cross_domain_attention': the run had one objective"):
    weight_trajectory([record(20, None)])


def run_of(value, **weighting):
  objectives = ["cross_domain_attention"] if weighting else []
  return {"multi_objective": {"objectives": objectives, "weighting": weighting}}, {"test": {"domain/a/MRR": value}}


def test_a_sweep_has_fixed_weights_in_order_and_automatic_weightings_by_name():
  runs = [run_of(0.3, name="fixed", weights=[2, 1]), run_of(0.1), run_of(0.2, name="fixed", weights=[1, 0.25])]
  runs += [run_of(0.5, name="fixed", weights=[1, 0.5]), run_of(0.6, name="pareto")]
  fixed, automatic = weight_sweep(runs, "test/domain/a/MRR")
  assert list(fixed) == [0.0, 0.25, 0.5]
  np.testing.assert_allclose(fixed[0.5], (2, 0.4, 0.1 * 2**0.5))
  assert fixed[0.25] == (1, 0.2, None)
  assert automatic == {"pareto": (1, 0.6, None)}


def test_a_sweep_without_the_metric_or_with_invalid_weights_is_refused():
  with pytest.raises(ValueError, match="metric='MRR' is not in a summary, which has test/domain/a/MRR"):
    weight_sweep([run_of(0.1)], "MRR")
  with pytest.raises(ValueError, match="must be two numbers, the first above 0"):
    weight_sweep([run_of(0.1, name="fixed", weights=[0, 1])], "test/domain/a/MRR")


@pytest.fixture(scope="module")
def planted():
  """Returns planted data, and shares: 0.1 mask, 0.2 target domain, 0.3 informative, 0.25 noise, 0.15 bottleneck."""
  data = planted_transfer(num_users=40, items_per_domain=16, mean_events=12.0)
  user, target = np.arange(40), np.ones(40, int)
  share = np.tile([0.1, 0.2, 0.3, 0.25, 0.15], (40, 1)) * np.where(user == 0, 0.5, 1)[:, None]
  return data, QueryAttention(user, target, target, share, np.tile([0.0, 0.1, 0.2, 0.7, 0.0], (40, 1)), share)


@pytest.mark.parametrize("split", [1, 2])
def test_what_is_useful_depends_on_where_the_target_came_from(planted, split):
  data, attention = planted
  truth = planted_truth(data)
  is_planted = truth.is_planted[data.split == split]
  result = attention_to_usefulness(attention.select(np.arange(1, 40)), data, truth, split)
  assert result["planted"]["useful"].count == is_planted[1:].sum()
  assert result["own chain"]["useful"].count == (~is_planted[1:]).sum()
  expected = {"own": 0.2, "informative": 0.3, "noise": 0.25, "bottleneck": 0.15, "hidden": 0.1, "harmful": 0.25}
  for part, useful, neutral in (("planted", 0.3, 0.2), ("own chain", 0.2, 0.3)):
    means = {name: cell.mean for name, cell in result[part].items() if not name.startswith("events/")}
    assert means == pytest.approx(expected | {"useful": useful, "neutral": neutral})
  assert result["all"]["events/noise"].mean == pytest.approx(0.7)


def test_each_user_counts_by_their_own_target(planted):
  data, attention = planted
  truth = planted_truth(data)
  result = attention_to_usefulness(attention, data, truth, 2)
  is_planted = truth.is_planted[data.split == 2]  # User 0 has half the shares of the others.
  part = "planted" if is_planted[0] else "own chain"
  count = (is_planted == is_planted[0]).sum()
  assert result[part]["noise"].mean == pytest.approx(0.25 * (count - 0.5) / count)


def test_queries_for_other_domains_are_excluded(planted):
  data, attention = planted
  other = dataclasses.replace(attention, target_domain=attention.target_domain + 1)
  with pytest.raises(ValueError, match="no query has a target in the target domain"):
    attention_to_usefulness(other, data, planted_truth(data), 2)


def test_all_plots_are_written(planted, tmp_path):
  data, attention = planted
  ranks = np.arange(40) % 20 + 1
  strata = attention_by_strata(attention.cross_domain_share(), ranks, np.roll(ranks, 3))
  useful = attention_to_usefulness(attention, data, planted_truth(data), 2)
  fixed, automatic = weight_sweep(
    [run_of(0.1), run_of(0.4, name="pareto"), run_of(0.6, name="pareto")], "test/domain/a/MRR"
  )
  assert plots.draw_strata({"a": strata, "b": strata}, str(tmp_path / "strata.png"))
  assert plots.draw_weights({"a": weight_trajectory([record(20, 0.5), record(40, 0.2)])}, str(tmp_path / "weights.png"))
  assert plots.draw_sweep(fixed, automatic, "MRR", str(tmp_path / "sweep.png"))
  assert plots.draw_usefulness({"a": useful, "b": useful}, str(tmp_path / "useful.png"))
  assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())
