"""Weights of targets by their action."""

import pytest

from jaxrec.data.batches.training import TrainingBatches, TrainingOptions
from jaxrec.data.prepared import PreparedData


@pytest.mark.parametrize("task", ["next_item", "masked_item"])
def test_events_weigh_as_targets_what_their_action_says(task):
  data = PreparedData.from_columns(user=[0] * 4, item_id=[1, 2, 3, 4], action=[5, 1, 4, 5], split=[0] * 4)
  options = TrainingOptions(
    max_length=4, row_length=4, rows_per_batch=1, task=task, mask_probability=1.0, action_weights=((5, 2.0), (4, 0.5))
  )
  batch = TrainingBatches(data, options)[0]
  by_item = dict(zip(batch.target_item[0].tolist(), batch.target_weight[0].tolist(), strict=True))
  assert by_item == {"next_item": {2: 0, 3: 0.5, 4: 2, 0: 0}, "masked_item": {1: 2, 2: 0, 3: 0.5, 4: 2}}[task]


def test_weights_for_actions_that_the_data_does_not_have_are_refused():
  data = PreparedData.from_columns(user=[0] * 4, item_id=[1, 2, 3, 4])
  with pytest.raises(ValueError, match="the data has no actions; prepare it with an action column"):
    TrainingBatches(data, TrainingOptions(max_length=4, row_length=4, rows_per_batch=1, action_weights=((5, 2.0),)))
