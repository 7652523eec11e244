"""The page of a finished run: what is in it, that names cannot break it, and what happens where something fails."""

import html.parser
import json
import logging
import re
import shutil
import sys
import xml.etree.ElementTree
from collections import Counter

import numpy as np
import pytest
import tiny_click
import tiny_run

import jaxrec
from jaxrec.analysis import html_page, run_report
from jaxrec.analysis.data_section import data_section
from jaxrec.analysis.run_figures import draw_lines
from jaxrec.analysis.run_report import write_report
from jaxrec.cli import train
from jaxrec.data.prepared import PreparedData
from jaxrec.train.loop import run
from jaxrec.train.writers import read_records, write_json

HOSTILE = '<img src=x onerror="alert(1)">&amp;'
DOMAINS = [f"_b{HOSTILE}", "$\\frac{$", "&lt;"]


class Page(html.parser.HTMLParser):
  """The headings, tags, attributes and text of a page."""

  def __init__(self, text):
    super().__init__()
    self.headings, self.tags, self.attributes, self.texts, self._tag = [], [], [], [], ""
    self.feed(text)
    self.text = " ".join(self.texts)

  def handle_starttag(self, tag, attributes):
    self._tag = tag
    self.tags.append(tag)
    self.attributes += attributes

  def handle_data(self, data):
    if self._tag != "style" and data.strip():
      self.texts.append(data.strip())
      self.headings += [data.strip()] if self._tag == "h2" else []


def read(workdir):
  return Page((workdir / "report.html").read_text(encoding="utf-8"))


def with_hostile_names():
  """Synthetic data in which every name that comes from outside is an attempt to break out of the page."""
  data, seen = jaxrec.synthetic_data(num_users=60, num_items=72, num_domains=3, mean_events=12.0), Counter()

  def numbered(domain):  # The domains share raw ids.
    seen[domain] += 1
    return str(seen[domain])

  return PreparedData.from_columns(
    item_id=data.item_id,
    offsets=data.offsets,
    domain_id=data.domain_id,
    timestamp=data.timestamp,
    num_items=data.num_items,
    domain_names=DOMAINS,
    titles=[f"</small>{HOSTILE}{i}" for i in range(1, data.num_items + 1)],
    raw_items=[numbered(domain) for domain in data.item_domain()[1:].tolist()],
    item_domain=data.item_domain(),
    raw_users=[f"'><script>{u}" for u in range(data.num_users)],
    source="</title><script>",
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The workdir of a run with both phases, and its page."""
  folder = tmp_path_factory.mktemp("report")
  config = tiny_run.get_config()
  config.data.source, config.data.options = "</title><script>", {}
  config.data.prepared = str(with_hostile_names().save(folder / "data").path)
  config.name, config.train.num_epochs, config.train.retrain = "</h1><script>", 2, True
  config.train.log_every_steps, config.eval.protocol = 1, "both"
  run(config, str(folder / "run"))
  write_report(folder / "run")
  return folder / "run"


def test_the_page_has_a_section_for_each_thing_to_look_at(finished):
  page = read(finished)
  assert page.headings == ["Test events", "Training", "Recommendations", "Data", "Config"]
  assert page.tags.count("svg") == page.tags.count("figcaption") == 4
  assert page.text.count("Among all items") == page.text.count("Among the items of the target's domain") == 1


def test_metrics_stand_next_to_those_of_popularity(finished):
  page, test = read(finished), json.loads((finished / "summary.json").read_text())["final"]["test"]
  popularity = run_report._read(str(finished)).popularity
  for domain, prefix in {"all": "", **{name: f"domain/{name}/" for name in DOMAINS}}.items():
    for ranker, values in {"hstu": test, "popularity": popularity}.items():
      cells = [f"{values[f'{prefix}{name}']:.4f}" for name in ("HR@1", "NDCG@1", "HR@10", "NDCG@10", "MRR")]
      assert " ".join([domain, ranker, str(values[f"{prefix}count"]), *cells]) in page.text
  assert f"{test['HR@10']:.1%} chose next one of the 10 items" in page.text


def test_the_recommended_items_are_those_of_the_loaded_run(finished):
  page, recommender = read(finished), jaxrec.load(finished)
  users = run_report._some_users(recommender.data)
  assert len(set(users)) == 5
  for found in recommender.recommend(users=users, k=10, hold_out=True):
    items = " ".join(f"{item.title} {item.domain} {item.score:.3f}" for item in found.items)
    assert f"User {found.user}" in page.text and items in page.text
    events = recommender.data.user_slice(recommender.data.user_index(found.user))
    target = recommender.data.item_titles()[recommender.data.item_id[events][-1]]
    assert f"Chosen next: {target}, rank {found.held_out.rank} of 72 items" in page.text


def test_a_user_whose_events_are_all_after_the_cut_is_no_example():
  data = PreparedData.from_columns(user=[0, 0, 1, 1, 1], item_id=[1, 2, 1, 2, 3], split=[2, 2, 0, 2, 2])
  assert run_report._some_users(data) == [data.user_raw_id(1)]


def test_names_from_outside_are_text_and_nothing_is_loaded(finished):
  page = read(finished)
  assert not {"script", "img", "link", "iframe", "object", "base", "a", "image", "foreignobject"} & set(page.tags)
  references = [value for name, value in page.attributes if name.rpartition(":")[2] in ("src", "href", "srcset")]
  assert all(value.startswith("#") for value in references)
  assert not [name for name, _ in page.attributes if name.startswith("on")]
  text = (finished / "report.html").read_text(encoding="utf-8")
  assert re.findall(r"url\((?!#)|@import", text) == []
  assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
  assert all(any(name in one for one in page.texts) for name in (*DOMAINS, "</title><script>", "</h1><script>"))


def test_settings_that_differ_from_the_defaults_come_first(finished):
  text = read(finished).text.partition("Settings that differ from the defaults")[2]
  changed, rest = text.split("Settings with their defaults")
  assert "train.batch_size 32 128" in changed and "model.width 8 not set" in changed
  assert "optimizer.b2 0.98" in rest and "train.batch_size" not in rest and "optimizer.b2" not in changed


def test_the_same_run_gives_the_same_page(finished):
  before = (finished / "report.html").read_bytes()
  write_report(finished)
  assert (finished / "report.html").read_bytes() == before
  assert not list(finished.glob("*.tmp"))


def test_without_matplotlib_the_page_says_so_and_shows_tables(finished, tmp_path, monkeypatch):
  workdir = shutil.copytree(finished, tmp_path / "run")
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  write_report(workdir)
  page = read(workdir)
  assert "svg" not in page.tags and "pip install 'jaxrec[plots]'" in page.text
  assert page.attributes.count(("open", None)) == 2  # The numbers of training and data are unfolded.
  losses = [r["loss"] for r in read_records(str(workdir / "metrics.jsonl")) if r["kind"] == "train"]
  assert f"{losses[-1]:.4f}" in page.text


def test_what_would_take_long_is_left_out_and_named(finished, tmp_path, monkeypatch):
  workdir = shutil.copytree(finished, tmp_path / "run")
  monkeypatch.setattr(run_report, "_MOST_SCORES", 1)
  monkeypatch.setattr(run_report, "_MOST_ITEMS", 1)
  monkeypatch.setattr(run_report, "load_run", None)
  write_report(workdir)
  page = read(workdir)
  assert "60 test users, 72 items" in page.text and "the metrics of popularity and recommendations." in page.text
  assert page.headings == ["Test events", "Training", "Data", "Config"]


def test_on_several_hosts_neither_data_nor_model_is_read(finished, tmp_path, monkeypatch):
  workdir = shutil.copytree(finished, tmp_path / "run")
  monkeypatch.setattr(run_report.jax, "process_count", lambda: 2)
  monkeypatch.setattr(run_report, "load_data", None)
  write_report(workdir)
  assert read(workdir).headings == ["Test events", "Training", "Config"]
  assert "Trained on several hosts" in read(workdir).text


def test_a_page_that_cannot_be_written_is_one_line_of_warning(finished, tmp_path, monkeypatch, caplog):
  workdir = shutil.copytree(finished, tmp_path / "run")
  before = (workdir / "report.html").read_bytes()
  monkeypatch.setattr(html_page, "table", lambda *_, **__: 1 / 0)
  with caplog.at_level(logging.WARNING):
    train.write_page(str(workdir))
  assert caplog.messages == ["no report.html: ZeroDivisionError: division by zero"]
  assert (workdir / "report.html").read_bytes() == before


def test_a_run_that_is_not_finished_has_no_page(finished, tmp_path):
  shutil.copy(finished / "config.json", tmp_path)
  with pytest.raises(FileNotFoundError, match="summary.json is not there; the run is not finished"):
    write_report(tmp_path)


def test_a_click_through_run_has_curves_metrics_data_and_config(tmp_path):
  test = {"AUC": 0.625, "GAUC": 0.5, "GAUC_category": 0.5, "log_loss": 0.75, "count": 8}
  result = {"best_epoch": 1, "validation": test, "test_of_selected": test}
  records = [{"kind": "train", "loss": 0.7}, {"kind": "validation", **test}]
  write_json(str(tmp_path / "config.json"), tiny_click.get_config().to_dict())
  write_json(str(tmp_path / "summary.json"), {"select": result, "seconds": 61.0})
  lines = [json.dumps({"phase": "select", "step": 4, "epoch": 1, **one}) + "\n" for one in records]
  (tmp_path / "metrics.jsonl").write_text("".join(lines))
  write_report(tmp_path)
  page = read(tmp_path)
  assert page.headings == ["Test events", "Training", "Data", "Config"]
  assert "AUC GAUC GAUC_category log_loss count 0.6250 0.5000 0.5000 0.7500 8" in page.text
  assert "time (h:min:s) 0:01:01" in page.text and "nothing to recommend" in page.text
  assert page.tags.count("svg") == 4


def test_labels_of_any_script_and_form_are_drawn_as_they_are():
  labels = ["日本", "_hidden", "$\\frac{$", "a & <b>", "x" * 30]
  drawing = draw_lines("labels", [(label, [1, 2], [1, 2]) for label in labels], "epoch", "loss")
  shown = [text.strip("\u200b") for text in xml.etree.ElementTree.fromstring(drawing).itertext()]
  assert set(labels[:4]) | {"x" * 23 + "…"} <= set(shown)


def test_curves_are_drawn_against_the_epoch():
  steps = [(2, 1), (4, 1), (6, 2), (8, 2)]
  records = [{"phase": "select", "kind": "train", "step": s, "epoch": e, "loss": 1 / s} for s, e in steps]
  records.append({"phase": "select", "kind": "validation", "step": 8, "epoch": 2, "MRR": 0.5})
  assert run_report._points(records, "select", "train", "loss") == ([0.5, 1, 1.5, 2], [1 / 2, 1 / 4, 1 / 6, 1 / 8])
  assert run_report._points(records, "select", "validation", "MRR") == ([2], [0.5])
  assert run_report._points(records, "final", "train", "loss") == ([], [])


def test_the_data_section_counts_users_items_and_events():
  data = PreparedData.from_columns(
    offsets=[0, 5, 5, 8], item_id=[1, 1, 1, 1, 2, 2, 3, 3], domain_id=[1, 1, 1, 1, 2, 2, 2, 2],
    timestamp=np.arange(8) * 86_400, titles=["a", "b", "c"], domain_names=["x", "y"],
  )  # fmt: skip
  page = Page(data_section(data))
  assert "domain users items events x 1 1 4 y 2 2 4" in page.text
  assert "first event 1970-01-01 last event 1970-01-08" in page.text
  assert "least 25% median 75% 95% most 3 4 4 4 5 5" in page.text
  assert "Half of the events are of 1 of the 3 items" in page.text
  assert "50% 2 75.0%" in page.text
