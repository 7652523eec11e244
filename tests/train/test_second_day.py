"""A run that goes on with a second day's events, beside runs from scratch."""

import pytest
from programs import second_day


@pytest.mark.exhaustive
def test_going_on_with_a_second_day_is_better_than_as_many_epochs_from_scratch(tmp_path):
  options = {"num_users": 600, "num_items": 96, "mean_events": 12.0}
  found = second_day.run("synthetic", options, 0.8, 12, 1, tmp_path)
  assert found["kept"] == {"users": True, "items": True}
  assert found["new_events"] > 0
  assert found["continued for 1"]["NDCG@10"] > found["from scratch for 1"]["NDCG@10"]
