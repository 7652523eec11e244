"""Scores a checkpoint of a run again, beside popularity and random order; prints a table, for each domain too.

    python -m experiments.evaluate --workdir=runs/ml1m_hstu --split=test --ks=1,10,50

Writes the numbers to <workdir>/evaluation_<split>.json (or --out). The candidates and seen items are those of the run's
config unless flags say otherwise.
"""

from __future__ import annotations

import sys
from typing import Any

from absl import app, flags, logging

from jaxrec.baselines import PROTOCOLS, evaluate_baseline, popularity, random_order
from jaxrec.data.evaluation import evaluation_batches
from jaxrec.train.evaluation import evaluate
from jaxrec.train.experiment import Experiment, load_run
from jaxrec.train.log import HideOrbaxDetails
from jaxrec.train.writers import write_json

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training run.")
_SPLIT = flags.DEFINE_enum("split", "test", ["validation", "test"], "Which held-out events to rank.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint.")
_PHASE = flags.DEFINE_enum("phase", None, ["select", "final"], "Which phase of the run; by default the last one.")
_KS = flags.DEFINE_list("ks", None, "List lengths of HR and NDCG, instead of those of the config.")
_PROTOCOL = flags.DEFINE_enum("protocol", None, PROTOCOLS, "Candidates, instead of those of the config.")
_SEEN = flags.DEFINE_bool("exclude_seen", None, "Whether seen items are candidates, instead of the config's choice.")
_BASELINES = flags.DEFINE_bool("baselines", True, "Also score popularity and random order.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write; default <workdir>/evaluation_<split>.json.")


def main(argv: list[str]) -> None:
  """Runs what the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  logging.get_absl_handler().addFilter(HideOrbaxDetails())
  try:
    experiment, params, step = load_run(_WORKDIR.value, _CHECKPOINT.value, _PHASE.value)
    _apply_flags(experiment.config)
    scores = score(experiment, params, 1 if _SPLIT.value == "validation" else 2, _BASELINES.value)
  except (FileNotFoundError, ValueError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  settings = experiment.config.eval.to_dict()
  out = _OUT.value or f"{_WORKDIR.value}/evaluation_{_SPLIT.value}.json"
  write_json(out, {"split": _SPLIT.value, "step": step, "eval": settings, **scores})
  print(table(scores, experiment.data.domain_names, experiment.config.eval.ks))
  candidates = f"protocol={settings['protocol']}, exclude_seen={settings['exclude_seen']}"
  print(f"{_SPLIT.value} events, parameters of step {step}, {candidates}; written to {out}")


def score(experiment: Experiment, params: Any, split: int, baselines: bool = True) -> dict[str, dict[str, float | int]]:
  """Returns the metrics of the model under its name and, if asked, of "popularity" and "random".

  Args:
    experiment: data, model and config.
    params: of the model.
    split: 1 validation, 2 test. Popularity then counts what the model could have been trained on.
    baselines: whether to score those too.

  Raises:
    ValueError: no user has such an event.
  """
  data, config = experiment.data, experiment.config
  scores = {config.model.name: evaluate(experiment.model, params, data, config, split)}
  if baselines:
    batches = evaluation_batches(data, split, 1024, config.data.max_length)
    options = {name: config.eval[name] for name in ("ks", "exclude_seen", "protocol")}
    for baseline in (popularity(data, split - 1), random_order(data)):
      scores[baseline.name] = evaluate_baseline(baseline, data, batches, **options)
  return scores


def table(scores: dict[str, dict[str, float | int]], domain_names: tuple[str, ...], ks: tuple[int, ...]) -> str:
  """Returns the numbers as text: for all users and for each domain, a row a ranker.

  >>> print(table({"hstu": {"HR@10": 0.5, "NDCG@10": 0.25, "MRR": 0.2, "count": 4}}, ("films",), (10,)))
  domain  ranker  users   HR@10  NDCG@10     MRR
  all     hstu        4  0.5000   0.2500  0.2000
  """
  metrics = [*(f"{name}@{k}" for name in ("HR", "NDCG") for k in ks), "MRR"]
  rows = [["domain", "ranker", "users", *metrics]]
  domains = {"all": ""} | ({name: f"domain/{name}/" for name in domain_names} if len(domain_names) > 1 else {})
  for domain, prefix in domains.items():
    for ranker, values in scores.items():
      numbers = [f"{values[prefix + name]:.4f}" if prefix + name in values else "-" for name in metrics]
      rows.append([domain, ranker, str(values[f"{prefix}count"]), *numbers])
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  pad = [str.ljust, str.ljust, *[str.rjust] * (len(widths) - 2)]
  return "\n".join("  ".join(f(text, width) for f, text, width in zip(pad, row, widths, strict=True)) for row in rows)


def _apply_flags(config):
  with config.unlocked(), config.ignore_type():
    if _KS.value is not None:
      config.eval.ks = tuple(int(k) for k in _KS.value)
    if _PROTOCOL.value is not None:
      config.eval.protocol = _PROTOCOL.value
    if _SEEN.value is not None:
      config.eval.exclude_seen = _SEEN.value


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
