"""From a table of events to recommendations: `from_events`, `fit`, `load`."""

import polars as pl
import pytest

import jaxrec
from jaxrec.cli import export
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.serving import load_artifact

SETTINGS = {"train.batch_size": 8, "model.width": 8, "model.head_width": 4, "model.value_width": 4}


@pytest.fixture(scope="module")
def events():
  """Everyone buys tea, jam, bread, milk, eggs in this order, starting anywhere."""
  goods = ["tea", "jam", "bread", "milk", "eggs"]
  rows = [(f"u{u}", goods[(u + i) % 5], 100 * i) for u in range(40) for i in range(5 + u % 3)]
  return pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")


@pytest.fixture(scope="module")
def fitted(events, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("fit")
  return workdir, jaxrec.fit(jaxrec.from_events(events), "hstu", epochs=30, workdir=workdir, **SETTINGS)


def test_events_in_memory_are_prepared_as_those_of_a_file(events, tmp_path):
  events.write_csv(tmp_path / "log.csv")
  of_file = jaxrec.prepare("table", tmp_path / "log.csv")
  in_memory = jaxrec.from_events(events.to_dict(as_series=False))
  assert in_memory.items.equals(of_file.items) and in_memory.users.equals(of_file.users)
  assert in_memory.item_id.tolist() == of_file.item_id.tolist()
  with pytest.raises(ValueError, match=r"events: no column \['sku'\]; it has \['user', 'item', 'timestamp'\]"):
    jaxrec.from_events(events, item="sku")


def test_a_fitted_model_recommends_to_strangers(fitted):
  _, recommender = fitted
  histories = [[("jam", 0), ("bread", 100)], [("milk", 0), ("eggs", 100)]]
  found = recommender.recommend(histories=histories, k=1)
  assert [one.items[0].item for one in found] == ["milk", "tea"]


def test_a_loaded_run_recommends_the_same(fitted):
  workdir, recommender = fitted
  users = ["u3", "u0"]
  assert [x.items for x in jaxrec.load(workdir).recommend(users=users)] == [
    x.items for x in recommender.recommend(users=users)
  ]


@pytest.mark.unchecked_shapes  # A symbolic size is no int.
def test_the_command_export_writes_what_load_artifact_reads(fitted, call, tmp_path):
  pytest.importorskip("flatbuffers", reason="jax.export writes programs with flatbuffers: pip install 'jaxrec[test]'")
  workdir, recommender = fitted
  arguments = [f"--workdir={workdir}", f"--out={tmp_path / 'artifact'}"]
  assert call(export, *arguments).split() == [str(tmp_path / "artifact")]
  histories = [[("jam", 0), ("bread", 100)], [("milk", 0)], []]
  found = load_artifact(tmp_path / "artifact").recommend(histories=histories, k=2)
  for one, expected in zip(found, recommender.recommend(histories=histories, k=2), strict=True):
    assert [item.item for item in one.items] == [item.item for item in expected.items]
  with pytest.raises(SystemExit, match="artifact exists; choose another folder, or replace it with --overwrite"):
    call(export, *arguments)


def test_a_second_fit_in_the_workdir_trains_no_more(fitted, events):
  workdir, _ = fitted
  before = (workdir / "metrics.jsonl").read_bytes()
  jaxrec.fit(jaxrec.from_events(events), "hstu", epochs=30, workdir=workdir, **SETTINGS)
  assert (workdir / "metrics.jsonl").read_bytes() == before


def test_other_data_in_the_workdir_of_a_fit_are_refused(fitted, events):
  workdir, _ = fitted
  with pytest.raises(ValueError, match="data holds other data: users: 40 when trained, 39 now"):
    jaxrec.fit(jaxrec.from_events(events.filter(pl.col("user") != "u3")), "hstu", workdir=workdir)


def test_an_unknown_setting_is_refused(events):
  with pytest.raises(ValueError, match="train.batchsize is unknown"):
    jaxrec.fit(jaxrec.from_events(events), **{"train.batchsize": 8})


@pytest.mark.parametrize(("name", "task"), [("ranking", "ranking"), ("dare", "click_through")])
def test_a_config_of_another_task_is_refused_before_training(events, tmp_path, name, task):
  data = planted_actions(num_users=3, mean_events=6.0) if name == "ranking" else jaxrec.from_events(events)
  with pytest.raises(ValueError, match=f"config '{name}' is of task '{task}', and a recommender needs"):
    jaxrec.fit(data, name, workdir=tmp_path / "run")
  assert not (tmp_path / "run").exists()
