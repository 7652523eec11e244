"""The model card of a finished run, `model_card.md`: what it was trained on, how it was judged, where that ends.

It is made from the records of the workdir and names no user. On a hub it is the README.md, with its fields.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxrec.train import writers
from jaxrec.train.config import RANKING, SEQUENTIAL
from jaxrec.train.identity import CONFIG_FILE, DATA_FILE

CARD_FILE = "model_card.md"
_MOST_DOMAINS = 20
_FEW_TARGETS = 1000
_DOMAIN, _COUNT = "domain/", "/count"
_TASKS = {
  SEQUENTIAL: "ranks all items of a catalogue by what a user is likely to choose next",
  RANKING: "predicts what a user will do with an item that is shown",
}  # fmt: skip
_EVALUATIONS = (
  ("select", "validation", "validation, which chose the epoch"),
  ("select", "test_of_selected", "test"),
  ("final", "test", "test, retrained with the validation events"),
)


def write_model_card(workdir: str) -> str:
  """Writes <workdir>/model_card.md, complete or not at all (first host only), and returns its path.

  Args:
    workdir: of a finished run of any task.

  Raises:
    FileNotFoundError: the run is not finished.
    ValueError: one of its records is damaged.
  """
  path = os.path.join(workdir, CARD_FILE)
  if jax.process_index() == 0:  # Other hosts may not see its records yet.
    writers.write_text(path, model_card(workdir))
  return path


def model_card(workdir: str) -> str:
  """Returns the model card of a finished run as Markdown; the arguments and errors are those of `write_model_card`."""
  records = {name: os.path.join(workdir, name) for name in (CONFIG_FILE, DATA_FILE, "summary.json")}
  if not os.path.exists(records["summary.json"]):
    raise FileNotFoundError(f"{records['summary.json']} is not there; the run is not finished: train it to its end")
  config = ConfigDict(writers.read_json(records[CONFIG_FILE], dict))
  summary = writers.read_json(records["summary.json"], dict)
  data = writers.read_json(records[DATA_FILE], dict) if os.path.exists(records[DATA_FILE]) else {}
  return "\n\n".join([
    _header(config),
    *_section("Data", _data(config, data)),
    *_section("Protocol", _protocol(config, summary)),
    "## Results", _results(summary),
    *_section("Limits", _limits(config, summary)),
    *_section("Training", _training(config, summary)),
  ]) + "\n"  # fmt: skip


def _header(config: ConfigDict) -> str:
  name = config.name or config.model.name
  what = _TASKS.get(config.task, "predicts whether a user clicks a candidate")
  return (
    f"---\nlibrary_name: jaxrec\ntags:\n- recommender-system\n- {config.model.name}\n---\n\n# {name}\n\n"
    f"A model `{config.model.name}` of jaxrec that {what}."
  )


def _section(title: str, lines: Sequence[str]) -> tuple[str, str]:
  return f"## {title}", "\n".join(f"- {line}" for line in lines)


def _data(config: ConfigDict, data: Mapping[str, Any]) -> list[str]:
  settings = config.data
  lines = [f"source `{settings.source or 'prepared folder'}`" + _options(settings.options.to_dict())]
  if counts := data.get("counts"):
    lines.append(", ".join(f"{count:,} {name}" for name, count in counts.items()))
  if settings.get("only_domain"):
    lines.append(f"events of the domain {settings.only_domain!r} alone")
  if settings.get("domains_apart"):
    lines.append("a user's events of each domain as a history of their own")
  if settings.get("time_cuts"):
    lines.append(f"cut at {', '.join(map(_date, settings.time_cuts))}: validation, test, end")
  if settings.get("train_share", 1) < 1:
    lines.append(f"trained on {settings.train_share:.2%} of the users")
  if length := settings.get("max_length", settings.get("history_length")):
    lines.append(f"reads the latest {length:,} events of a history")
  return lines


def _options(options: Mapping[str, Any]) -> str:
  shown = [f"{name}={value!r}" for name, value in options.items() if name != "sources"]
  return f" with {', '.join(f'`{text}`' for text in shown)}" if shown else ""


def _date(seconds: int) -> str:
  return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).strftime("%Y-%m-%d")


def _protocol(config: ConfigDict, summary: Mapping[str, Any]) -> list[str]:
  settings = config.eval
  lines = [
    f"the epoch was chosen by {settings.metric} on validation events: {summary['select'].get('best_epoch')} of"
    f" {config.train.num_epochs}"
  ]
  if "final" in summary:
    lines.append("a new model was then trained on the validation events too, and judged on the test events once")
  if config.task == SEQUENTIAL:
    candidates = {"full": "all items", "full_per_domain": "the items of the target's domain"}
    which = candidates.get(settings.protocol, "all items, and those of the target's domain apart (within_domain/)")
    lines.append(f"candidates are {which}" + (", without those that the user had" if settings.exclude_seen else ""))
    lines.append("a target is " + ("the first held-out event of a user" if settings.targets == "first" else
                 "every held-out event, or some of each user, with all before it as history"))  # fmt: skip
    if settings.get("sampled_negatives"):
      lines.append(f"sampled/ ranks among {settings.sampled_negatives} random items; not comparable with the others")
  return lines


def _results(summary: Mapping[str, Any]) -> str:
  found = [(text, summary[phase][name]) for phase, name, text in _EVALUATIONS if name in summary.get(phase, {})]
  names = [name for name in found[0][1] if not name.startswith(_DOMAIN) and name != "count"]
  names = [name for name in names if "/" not in name] or names  # Of several actions each name begins with one.
  rows = [("events", "domain", "count", *names)]
  for text, values in found:
    for domain in ("", *_domains(values)):
      prefix = f"{_DOMAIN}{domain}/" if domain else ""
      cells = [f"{values[prefix + name]:.4f}" if prefix + name in values else "" for name in names]
      rows.append((text, domain or "all", f"{values.get(prefix + 'count', 0):,}", *cells))
  lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
  return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _domains(values: Mapping[str, Any]) -> list[str]:
  """The domains with targets, the largest first."""
  counts = {
    name.removeprefix(_DOMAIN).removesuffix(_COUNT): count
    for name, count in values.items()
    if name.startswith(_DOMAIN) and name.endswith(_COUNT) and count
  }
  return sorted(counts, key=counts.get, reverse=True)[:_MOST_DOMAINS]


def _limits(config: ConfigDict, summary: Mapping[str, Any]) -> list[str]:
  test = summary.get("final", {}).get("test") or summary["select"].get("test_of_selected", {})
  lines = [
    f"one run with seed {config.seed}: how much results differ between seeds is not in it",
    "judged on recorded events of the same users and items; what users would do with its recommendations is not known",
  ]
  if config.task == SEQUENTIAL:
    lines.append("items that were added after the data were prepared cannot be recommended")
    if config.data.get("request_time") == "target":
      lines.append("in the evaluation the model knew the time of the event to predict (data.request_time=target)")
  few = [name for name in _domains(test) if test[f"{_DOMAIN}{name}{_COUNT}"] < _FEW_TARGETS]
  if few:
    lines.append(f"fewer than {_FEW_TARGETS:,} targets, so that metrics are uncertain, in: {', '.join(few)}")
  if "changes" in summary:
    lines.append("settings changed during the run: see changes.json")
  return lines


def _training(config: ConfigDict, summary: Mapping[str, Any]) -> list[str]:
  lines = [f"objective `{config.objective.name}`"] if config.get("objective") and "name" in config.objective else []
  lines.append(f"{summary['select'].get('steps', 0):,} steps of up to {config.train.batch_size} users or examples")
  lines.append(f"{summary['seconds']:,.0f} seconds on {_machine(summary.get('machine'))}")
  return [*lines, "all settings: config.json; all metrics: summary.json and metrics.jsonl"]


def _machine(machine: Any) -> str:
  if isinstance(machine, Mapping):
    return ", ".join(f"{name} {value}" for name, value in machine.items())
  return str(machine or "an unrecorded machine")
