"""Configs by name: sizes come from the data, and every config is accepted and trains."""

import numpy as np
import pytest
from absl import flags

import jaxrec
from jaxrec.cli import train
from jaxrec.cli.config_argument import with_config_file
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.data.prepared import PreparedData
from jaxrec.train.named_configs import NAMES, Sizes, named_config, sizes_text
from jaxrec.train.task import build_task, task_class

# ml_collections 1.1 loads config files by a deprecated function of Python.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("named") / "data"
  jaxrec.synthetic_data(num_users=60, num_items=48, mean_events=20.0).save(path)
  return path


def data_of(lengths, num_items=50):
  items = np.arange(sum(lengths)) % num_items + 1
  return PreparedData.from_columns(user=np.repeat(np.arange(len(lengths)), lengths), item_id=items, num_items=num_items)


def test_sizes_follow_the_data():
  short = Sizes.of(data_of([5] * 40))
  assert (short.max_length, short.row_length, short.batch_size, short.num_negatives) == (8, 16, 16, 0)
  long = Sizes.of(data_of([500] * 10, num_items=3000))
  assert (long.max_length, long.row_length, long.num_negatives) == (200, 512, 256)
  assert Sizes.of(data_of([10] * 19 + [500])).max_length == 40  # The 95% quantile lies between 10 and 500.
  many = Sizes.of(data_of([3] * 100_000))
  assert (many.batch_size, many.num_epochs) == (128, 5)


@pytest.fixture(scope="module")
def with_actions(tmp_path_factory):
  path = tmp_path_factory.mktemp("actions") / "data"
  planted_actions(num_users=12, num_genres=2, items_per_genre=4, mean_events=6.0).save(path)
  return path


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_an_accepted_config_that_builds(folder, with_actions, name):
  config = named_config(name, PreparedData.load(with_actions if NAMES[name].typed_actions else folder))
  task_class(config.task).check_config(config)
  assert build_task(config).config.name == name


def test_the_target_domain_is_a_setting_where_there_are_several(folder):
  several = PreparedData.load(folder)
  assert named_config("sasrec", several).model.target_domain is False
  assert named_config("multi_domain_hstu", several).model.target_domain is True
  assert "target_domain" not in named_config("sasrec", data_of([5, 5])).model


def test_a_name_for_several_domains_is_refused_for_data_of_one():
  with pytest.raises(ValueError, match="config 'autocdsr' needs data of several domains; this has one. Try 'hstu'"):
    named_config("autocdsr", data_of([5, 5]))


def test_a_name_for_typed_actions_is_refused_for_data_without_them():
  with pytest.raises(ValueError, match="config 'ranking' needs data with typed actions; this has none. Prepare it"):
    named_config("ranking", data_of([5, 5]))


def test_the_sizes_of_a_ranking_are_told(with_actions):
  data = PreparedData.load(with_actions)
  config = named_config("ranking", data)
  assert config.data.max_length == 8 and config.data.features == ("domain",)
  assert sizes_text(config, data).endswith("histories of up to 8 events; predicts like, reaction, seconds")


@pytest.mark.parametrize(
  ("lengths", "expected"), [([20] * 30, (0, 24)), ([20] * 11 + [300] * 10, (0, 200)), ([300] * 20, (210, 200))]
)
def test_click_through_reads_short_histories_where_most_users_have_one(lengths, expected):
  """The published minimum of 210 events stays where at least half of the users have as many."""
  config = named_config("dare", data_of(lengths))
  assert (config.data.min_events, config.data.history_length) == expected
  config.data.label = "like"  # Draws no candidates, for which the published minimum is.
  task_class(config.task).check_config(config)


def test_the_users_of_click_through_are_told():
  data = data_of([20] * 30 + [1])
  text = sizes_text(named_config("dare", data), data)
  assert text.endswith("; 30 users with 2 events or more; histories of up to 24 events")


def test_an_unknown_name_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="config 'hst' is neither a file nor a name; names: hstu, hstu_large"):
    named_config("hst", data_of([5, 5]))


def test_a_name_without_data_exits_with_what_is_needed():
  with pytest.raises(SystemExit, match="--config=hstu is a name, not a file: .* Give --data=FOLDER"):
    with_config_file(["train", "--config=hstu"])


def test_names_and_overrides_reach_the_config(folder, monkeypatch):
  values = flags.FlagValues()
  train.define_flags(values)
  arguments = ["train", "--config=sasrec", f"--data={folder}", "--config.train.batch_size=7", "--workdir=w"]
  monkeypatch.setattr("sys.argv", with_config_file(arguments))
  values(with_config_file(arguments))
  config = values.config
  assert (config.name, config.model.name, config.train.batch_size) == ("sasrec", "sasrec", 7)
  assert config.data.prepared == str(folder)


def test_the_list_has_a_line_for_each_name():
  text = train.config_list()
  assert all(f"\n{name} " in text for name in NAMES)
