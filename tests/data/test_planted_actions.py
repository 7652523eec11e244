"""Generated actions follow the probabilities that `planted_action_truth` returns."""

import numpy as np
import pytest

from jaxrec.data.generators.planted_actions import planted_action_truth, planted_actions
from jaxrec.data.preparation.prepare import prepare

SMALL = {"num_users": 300, "num_genres": 3, "items_per_genre": 5, "mean_events": 20.0}


@pytest.fixture(scope="module")
def data():
  return planted_actions(**SMALL)


def test_actions_are_as_frequent_as_their_probabilities_say(data):
  truth, count = planted_action_truth(data), data.num_events
  for part in (truth.like > 0.6, truth.like < 0.4):
    assert data.actions["like"][part].mean() == pytest.approx(truth.like[part].mean(), abs=4 / np.sqrt(part.sum()) / 2)
  for reaction in range(3):
    share = (data.actions["reaction"] == reaction).mean()
    assert share == pytest.approx(truth.reaction[:, reaction].mean(), abs=2 / np.sqrt(count))
  noise = data.actions["seconds"] - truth.seconds
  assert noise.mean() == pytest.approx(0, abs=32 / np.sqrt(count)) and noise.std() == pytest.approx(8, rel=0.05)


def test_a_mood_is_a_fading_sum_of_earlier_likes(data):
  start = data.offsets[1]
  genre, like = data.domain_id[start:], data.actions["like"][start:]
  settings, event = data.meta["options"], 9
  earlier = [
    (2.0 * like[i] - 1) * np.exp((1 - (event - i)) / settings["memory"])
    for i in range(event)
    if genre[i] == genre[event]
  ]
  mood = np.tanh(sum(earlier) / 2)
  same_item = planted_action_truth(data).seconds[start + event] - 10 * settings["strength"] * mood
  others = planted_action_truth(planted_actions(**SMALL, strength=0.0)).seconds[start + event]
  assert same_item == pytest.approx(others, abs=1e-6)


def test_the_truth_survives_a_folder(tmp_path, data):
  again = prepare("planted_actions", out=tmp_path / "data", **SMALL)
  np.testing.assert_array_equal(planted_action_truth(again).like, planted_action_truth(data).like)
  assert (np.asarray(again.item_domain())[again.item_id] == again.domain_id).all()


@pytest.mark.parametrize("option", [{"noise": 0.0}, {"memory": -1.0}, {"num_users": 0}, {"mean_events": 2.0}])
def test_options_out_of_range_are_errors(option):
  with pytest.raises(ValueError, match=next(iter(option))):
    planted_actions(**{**SMALL, **option})
