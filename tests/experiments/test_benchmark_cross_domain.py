"""The benchmark of training steps with and without AutoCDSR: it runs, and interleaves the variants."""

import json

import numpy as np
import pytest
from absl import flags

from experiments.benchmarks import cross_domain_step
from experiments.benchmarks.cross_domain_step import SIZES, config_of, random_events, time_interleaved
from experiments.configs._cross_domain import ENCODERS, INTRA_DOMAIN, RULES, VARIANTS
from jaxrec.multi_objective import build
from jaxrec.train.config import check_config


def test_variants_take_steps_and_are_compared_with_base(monkeypatch, tmp_path):
  values = flags.FlagValues()
  cross_domain_step.define_flags(values)
  variants = ["--variants=base", "--variants=autocdsr_plus"]
  values(["bench", "--smoke", "--steps=2", "--encoders=sasrec", *variants, f"--out={tmp_path / 'lines.jsonl'}"])
  monkeypatch.setattr(cross_domain_step, "FLAGS", values)
  cross_domain_step.main(["bench"])
  records = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
  assert [(r["encoder"], r["variant"]) for r in records] == [("sasrec", "base"), ("sasrec", "autocdsr_plus")]
  assert records[0]["ratio"] == 1
  assert all(r["median_ms"] >= r["least_ms"] > 0 and r["ratio"] > 0 and r["steps"] == 2 for r in records)
  assert records[0]["parameters"] == records[1]["parameters"] - 4


@pytest.mark.parametrize("config_file", SIZES)
@pytest.mark.parametrize("smoke", [False, True])
def test_the_config_of_every_variant_is_valid(config_file, smoke):
  for encoder in ENCODERS:
    for variant in set(VARIANTS) - (set() if encoder == "hstu" else set(INTRA_DOMAIN)):
      config = config_of(config_file, f"{encoder}-{variant}", "somewhere", smoke)
      check_config(config)
      assert config.model.name == ("multi_domain_hstu" if variant in INTRA_DOMAIN else encoder)
  with pytest.raises(ValueError, match="intra... is for hstu"):
    config_of(config_file, "sasrec-intra", "somewhere", smoke)


def test_choices_name_the_score_and_the_weighting():
  settings = {rule: config_of("abxi", f"sasrec-autocdsr_visible-{rule}", "somewhere", True).multi_objective
              for rule in (*RULES, "0.05")}  # fmt: skip
  for rule, one in settings.items():
    assert one.score == "visible" and one.inner_products == ("attention_path" if rule == "path" else "shared")
    assert build(one.weighting.to_dict()).init(2) is not None
  assert settings["0.05"].weighting.weights == (1.0, 0.05)
  assert config_of("abxi", "hstu-autocdsr", "somewhere", True).multi_objective.score == "all_keys"
  with pytest.raises(ValueError, match="a hyphen and a weight or one of"):
    config_of("abxi", "sasrec-autocdsr-keep", "somewhere", True)


def test_the_order_of_the_functions_is_rotated_every_round():
  calls = []
  steps = {name: lambda i, name=name: calls.append((name, i)) for name in "abc"}
  times = time_interleaved(steps, rounds=2)
  assert "".join(name for name, _ in calls) == "abc" + "abc" + "bca"
  assert [i for _, i in calls] == [0] * 6 + [1] * 3
  assert {name: len(ms) for name, ms in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_random_events_have_the_given_sizes():
  data = random_events(SIZES["abxi"])
  assert (data.num_users, data.num_items, data.num_events) == (1024, 28_095, 24 * 1024)
  assert np.bincount(data.domain_id)[1:].min() > 0.45 * data.num_events
  np.testing.assert_array_equal(data.item_domain()[data.item_id], data.domain_id)
