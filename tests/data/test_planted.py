"""Planted transfer: one domain predicts the target domain, noise predicts nothing, and the truth says so."""

import numpy as np
import pytest

from jaxrec.data.generators.planted_transfer import INFORMATIVE, TARGET, planted_transfer, planted_truth
from jaxrec.data.generators.synthetic import synthetic_data
from jaxrec.data.load import load_data
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import PreparedData
from jaxrec.train.config import default_config

FIRST_NOISE = 3


@pytest.fixture(scope="module")
def data():
  return planted_transfer(num_users=600, items_per_domain=64, num_noise_domains=2)


@pytest.fixture(scope="module")
def truth(data):
  return planted_truth(data)


def genres(data):
  """The genre of every event as an index; in noise domains, which have none, one of eight groups of titles."""
  titles = data.item_titles()
  names = [title.partition("(")[2] or str(int(title.split()[-1]) % 8) for title in titles[1:]]
  return np.concatenate([[-1], np.unique(names, return_inverse=True)[1]])[data.item_id]


def latest_before(data, domain):
  """The index of the user's latest event in a domain before each event; -1 if there is none."""
  index = np.where(data.domain_id == domain, np.arange(data.num_events), -1)
  latest = np.concatenate([[-1], np.maximum.accumulate(index)[:-1]])
  return np.where(latest >= np.repeat(data.offsets[:-1], np.diff(data.offsets)), latest, -1)


def mutual_information(one, other):
  """In nats, with the Miller-Madow correction, so that it is about 0 for independent variables."""
  counts = np.zeros((one.max() + 1, other.max() + 1))
  np.add.at(counts, (one, other), 1)
  p = counts / counts.sum()
  independent = p.sum(axis=1, keepdims=True) * p.sum(axis=0)
  degrees = (np.count_nonzero(p.sum(axis=1)) - 1) * (np.count_nonzero(p.sum(axis=0)) - 1)
  return np.sum(p[p > 0] * np.log(p[p > 0] / independent[p > 0])) - degrees / (2 * len(one))


def information_from(data, domain, about):
  """Mutual information between the genres of events in `about` and of the latest earlier event in `domain`."""
  latest = latest_before(data, domain)
  chosen = (data.domain_id == about) & (latest >= 0)
  genre = genres(data)
  return mutual_information(genre[chosen], genre[latest[chosen]])


def test_the_informative_domain_predicts_the_target_and_noise_does_not(data):
  assert information_from(data, INFORMATIVE, about=TARGET) > 0.3
  assert abs(information_from(data, FIRST_NOISE, about=TARGET)) < 0.02
  assert abs(information_from(data, FIRST_NOISE + 1, about=TARGET)) < 0.02


def test_without_transfer_the_informative_domain_predicts_nothing():
  none = planted_transfer(num_users=600, items_per_domain=64, transfer=0.0)
  assert abs(information_from(none, INFORMATIVE, about=TARGET)) < 0.02
  assert not planted_truth(none).is_planted.any()


@pytest.mark.parametrize("domain", [TARGET, INFORMATIVE, FIRST_NOISE, FIRST_NOISE + 1])
def test_nothing_predicts_noise(data, domain):
  assert abs(information_from(data, domain, about=FIRST_NOISE)) < 0.02


def test_noise_follows_popularity_and_no_user_has_a_taste_in_it(data):
  noise = data.domain_id == FIRST_NOISE
  number = np.array([0, *(int(title.split()[1]) for title in data.item_titles()[1:])])[data.item_id[noise]]
  weights = 1 / np.arange(1, 65) ** 0.8
  expected = noise.sum() * weights / weights.sum()
  assert np.sum((np.bincount(number, minlength=65)[1:] - expected) ** 2 / expected) < 63 + 4 * np.sqrt(2 * 63)
  user = np.repeat(np.arange(data.num_users), np.diff(data.offsets))[noise]
  assert abs(mutual_information(user % 50, number % 8)) < 0.02


def test_the_latest_unfollowed_informative_event_predicts_the_target_with_probability_transfer(data):
  """A predictor that keeps a stack of the informative titles that no target event has followed yet."""
  title_of = data.item_titles()
  item_of = {title: item for item, title in enumerate(title_of)}
  target_item = np.array([item_of.get(title.replace("informative", "target", 1), 0) for title in title_of])
  hits = []
  for user in range(data.num_users):
    unfollowed = []
    for item, domain in zip(data.item_id[data.user_slice(user)], data.domain_id[data.user_slice(user)], strict=True):
      if domain == INFORMATIVE:
        unfollowed.append(target_item[item])
      elif domain == TARGET and unfollowed:
        hits.append(item == unfollowed[-1])
        if hits[-1]:
          unfollowed.pop()
  assert 0.75 < np.mean(hits) < 0.83


def test_the_truth_names_an_earlier_event_of_the_same_user_with_the_same_genre(data, truth):
  user = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
  event = np.flatnonzero(truth.source_event >= 0)
  source = truth.source_event[event]
  assert (source < event).all()
  np.testing.assert_array_equal(user[source], user[event])
  np.testing.assert_array_equal(genres(data)[source], genres(data)[event])


def test_a_planted_event_has_the_title_of_its_source(data, truth):
  planted = np.flatnonzero(truth.is_planted)
  titles = np.array([title.partition(" ")[2] for title in data.item_titles()])[data.item_id]
  assert set(data.domain_id[planted]) == {TARGET}
  assert set(data.domain_id[truth.source_event[planted]]) == {INFORMATIVE}
  np.testing.assert_array_equal(titles[planted], titles[truth.source_event[planted]])
  assert len(set(truth.source_event[planted])) == len(planted)  # Each is followed once.
  np.testing.assert_array_equal(truth.source_event[data.domain_id >= FIRST_NOISE], -1)


def test_the_truth_says_which_domains_help_and_which_hurt(data, truth):
  independent = (data.domain_id == TARGET) & ~truth.is_planted
  for events, expected in (
    (truth.is_planted, [0, 1, -1, -1]),
    (independent, [1, 0, -1, -1]),
    (data.domain_id == INFORMATIVE, [0, 1, -1, -1]),
    (data.domain_id >= FIRST_NOISE, [0, 0, 0, 0]),
  ):
    assert events.any()
    assert np.unique(truth.usefulness[events], axis=0).tolist() == [expected]


def test_held_out_events_are_in_the_target_domain_and_mostly_planted(data, truth):
  assert set(data.domain_id[data.split > 0]) == {TARGET}
  assert np.bincount(data.split).tolist()[1:] == [data.num_users, data.num_users]
  assert 0.7 < truth.is_planted[data.split == 2].mean() < 0.83


def test_noise_has_its_share_and_can_be_left_out(data):
  inner = data.split == 0
  assert 0.58 < (data.domain_id[inner] >= FIRST_NOISE).mean() < 0.62
  assert planted_transfer(num_users=20, num_noise_domains=0).domain_names == ("target", "informative")


def test_with_a_gap_both_held_out_events_follow_a_recent_one():
  """Without it validation follows the latest informative event, and the test an older one or none."""

  def age_of_source(gap, split):
    data = planted_transfer(num_users=600, items_per_domain=64, gap=gap)
    event = np.concatenate([np.flatnonzero(data.split[data.user_slice(u)] == split)[:1] + data.offsets[u]
                            for u in range(data.num_users)])  # fmt: skip
    assert set(data.domain_id[event]) == {TARGET} and len(event) == 600
    truth = planted_truth(data)
    planted = event[truth.is_planted[event]]
    informative = np.cumsum(data.domain_id == INFORMATIVE)
    return np.mean(informative[planted] - informative[truth.source_event[planted]])  # Informative events since then.

  assert age_of_source(0, 2) > age_of_source(0, 1) + 1
  assert age_of_source(8, 2) < age_of_source(8, 1) + 0.4


def test_a_gap_is_held_out_with_the_validation_event():
  data = planted_transfer(num_users=50, items_per_domain=64, gap=3)
  for user in range(50):
    assert data.split[data.user_slice(user)].tolist()[-6:] == [0, 1, 1, 1, 1, 2]
  plain, none = planted_transfer(num_users=50), planted_transfer(num_users=50, gap=0)
  np.testing.assert_array_equal(plain.item_id, none.item_id)
  assert plain.meta["split"] == {"kind": "leave_one_out"}


def test_the_truth_of_saved_data_is_the_same(data, truth, tmp_path):
  saved = planted_truth(data.save(tmp_path / "planted"))
  for name in ("source_event", "is_planted", "usefulness"):
    np.testing.assert_array_equal(getattr(saved, name), getattr(truth, name))


def test_the_truth_of_other_data_is_refused(data):
  with pytest.raises(ValueError, match="source of the data is 'synthetic'"):
    planted_truth(synthetic_data(num_users=3, num_items=48))
  changed = PreparedData.from_columns(
    item_id=np.roll(data.item_id, 1), offsets=data.offsets, num_items=data.num_items, source="planted",
    options=data.meta["options"],
  )  # fmt: skip
  with pytest.raises(ValueError, match="makes other events from these options"):
    planted_truth(changed)


def test_a_config_and_prepare_know_the_source(tmp_path):
  config = default_config()
  config.data.source, config.data.options = "planted", {"num_users": 9, "seed": 3}
  loaded, prepared = load_data(config.data), prepare("planted", out=tmp_path / "p", num_users=9, seed=3)
  np.testing.assert_array_equal(loaded.item_id, prepared.item_id)
  np.testing.assert_array_equal(loaded.item_domain()[loaded.item_id], loaded.domain_id)
  assert loaded.item_id.tolist() != planted_transfer(num_users=9, seed=4).item_id.tolist()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"items_per_domain": 100}, "items_per_domain=100 must be a multiple of num_genres=8"),
    ({"num_noise_domains": -1}, "num_noise_domains=-1 must be at least 0"),
    ({"noise_share": 1.5}, "noise_share=1.5 must be between 0 and 1"),
    ({"mean_events": 2.0}, "mean_events=2.0 must be at least 6"),
    ({"gap": -1}, "gap=-1 must be in 0..17"),
    ({"gap": 18}, "gap=18 must be in 0..17"),
    ({"concentration": 0.0}, "concentration=0.0 must be above 0"),
  ],
)
def test_fields_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    planted_transfer(**options)
