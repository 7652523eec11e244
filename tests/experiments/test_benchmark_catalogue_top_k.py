"""The benchmark of the best items of a catalogue: it runs, and a wrong result gets no time."""

import json

import numpy as np

from experiments.benchmarks import catalogue_top_k


def test_all_variants_find_the_same_items():
  records = list(catalogue_top_k.measure(300, 4, 3, 5, 1, recall=0.9))
  assert [r["variant"] for r in records][:5] == ["library", "small_chunks", "approximate", "scores", "read"]
  assert all(r["least_ms"] <= r["median_ms"] <= r["most_ms"] and r["recall"] >= 0.85 for r in records)
  assert json.loads(json.dumps(records)) == records
  assert len(catalogue_top_k.table(records).splitlines()) == 2 + len(records)


def test_a_wrong_result_gets_no_time(monkeypatch):
  found = catalogue_top_k.variants

  def variants(*arguments):
    return found(*arguments) | {"small_chunks": lambda: np.zeros((3, 5), int)}

  monkeypatch.setattr(catalogue_top_k, "variants", variants)
  records = list(catalogue_top_k.measure(300, 8, 3, 5, 1, recall=0.9))
  wrong = {r["variant"]: r["wrong"] for r in records if "wrong" in r}
  assert wrong == {"small_chunks": "has 0.0000 of the best items"}
  assert wrong["small_chunks"] in catalogue_top_k.table(records)
