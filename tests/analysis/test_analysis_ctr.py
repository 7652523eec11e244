"""Analyses of click-through models, on numbers worked by hand, and their plots."""

import functools

import jax
import numpy as np
import pytest
from candidates import NUM_CATEGORIES, NUM_ITEMS, candidate_batch

from jaxrec.analysis import ctr_analysis as analysis
from jaxrec.analysis import ctr_plots as plots
from jaxrec.models import ctr

MODEL = {"width": 4, "top_k": 3, "hidden": (8,), "auxiliary_hidden": (8,)}


def batches(count=3):
  rng = np.random.default_rng(0)
  return [
    candidate_batch(rng.integers(1, NUM_ITEMS + 1, (8, 5)), rng.integers(1, NUM_ITEMS + 1, 8)) for _ in range(count)
  ]


@functools.cache
def model_and_variables(name="dare"):
  model = ctr.build({"name": name, **MODEL}, num_items=NUM_ITEMS, num_categories=NUM_CATEGORIES)
  return model, jax.jit(model.init)(jax.random.key(0), batches(1)[0])


def test_a_perfect_search_has_an_ndcg_of_one_and_padding_is_never_found():
  relevance = np.array([[5.0, 0.2, 0.0, 1.0]])
  is_real = np.array([[False, True, True, True]])
  assert analysis.search_ndcg(np.array([[9.0, 2.0, 1.0, 3.0]]), relevance, is_real, k=2) == 1
  assert analysis.search_ndcg(np.array([[9.0, 0.0, 1.0, 0.5]]), relevance, is_real, k=1) == 0


def test_what_a_search_cannot_return_is_not_found_whatever_its_score():
  relevance, real = np.array([[5.0, 0.5, 1.0]]), np.ones((1, 3), bool)
  may_find = np.array([[False, True, True]])
  found = analysis.search_ndcg(np.array([[9.0, 2.0, 1.0]]), relevance, real, k=2, may_find=may_find)
  assert found == pytest.approx((0.5 + 1 / np.log2(3)) / (5 + 1 / np.log2(3)))
  nothing = analysis.search_ndcg(np.array([[9.0, 2.0, 1.0]]), relevance, real, k=2, may_find=~real)
  assert nothing == 0


def test_rows_without_a_relevant_event_are_excluded():
  relevance, real = np.array([[0.0, 1.0], [0.0, 0.0]]), np.ones((2, 2), bool)
  assert analysis.search_ndcg(np.array([[0.0, 1.0], [1.0, 0.0]]), relevance, real, k=1) == 1
  with pytest.raises(ValueError, match="no row has a relevant event"):
    analysis.search_ndcg(np.zeros((1, 2)), np.zeros((1, 2)), np.ones((1, 2), bool))


def test_the_gradients_of_the_roles_sum_to_that_of_the_shared_table():
  """Compares the sum of the two gradients with the gradient of TWIN at the same parameters."""
  dare, variables = model_and_variables("dare")
  twin, of_twin = model_and_variables("twin")
  same = variables["params"]["embedding"]["lookup_representation"]
  params = {**variables["params"], "embedding": {"lookup_shared": same}}
  gradients = analysis.role_gradients(dare, variables, batches(1))

  def loss(params):
    output, _ = twin.apply({**of_twin, "params": params}, batches(1)[0], deterministic=False, mutable=["batch_stats"])
    return analysis.ctr_loss(output.logit, output.auxiliary_logit, batches(1)[0].label, params=params)[0]

  shared = np.asarray(jax.jit(jax.grad(loss))(params)["embedding"]["lookup_shared"]["category_table"])[1:]
  longest = np.linalg.norm(shared, axis=1).mean()
  assert abs(gradients.norm[0, 1] - gradients.norm[0, 0]) <= longest + 1e-6 <= gradients.norm.sum() + 2e-6
  assert gradients.norm.shape == (1, 2) and (gradients.norm > 0).all() and np.abs(gradients.cosine).max() <= 1


def test_gradients_of_roles_need_tables_for_each():
  with pytest.raises(ValueError, match="the model has no"):
    analysis.role_gradients(*model_and_variables("twin"), batches(1))


def test_conflict_is_counted_by_row():
  attention, representation = np.array([[1.0, 0], [0, 2], [0, 0]]), np.array([[2.0, 0], [0, -1], [1, 0]])
  norm, cosine = analysis._row_norms_and_cosines(attention, representation)
  assert norm == [1.5, pytest.approx(4 / 3)]
  assert cosine[:2].tolist() == [1, -1] and np.isnan(cosine[2])
  result = analysis._role_gradients(np.array([norm, norm]), np.array([cosine, -cosine]))
  assert result.conflict[:2].tolist() == [0.5, 0.5] and np.isnan(result.conflict[2])
  assert result.ratio == pytest.approx(4 / 4.5) and result.share_of_steps == 0


def test_mutual_information_is_that_of_the_decisive_events():
  """The latest event has category 1 with a click and 2 without; the one before is independent of the click."""
  batch = candidate_batch([[5, 1], [5, 2], [5, 1], [5, 2]], [4, 4, 4, 8], labels=[1, 0, 1, 0])
  found = analysis.mutual_information([batch], target=4, categories=[1, 2], ages=[1, 2])
  assert found.round(6).tolist() == [[round(np.log(2), 6), 0], [round(np.log(2), 6), 0]]
  with pytest.raises(ValueError, match="no candidate has the category target=3"):
    analysis.mutual_information([batch], target=3, categories=[1], ages=[1])


@pytest.mark.parametrize("name", ["dare", "twin"])
def test_learned_attention_sums_to_one(name):
  tables = analysis.attention_tables(model_and_variables(name)[1])
  attention = analysis.learned_attention(tables, 1, range(1, 5), range(1, 7))
  assert attention.shape == (4, 6) and attention.sum() == pytest.approx(1)


def test_models_with_four_tables_are_refused():
  with pytest.raises(ValueError, match="candidates and events must share one set"):
    analysis.attention_tables(model_and_variables("twin_4e")[1])


def test_noise_has_no_information_about_clicks():
  rng = np.random.default_rng(0)
  features, label = rng.normal(size=(2000, 3)), (rng.random(2000) < 0.5).astype(float)
  assert analysis.discriminability(features, label, 5) < 0.01
  assert analysis.discriminability(features + 9 * label[:, None], label, 2) == pytest.approx(np.log(2), abs=0.01)
  with pytest.raises(ValueError, match="num_clusters=9 must be at most the 2 distinct rows"):
    analysis.discriminability(np.eye(2), np.array([0.0, 1.0]), 9)


def test_plots_are_written(tmp_path):
  pytest.importorskip("matplotlib")
  gradients = analysis.role_gradients(*model_and_variables(), batches())
  information = np.array([[0.0, 1.0], [2.0, 3.0]])
  assert plots.draw_role_gradients(gradients, str(tmp_path / "1.png"))
  assert plots.draw_attention(information, {"DARE": information, "TWIN": np.ones((2, 2))}, str(tmp_path / "2.png"))
  assert plots.draw_bars({"DARE": [0.8, 0.7], "TWIN": [0.5]}, "NDCG@20", str(tmp_path / "3.png"))
  assert plots.draw_discriminability({"DARE": {2: 0.1, 10: 0.2}}, str(tmp_path / "4.png"))
  assert plots.draw_convergence({"DARE": {50: 0.8, 100: 0.9}}, "AUC", str(tmp_path / "5.png"))
  assert all((tmp_path / f"{i}.png").stat().st_size > 2000 for i in range(1, 6))
