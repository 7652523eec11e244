"""The ablation of HSTU-large: every variant is an accepted config that builds, and changes what it says."""

import jax
import pytest
from sequences import batch_of

from experiments.configs import ml1m_hstu_large
from experiments.configs.ml1m_hstu_ablation import VARIANTS, get_config
from jaxrec.models import build
from jaxrec.objectives import item
from jaxrec.train.config import check_config
from jaxrec.train.identity import config_differences


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_accepted_builds_and_differs_from_the_others(name):
  config = get_config(name)
  check_config(config)
  item.build(config.objective.to_dict())
  model = build(config.model.to_dict(), num_items=10)
  jax.eval_shape(model.init, jax.random.key(0), batch_of([[[1, 2, 3]]], 4))
  same = ("config.name", "config.train.retrain")
  changed = config_differences(ml1m_hstu_large.get_config("short").to_dict(), config.to_dict())
  changed = {line.split()[0] for line in changed if not line.startswith(same)}
  assert changed == {f"config.{group}.{key}" for group, keys in VARIANTS[name].items() for key in keys}
  assert bool(changed) == (name != "base")


def test_the_recipe_is_the_published_re_run():
  config = get_config("recipe")
  assert (config.objective.num_negatives, config.objective.sharing, config.objective.temperature) == (
    128, "position", 0.05
  )  # fmt: skip
  assert (config.optimizer.learning_rate, config.optimizer.schedule, config.train.num_epochs) == (1e-3, "constant", 100)
  assert (config.model.num_layers, config.model.num_heads, config.model.width) == (8, 2, 50)


def test_an_unknown_variant_is_refused():
  with pytest.raises(ValueError, match=r"choice='bigger' must be one of \('base', 'position128'"):
    get_config("bigger")
