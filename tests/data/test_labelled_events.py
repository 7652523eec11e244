"""Events with a label as candidates: splits, histories and labels by hand; a click model trains on them."""

import jax
import numpy as np
import pytest

from jaxrec.data.batches.labelled_events import LabelledEvents
from jaxrec.data.prepared import TEST, TRAIN, VALIDATION, PreparedData
from jaxrec.parallel import make_mesh
from jaxrec.train import click_task
from jaxrec.train.click_task import ClickTask

DATA = PreparedData.from_columns(
  user=[0] * 4 + [1] * 3, item_id=[1, 2, 3, 4, 4, 3, 2], split=[0, 0, 1, 2, 0, 1, 2],
  actions={"like": [1, 0, 1, 0, 0, 1, 1], "stars": [5, 1, 4, 2, 2, 4, 5]},
  action_kinds={"like": "binary", "stars": "regression"},
)  # fmt: skip


def test_each_event_with_a_history_is_a_candidate_of_its_split():
  examples = LabelledEvents(DATA, "like", history_length=2)
  assert [examples.num_examples(split) for split in (TRAIN, VALIDATION, TEST)] == [1, 2, 2]
  assert examples.counts == {"train": 1, "validation": 2, "test": 2, "without_history": 2}
  batch = examples.batch(TEST, np.array([0, 1]))
  assert batch.history_item.tolist() == [[2, 3], [4, 3]] and batch.history_age.tolist() == [[2, 1], [2, 1]]
  assert batch.item.tolist() == [4, 2] and batch.label.tolist() == [0, 1] and batch.user_id.tolist() == [0, 1]
  assert examples.batch(TRAIN, np.array([0])).history_item.tolist() == [[0, 1]]
  assert examples.training_clicks().tolist() == [0, 1, 1, 0, 1]


@pytest.mark.parametrize("label", ["stars", "love"])
def test_a_label_that_is_no_binary_action_is_an_error(label):
  with pytest.raises(ValueError, match=rf"label='{label}' must be a binary action of the data, which has \['like'\]"):
    LabelledEvents(DATA, label, 2)


def test_the_click_task_trains_on_and_evaluates_labels():
  config = click_task.default_config()
  config.name, config.data.source = "labels", "planted_actions"
  config.data.options = {"num_users": 20, "num_genres": 2, "items_per_genre": 4, "mean_events": 8.0}
  config.data.update({"label": "like", "history_length": 8})
  config.model = {"name": "twin_category_only", "width": 4, "top_k": 2}
  config.train.batch_size = 32
  mesh = make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])
  task = ClickTask.from_config(config)
  data, batch = task.data, task.plan("select", 1, mesh).batches[0]
  assert set(batch.label.tolist()) == {0, 1} and batch.history_item.shape == (32, 8)
  found = task.evaluate(task.init_state(mesh, 1), TEST, mesh)
  assert found["count"] == 20 and found["log_loss"] == pytest.approx(np.log(2), abs=0.1)
  assert task.examples.num_examples(TRAIN) == np.count_nonzero(data.split == TRAIN) - 20


def test_settings_of_drawn_candidates_are_refused_with_a_label():
  config = click_task.default_config()
  config.name, config.data.source, config.data.label, config.data.negatives = "labels", "planted_actions", "like", 5
  with pytest.raises(ValueError, match="config.data.negatives is for candidates that are drawn; config.data.label='li"):
    click_task.check_config(config)
