"""The page of a finished run, `report.html`: results, curves, recommendations, data and config, for a browser.

    jaxrec.write_report("runs/shop")

The training program writes it at the end of a run. It needs no network and no other file.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from jaxrec.analysis import html_page as page
from jaxrec.analysis.data_section import MOST_EVENTS, data_section, user_lengths
from jaxrec.analysis.run_figures import MOST_LINES, draw_lines, is_available
from jaxrec.data.load import load_data
from jaxrec.data.prepared import TEST, PreparedData
from jaxrec.evaluation.protocols import SAMPLED, WITHIN_DOMAIN
from jaxrec.serving.recommendation import MODEL, Recommendation
from jaxrec.serving.recommender import Recommender
from jaxrec.train.config import SEQUENTIAL
from jaxrec.train.runs import load_config, load_run
from jaxrec.train.sequence_task import evaluate_baselines
from jaxrec.train.task import FINAL, SELECT, task_class
from jaxrec.train.writers import read_json, read_records

POPULARITY = "popularity"
NUM_USERS, NUM_EVENTS, NUM_ITEMS = 5, 10, 10  # Of the examples.
_MOST_ITEMS, _MOST_SCORES = 1_000_000, 2_000_000_000  # Users times items. More would take more than seconds.
_MOST_POINTS = 400  # Of a curve.
_NO_FIGURES = "matplotlib is not installed (pip install 'jaxrec[plots]'): this page has tables instead of figures."
_SEVERAL_HOSTS = (
  "Trained on several hosts, where the page is written without the data and the model."
  " jaxrec.write_report(workdir) on one machine adds both."
)


@dataclasses.dataclass(frozen=True)
class _Run:
  """What the page is made from. What is None or empty was left out, and `notes` say why."""

  config: ConfigDict
  summary: Mapping[str, Any]
  records: Sequence[Mapping[str, Any]]
  notes: Sequence[str]
  data: PreparedData | None = None
  popularity: Mapping[str, float | int] = dataclasses.field(default_factory=dict)
  examples: Sequence[Recommendation] = ()

  @property
  def test(self) -> Mapping[str, float | int]:
    """Metrics of the test events."""
    return self.summary[FINAL]["test"] if FINAL in self.summary else self.summary[SELECT]["test_of_selected"]


def write_report(workdir: str | os.PathLike) -> str:
  """Writes <workdir>/report.html, complete or not at all, and returns its path.

  Popularity is evaluated and a few users get recommendations, which takes seconds; of large data that would take longer
  they are left out, and the page says so. The same run gives the same page.

  Args:
    workdir: of a finished run of any task.

  Raises:
    FileNotFoundError: the folder is not the workdir of a finished run.
  """
  run = _read(os.fspath(workdir))
  parts = [_lead(run), *map(page.paragraph, run.notes), _results(run), _training(run), _examples(run)]
  data = "" if run.data is None else data_section(run.data)
  path = os.path.join(workdir, "report.html")
  page.write_page(path, run.config.name or run.config.model.name, *parts, data, _settings(run.config))
  return path


def _read(workdir: str) -> _Run:
  config, path = load_config(workdir), os.path.join(workdir, "summary.json")
  if not os.path.exists(path):
    raise FileNotFoundError(f"{path} is not there; the run is not finished: train with the same command again")
  records = read_records(os.path.join(workdir, "metrics.jsonl"))
  run = _Run(config, read_json(path), records, [] if is_available() else [_NO_FIGURES])
  if jax.process_count() > 1:
    return dataclasses.replace(run, notes=[*run.notes, _SEVERAL_HOSTS])
  run = dataclasses.replace(run, data=load_data(config.data))
  return _with_model(run, workdir) if config.task == SEQUENTIAL else run


def _with_model(run: _Run, workdir: str) -> _Run:
  """Returns the run with popularity and examples, where they take seconds only."""
  config, data, users = run.config, run.data, run.test["count"]
  left_out, found = [], {}
  if users * data.num_items <= _MOST_SCORES:
    found["popularity"] = evaluate_baselines(config, data, TEST, [POPULARITY])[POPULARITY]
  else:
    left_out.append("the metrics of popularity")
  if data.num_items <= _MOST_ITEMS and data.num_events <= MOST_EVENTS:
    loaded = load_run(workdir)
    recommender = Recommender(loaded.task.model, loaded.params, data, config)
    found["examples"] = recommender.recommend(users=_some_users(data), k=NUM_ITEMS, hold_out=True)
  else:
    left_out.append("recommendations")
  sizes = f"{users:,} test users, {data.num_items:,} items and {data.num_events:,} events"
  note = [f"Left out, because it would take long with {sizes}: {' and '.join(left_out)}."] if left_out else []
  return dataclasses.replace(run, notes=[*run.notes, *note], **found)


def _some_users(data: PreparedData) -> list[str]:
  """Returns the raw ids of users, drawn at random, who have an event before their first test event."""
  tests = np.flatnonzero(np.asarray(data.split) == TEST)
  users = np.searchsorted(data.offsets, tests, side="right") - 1
  users, first = np.unique(users, return_index=True)
  users = users[tests[first] > data.offsets[users]]
  drawn = np.random.default_rng(0).choice(users, min(NUM_USERS, len(users)), replace=False)
  return [data.user_raw_id(user) for user in drawn.tolist()]


def _lead(run: _Run) -> str:
  """The result in a sentence, and the sizes in numbers."""
  metric, data, best = run.config.eval.metric, run.data, run.summary[SELECT]["best_epoch"]
  numbers = {f"test {metric}": _number(run.test[metric])}
  if metric in run.popularity:
    numbers[f"{POPULARITY} {metric}"] = _number(run.popularity[metric])
  if data is not None:
    sizes = {"users": user_lengths(data).size, "items": data.num_items, "events": data.num_events}
    numbers |= {name: f"{size:,}" for name, size in sizes.items()}
  numbers["best epoch"] = f"{best} of {run.config.train.num_epochs}"
  numbers["time (h:min:s)"] = str(datetime.timedelta(seconds=round(run.summary["seconds"])))
  return (_sentence(run) if run.config.task == SEQUENTIAL else "") + page.facts(numbers)


def _sentence(run: _Run) -> str:
  k = min(run.config.eval.ks, key=lambda k: abs(k - 10))
  popular = f" ({run.popularity[f'HR@{k}']:.1%} with the most popular ones)" if run.popularity else ""
  return page.paragraph(
    f"Of {run.test['count']:,} users, {run.test[f'HR@{k}']:.1%} chose next one of the {k} items that"
    f" {run.config.model.name} ranked first{popular}.",
    "lead",
  )


def _results(run: _Run) -> str:
  """The test metrics of all users and of each domain, next to those of popularity."""
  settings, model = run.config.eval, run.config.model.name
  if run.config.task != SEQUENTIAL:
    rows = [list(run.test), [_number(value) for value in run.test.values()]]
    note = "A click-through model scores given candidates: there is no ranking of items and nothing to recommend."
    return page.section("Test events", page.table(model, rows, texts=0), page.paragraph(note, "note"))
  scores = {model: run.test} | ({POPULARITY: run.popularity} if run.popularity else {})
  of_domain = "Among the items of the target's domain"
  titles = {
    "": of_domain if settings.protocol == "full_per_domain" else "Among all items",
    WITHIN_DOMAIN: of_domain,
    SAMPLED: f"Among {settings.sampled_negatives} random items; not comparable with full ranking",
  }
  tables = [
    page.table(title, _metric_rows(scores, prefix, settings.ks), texts=2)
    for prefix, title in titles.items()
    if f"{prefix}MRR" in run.test
  ]
  note = "HR@K: share of the users whose next item is among the first K. NDCG@K and MRR count how far up it is, too."
  seen = " Items that the user had before are no candidates." if settings.exclude_seen else ""
  return page.section("Test events", *tables, page.paragraph(note + seen, "note"))


def _metric_rows(scores, prefix, ks):
  metrics = [*(f"{name}@{k}" for k in ks for name in ("HR", "NDCG")), "MRR"]
  test = next(iter(scores.values()))
  starts = [("all", prefix), *((name, f"{prefix}domain/{name}/") for name in _domains(test))]
  rows = [
    [domain, ranker, _number(values[f"{start}count"]), *(_number(values.get(start + name)) for name in metrics)]
    for domain, start in starts
    for ranker, values in scores.items()
  ]
  return [["domain", "ranker", "users", *metrics], *rows]


def _domains(metrics: Mapping[str, float | int]) -> list[str]:
  """Returns the names of the domains that have metrics, those with the most users first."""
  counts = {name: n for name, n in metrics.items() if name.startswith("domain/") and name.endswith("/count") and n}
  names = sorted(counts, key=counts.get, reverse=True)
  return [name.removeprefix("domain/").removesuffix("/count") for name in names]


def _training(run: _Run) -> str:
  """The loss of both phases and the validation metric of each domain, against the epoch."""
  metric, names = run.config.eval.metric, _domains(run.test)
  phases = [phase for phase in (SELECT, FINAL) if phase in run.summary]
  losses = [(phase, *_points(run.records, phase, "train", "loss")) for phase in phases]
  keys = [("all users", metric), *((name, _of_domain(metric, name)) for name in names[: MOST_LINES - 1])]
  curves = [(name, *_points(run.records, SELECT, "validation", key)) for name, key in keys]
  chosen = f"Epoch {run.summary[SELECT]['best_epoch']} is the best."
  more = f" The {len(curves) - 1} largest of {len(names)} domains." if len(curves) <= len(names) else ""
  final = "Phase final trains a new model for the best number of epochs, on the validation events too."
  figures = page.side_by_side(
    page.figure("Training loss", draw_lines("loss", losses, "epoch", "loss"), final if FINAL in phases else ""),
    page.figure(f"Validation {metric}", draw_lines("validation", curves, "epoch", metric), chosen + more),
  )
  numbers = page.table("Losses and validations", _training_rows(run))
  return page.section("Training", figures, page.folded("Numbers", numbers, is_open=not figures))


def _points(records, phase, kind, name):
  """Returns epochs, 0.5 after half of the first one, and values."""
  found = [r for r in records if r["phase"] == phase]
  steps_per_epoch = max((r["step"] / r["epoch"] for r in found), default=1)
  found = [r for r in found if r["kind"] == kind and name in r]
  found = found[:: math.ceil(len(found) / _MOST_POINTS) or 1]
  return [r["step"] / steps_per_epoch for r in found], [float(r[name]) for r in found]


def _training_rows(run):
  """A row for each epoch of each phase: the latest loss, and the metrics of all users."""
  names, rows = ["loss", *(name for name in run.test if "/" not in name and name != "count")], {}
  for record in run.records:
    row = rows.setdefault((record["phase"], record["epoch"]), {})
    row |= {name: record[name] for name in names if name in record and record["kind"] != "test"}
  body = [[f"{phase} {epoch}", *(_number(row.get(name)) for name in names)] for (phase, epoch), row in rows.items()]
  return [["phase, epoch", *names], *body]


def _of_domain(metric: str, domain: str) -> str:
  """Returns the name of a metric for a domain.

  >>> _of_domain("NDCG@10", "books"), _of_domain("within_domain/MRR", "books")
  ('domain/books/NDCG@10', 'within_domain/domain/books/MRR')
  """
  prefix, slash, name = metric.rpartition("/")
  return f"{prefix}{slash}domain/{domain}/{name}"


def _examples(run: _Run) -> str:
  """Histories of a few users, and what the model recommends after them."""
  if not run.examples:
    return ""
  note = (
    f"{len(run.examples)} users, drawn at random. A history ends before the user's test event, which is marked where it"
    " is recommended. Scores of different users are not comparable. The page names users and what they did: share it as"
    " you may share the data."
  )
  examples = (_example(run.data, one) for one in run.examples)
  return page.section("Recommendations", page.paragraph(note, "note"), *examples)


def _example(data: PreparedData, one: Recommendation) -> str:
  events = one.history
  chosen = one.held_out
  names = data.domain_names if data.num_domains > 1 else [""]
  times = events.timestamp.astype("datetime64[s]").astype("datetime64[D]")
  history = [
    (_title(data, item), names[domain - 1], str(time) if data.has_timestamps else "")
    for item, domain, time in zip(events.item_id.tolist(), events.domain_id.tolist(), times, strict=True)
  ]
  latest = history[: -NUM_EVENTS - 1 : -1]
  items = [(item.title or item.item, item.domain if names[0] else "", f"{item.score:.3f}") for item in one.items]
  hit = next((i for i, x in enumerate(one.items) if (x.item, x.domain) == (chosen.item, chosen.domain)), None)
  by = "score" if one.ranked_by == MODEL else "popularity, as the history has no known item"
  return page.box(
    f"User {one.user}",
    page.side_by_side(
      page.numbered(f"Latest {len(latest)} of {len(history):,} events, newest first", latest),
      page.numbered(f"Recommended, with {by}", items, mark=hit),
    ),
    page.paragraph(f"Chosen next: {chosen.title or chosen.item}, rank {chosen.rank:,} of {data.num_items:,} items."),
  )


def _title(data: PreparedData, item: int) -> str:
  return data.items["title"][item - 1] or data.item_raw_id(item)


def _settings(config: ConfigDict) -> str:
  """The config: what differs from the defaults of its task, then the rest."""
  given, usual = _flat(config), _flat(task_class(config.task).default_config())
  changed = [[name, value, usual.get(name, "not set")] for name, value in given.items() if usual.get(name) != value]
  rest = [[name, value] for name, value in given.items() if usual.get(name) == value]
  return page.section(
    "Config",
    page.table("Settings that differ from the defaults", [["setting", "value", "default"], *changed], texts=3),
    page.folded("Settings with their defaults", page.table("Defaults", [["setting", "value"], *rest], texts=2)),
  )


def _flat(config: ConfigDict) -> dict[str, str]:
  """Returns setting to value as JSON, in which a saved config equals the given one."""
  flat = traverse_util.flatten_dict(config.to_dict(), sep=".")
  return {name: json.dumps(value, ensure_ascii=False) for name, value in sorted(flat.items())}


def _number(value: float | int | None) -> str:
  return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
