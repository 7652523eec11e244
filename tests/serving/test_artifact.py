"""Exported models give the scores of the models that they were made of, with and without jaxrec."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from known_scores import DAY, FirstOfTargetDomain, HoursSinceLastEvent, NextItem, known_data, recommender
from random_models import MAX_LENGTH, MODELS, random_model
from readme_loader import loader

from jaxrec.serving import artifact_files, load_artifact
from jaxrec.serving.artifact import write_artifact

pytest.importorskip("flatbuffers", reason="jax.export writes programs with flatbuffers: pip install 'jaxrec[test]'")
pytestmark = pytest.mark.unchecked_shapes  # A symbolic size is no int.

EVENTS = [(item % 6 + 1, 1_700_000_000 + 600 * item * item) for item in range(MAX_LENGTH + 9)]
RAW = [(known_data().item_raw_id(item), time) for item, time in EVENTS]
AT = EVENTS[-1][1] + 1000


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
  """Returns a function from a recommender to its artifact, written once."""
  return functools.cache(lambda made: write_artifact(made, tmp_path_factory.mktemp("export") / "artifact"))


def known_model(model=NextItem, data=None, **settings):
  made = recommender(data, model)
  made.config.data.update(settings)
  return made


def with_ids(data, events):
  items = [data.item_index(item) for item, _ in events]
  return [(item, int(data.item_domain()[item]), time) for item, (_, time) in zip(items, events, strict=True)]


@pytest.mark.parametrize("name", MODELS)
def test_an_artifact_scores_as_its_model(name, folder_of):
  """Among the histories are an empty one, and one that is longer than the model reads."""
  made = random_model(name)
  loaded = load_artifact(folder_of(made))
  given = {"histories": [RAW[:3], [], RAW, RAW[2:3]], "domain": "films", "at": AT}
  expected = made.score(["b1", "f4"], **given)
  np.testing.assert_allclose(loaded.score(["b1", "f4"], **given), expected, atol=1e-5)
  assert np.isnan(expected[1]).all() and np.abs(np.diff(expected[[0, 2, 3]], axis=0)).min() > 1e-3
  alone = loader(folder_of(made))(with_ids(made.data, RAW), 2, AT)
  np.testing.assert_allclose(alone[[1, 4]], expected[2], atol=1e-5)


def test_one_program_serves_batches_of_all_sizes(folder_of):
  made = known_model()
  loaded = load_artifact(folder_of(made))
  for rows in (1, 2, 3, 7):
    histories = [RAW[i : 2 * i + 1] for i in range(rows)]
    assert [x.items for x in loaded.recommend(histories=histories)] == [
      x.items for x in made.recommend(histories=histories)
    ]


def test_an_empty_history_gets_the_most_popular_items(folder_of):
  made = known_model()
  found = load_artifact(folder_of(made)).recommend(histories=[[], [("x9", 5)]], k=2)
  assert [(one.ranked_by, [item.item for item in one.items], one.unknown) for one in found] == [
    ("popularity", ["f4", "f5"], 0), ("popularity", ["f4", "f5"], 1)
  ]  # fmt: skip
  assert loader(folder_of(made))([]).tolist() == [0, 1, 1, 1, 2, 2, 1]


@pytest.mark.parametrize("request_time, hours", [("target", 24), ("last_event", 0)])
def test_an_artifact_knows_the_time_of_the_request_if_its_model_does(request_time, hours, tmp_path):
  made = known_model(HoursSinceLastEvent, request_time=request_time)
  folder = write_artifact(made, tmp_path / "artifact")
  given = {"histories": [[("b1", 5 * DAY)]], "at": 6 * DAY}
  assert load_artifact(folder).score(["f4"], **given).item() == made.score(["f4"], **given).item() == hours
  assert loader(folder)([(1, 1, 5 * DAY)], at=6 * DAY)[4] == hours
  assert loader(folder)([(1, 1, 5 * DAY)])[4] == 0


def test_data_without_times_need_none(tmp_path):
  made = known_model(data=known_data(timestamp=None))
  folder = write_artifact(made, tmp_path / "artifact")
  (found,) = load_artifact(folder).recommend(histories=[["b1", "f4"]], k=1)
  assert found.items[0].item == "f5" and loader(folder)([(1, 1, 0), (4, 2, 0)])[1:].argmax() == 4


def test_a_model_with_a_target_domain_needs_one(folder_of):
  loaded = load_artifact(folder_of(random_model("MultiDomainHSTU")))
  with pytest.raises(ValueError, match="the model needs a target domain; give domain=, one of books, films"):
    loaded.recommend(histories=[RAW])


def test_the_target_domain_of_the_loader_is_by_default_that_of_the_last_event(tmp_path):
  score = loader(write_artifact(known_model(FirstOfTargetDomain), tmp_path / "artifact"))
  assert [int(score([(1, 1, 0)], domain).argmax()) for domain in (None, 1, 2)] == [1, 1, 4]


def test_the_loader_of_the_readme_runs_without_jaxrec(folder_of, tmp_path):
  folder = folder_of(known_model())
  text = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
  call = f"\nprint(load({str(folder)!r})([(4, 2, 60)]).tolist())"
  (tmp_path / "alone.py").write_text("import sys\nsys.modules['jaxrec'] = None\n" + text + call)
  found = subprocess.run([sys.executable, "alone.py"], cwd=tmp_path, env=os.environ, capture_output=True, text=True)
  assert found.returncode == 0, found.stderr
  assert json.loads(found.stdout)[1:] == [-2, -3, -4, -5, 0, -1]


def test_users_are_unknown_to_an_artifact(folder_of):
  with pytest.raises(ValueError, match=r"users=\['ann'\]: an artifact holds no users; give histories="):
    load_artifact(folder_of(known_model())).recommend(users=["ann"])


def test_a_changed_file_is_refused(tmp_path):
  folder = write_artifact(known_model(), tmp_path / "artifact")
  (folder / "popularity.npy").write_bytes(b"")
  with pytest.raises(ValueError, match=r"popularity\.npy missing or changed after the export; export again"):
    load_artifact(folder)
  (folder / "signature.json").write_text('{"format": 7}')
  with pytest.raises(ValueError, match="format 7 is unknown, this version reads 1"):
    load_artifact(folder)
  with pytest.raises(ValueError, match="has no signature.json; give a folder that `jaxrec export` wrote"):
    load_artifact(tmp_path)


def test_an_artifact_is_written_whole_or_not_at_all_and_replaces_only_artifacts(tmp_path, monkeypatch):
  folder, made = tmp_path / "artifact", known_model()
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(artifact_files, "_checksums", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
    write_artifact(made, folder)
  assert list(tmp_path.iterdir()) == []
  write_artifact(made, folder)
  with pytest.raises(ValueError, match="artifact exists; choose another folder, or replace it with --overwrite"):
    write_artifact(made, folder)
  write_artifact(made, folder, overwrite=True)
  (tmp_path / "notes").mkdir()
  with pytest.raises(ValueError, match="notes exists and is no artifact; it is not replaced"):
    write_artifact(made, tmp_path / "notes", overwrite=True)


def test_without_flatbuffers_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(artifact_files.importlib.util, "find_spec", lambda _: None)
  for fail in (lambda: write_artifact(known_model(), tmp_path / "a"), lambda: load_artifact(tmp_path)):
    with pytest.raises(ImportError, match=r"flatbuffers is not installed; .*pip install 'jaxrec\[export\]'"):
      fail()
