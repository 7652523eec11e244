"""Says whether a data set has negative transfer between its domains at all, before a method against it is trained.

    jaxrec certificate --config=hstu --data=prepared/two --out=runs/certificate --seeds=1,2,3
    python -m experiments.certificate --config=experiments/configs/abxi.py --out=runs/abxi_certificate --seeds=1,2,3,4,5

Trains the config in these variants and ranks each user's target within its own domain (with --config.eval.targets=all
every held-out event; users are drawn with all of theirs):

    merged                 one model of all events
    target_domain          merged, and the target's domain is an input
    intra                  one model, in which an event attends to events of its own domain only (HSTU)
    intra_target_domain    intra, with the target's domain as an input and in transition-aware positions (HSTU)
    apart                  one model, of histories that are a user's events of one domain (first targets only); a
                           batch has as many events as of merged, so there are as many steps
    single                 a model for each domain, of its events alone (first targets only)

The differences are means over users (those that both models rank for: a model of one domain needs an event of it
before the target) and seeds, with intervals of 95% from draws of both. Where none of intra, apart and single is above
merged by two standard errors, the other domains' events do no harm that could be removed; where single is below merged,
they help. Where domains alternate from event to event, intra may be below merged although there is harm: an event reads
its own domain only, and the next event is often in another. There apart says what the target's domain alone can do.

A variant may also only learn faster: the runs that were at their best on validation when training ended are named.

The same command resumes. Several of them, with other --seeds or --variants, may train at a time with one --out; then
give the command with all of them. Writes <out>/certificate.json and <out>/runs/<variant>-<seed>.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

from jaxrec.analysis.paired_bootstrap import (
  Interval,
  UserValues,
  joined,
  means_by_seed,
  paired_difference,
  user_values,
)
from jaxrec.cli.config_argument import DATA_HELP, define_config, with_config_file
from jaxrec.cli.process import describe
from jaxrec.cli.sweep import parse_seeds
from jaxrec.cli.text_table import label_of_all, text_table
from jaxrec.data import load
from jaxrec.data.prepared import TEST, VALIDATION, PreparedData
from jaxrec.evaluation.model import user_ranks
from jaxrec.train import loop
from jaxrec.train.checkpoint import check_path
from jaxrec.train.config import SEQUENTIAL
from jaxrec.train.monitor import TRAINING_ERRORS, Interrupted
from jaxrec.train.runs import load_run
from jaxrec.train.writers import write_json

FLAGS = flags.FLAGS
rewrite_arguments = with_config_file

INTRA = {"name": "multi_domain_hstu", "states": "none"}
MODELS: dict[str, dict[str, Any]] = {
  "merged": {"target_domain": False},
  "target_domain": {"target_domain": True},
  "intra": INTRA | {"tape": False, "target_domain": False},
  "intra_target_domain": INTRA | {"tape": True, "target_domain": True},
}
VARIANTS = (*MODELS, "apart", "single")
PAIRS = (  # (variant, base)
  ("intra", "merged"), ("apart", "merged"), ("single", "merged"), ("target_domain", "merged"),
  ("intra_target_domain", "target_domain"), ("apart", "target_domain"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
  """A training: its variant, seed, and name of the folder; `domain` is that of a single-domain run, else empty."""

  variant: str
  seed: int
  domain: str
  name: str
  config: ConfigDict


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; settings are given as --config.group.key=value")
  try:
    check_path("--out", FLAGS.out)
    config, seeds = checked_config(FLAGS.config, FLAGS.k), parse_seeds(FLAGS.seeds)
    data = load.load_data(config.data)
    variants, domains = FLAGS.variants or variants_for(config), domains_with_targets(data)
    runs = runs_of(config, variants, seeds, domains, mean_domains(data))
    if FLAGS.dry_run:
      print("\n".join(f"{FLAGS.out}/runs/{run.name}" for run in runs))
      return
    os.makedirs(os.path.join(FLAGS.out, "runs"), exist_ok=True)
    trainings = train(runs, FLAGS.out)
    values = values_of(runs, FLAGS.out, 1 if FLAGS.split == "validation" else 2, FLAGS.k, data)
    record = compare(values, PAIRS, data.domain_names, FLAGS.resamples)
    settings = {"seeds": seeds, "k": FLAGS.k, "split": FLAGS.split, "resamples": FLAGS.resamples}
    record["trainings"] = trainings
    write_json(os.path.join(FLAGS.out, "certificate.json"), settings | record)
  except Interrupted as stop:
    logging.warning("%s", stop)
    sys.exit(stop.exit_code)
  except (OSError, ValueError, *TRAINING_ERRORS) as error:
    sys.exit(describe(error))
  print("\n".join([report(record, FLAGS.k), "", *verdicts(record["differences"]), *unfinished(trainings)]))
  print(f"written to {FLAGS.out}/certificate.json")


def checked_config(config: ConfigDict, k: int) -> ConfigDict:
  """Returns a copy of the config that is evaluated within the target's domain.

  Raises:
    ValueError: a config of another task, with several objectives, of one domain, or that trains anew.
  """
  config = ConfigDict(config.to_dict())
  if config.task != SEQUENTIAL:
    raise ValueError(f"{config.task=} ranks no catalogue; give a config of task {SEQUENTIAL!r}")
  if config.multi_objective.objectives or config.data.only_domain or config.data.domains_apart:
    raise ValueError("give a config with one objective and all domains: the variants are made from it")
  if config.train.retrain:
    raise ValueError(f"{config.train.retrain=} must be False here")
  config.eval.protocol, config.eval.metric = "full_per_domain", f"NDCG@{k}"
  config.eval.ks = tuple(sorted({*config.eval.ks, k}))
  return config


def variants_for(config: ConfigDict) -> tuple[str, ...]:
  """Returns the variants that there are: attention inside a domain is for HSTU, "single" and "apart" for first targets.

  The data of one domain keep a user's later targets only where the first one is in that domain.
  """
  is_hstu = config.model.name in ("hstu", "multi_domain_hstu")
  names = VARIANTS if is_hstu else tuple(name for name in VARIANTS if not name.startswith("intra"))
  return names if config.eval.targets == "first" else tuple(name for name in names if name not in ("apart", "single"))


def runs_of(
  config: ConfigDict,
  variants: Sequence[str],
  seeds: Sequence[int],
  domains: Sequence[str],
  domains_per_user: float = 1.0,
) -> list[Run]:
  """Returns the trainings of some variants, seed by seed.

  Args:
    config: from `checked_config`.
    variants: names of `VARIANTS`.
    seeds: of each variant.
    domains: those with a model of their own in "single".
    domains_per_user: so many times as many histories has a batch of "apart", for as many steps and events in each.

  Raises:
    ValueError: an unknown variant, or one that the model does not have.
  """
  known = variants_for(config)
  if wrong := sorted(set(variants) - set(known)):
    asked = f"model {config.model.name!r} and eval.targets={config.eval.targets!r}"
    raise ValueError(f"--variants={wrong} are not among {known}, those of {asked}")
  return [
    run for seed in seeds for variant in variants for run in _runs(config, variant, seed, domains, domains_per_user)
  ]


def _runs(config, variant, seed, domains, domains_per_user):
  for number, domain in enumerate(domains if variant == "single" else [""], start=1):
    one = ConfigDict(config.to_dict())
    one.seed, one.name = seed, f"{config.name}_{variant}"
    one.model = _model(config.model.to_dict(), MODELS.get(variant, MODELS["merged"]))
    one.data.only_domain, one.data.domains_apart = domain, variant == "apart"
    if variant == "apart":
      one.train.batch_size = round(one.train.batch_size * domains_per_user)
    yield Run(variant, seed, domain, f"{variant}{number if domain else ''}-{seed}", one)


def _model(model, changes):
  if model["name"] == "multi_domain_hstu":
    model = {name: value for name, value in model.items() if name not in ("tape", "states", "read", "combination")}
    model["name"] = "hstu"
  return ConfigDict(model | changes)


def domains_with_targets(data: PreparedData) -> list[str]:
  """Returns the names of the domains with training events and with targets of both held-out splits.

  Raises:
    ValueError: the data have one domain.
  """
  if data.num_domains < 2:
    raise ValueError("the data have one domain: nothing can transfer. Prepare them with --domain, or with source=merge")
  split, domain = np.asarray(data.split), np.asarray(data.domain_id)
  user = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
  found = set(domain[split < VALIDATION].tolist())
  for held_out in (VALIDATION, TEST):
    events = np.flatnonzero(split == held_out)
    found &= set(domain[events[np.unique(user[events], return_index=True)[1]]].tolist())
  return [name for number, name in enumerate(data.domain_names, start=1) if number in found]


def mean_domains(data: PreparedData) -> float:
  """Returns in how many domains a user with events has some, in the mean."""
  user = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
  pairs = np.unique(user * (data.num_domains + 1) + np.asarray(data.domain_id))
  return len(pairs) / len(np.unique(user))


def train(runs: Sequence[Run], out: str) -> dict[str, dict[str, float]]:
  """Trains what is not trained yet, and returns "best_step", "steps", "best_epoch" and "epochs" by name of the run.

  Raises:
    ValueError: a folder holds a run of another config, or another process trains in it.
  """
  found = {}
  for count, run in enumerate(runs, start=1):
    logging.info("run %d of %d: %s", count, len(runs), run.name)
    result = loop.run(run.config, os.path.join(out, "runs", run.name))[loop.SELECT]
    found[run.name] = {name: result[name] for name in ("best_step", "steps", "best_epoch", "epochs")}
  return found


def values_of(runs: Sequence[Run], out: str, split: int, k: int, data: PreparedData) -> dict[str, UserValues]:
  """Returns NDCG@k within the domain of each user and seed, by variant."""
  ranks: dict[tuple[str, str], list] = {}
  for run in runs:
    loaded = load_run(os.path.join(out, "runs", run.name), task=SEQUENTIAL)
    task = loaded.task
    ranks.setdefault((run.variant, run.domain), []).append(
      user_ranks(task.model, loaded.params, task.data, task.config, split)
    )
  parts: dict[str, list[UserValues]] = {}
  for (variant, _), of_seeds in ranks.items():
    parts.setdefault(variant, []).append(user_values(of_seeds, np.asarray(data.item_domain()), k))
  return {variant: joined(values) for variant, values in parts.items()}


def compare(
  values: Mapping[str, UserValues], pairs: Sequence[tuple[str, str]], domain_names: Sequence[str], resamples: int
) -> dict[str, Any]:
  """Returns "means" (variant to domain to the mean of each seed) and "differences" (pair to domain to `Interval`).

  The domain "" stands for all.

  Args:
    values: of each variant.
    pairs: variants and what they are compared with; those without values are left out.
    domain_names: of the data.
    resamples: draws of users and seeds.
  """
  found: dict[str, Any] = {"means": {}, "differences": {}}
  domains = {"": None} | {name: number for number, name in enumerate(domain_names, start=1)}
  for variant, one in values.items():
    has = {name: number for name, number in domains.items() if number is None or (one.domain == number).any()}
    found["means"][variant] = {name: means_by_seed(one, number).tolist() for name, number in has.items()}
  for variant, base in pairs:
    if variant in values and base in values:
      common = np.intersect1d(values[variant].user, values[base].user)
      there = set(values[base].domain[np.isin(values[base].user, common)].tolist())
      common_domains = {name: number for name, number in domains.items() if number is None or number in there}
      found["differences"][f"{variant} - {base}"] = {
        name: paired_difference(values[variant], values[base], number, resamples=resamples)._asdict()
        for name, number in common_domains.items()
      }
  return found


def report(record: Mapping[str, Any], k: int, protocol: str = "full_per_domain") -> str:
  """Returns the tables of means and of differences as text."""
  means, differences = record["means"], record["differences"]
  names = list(dict.fromkeys(name for values in means.values() for name in values))
  label = {"": label_of_all(names)} | {name: name for name in names if name}
  rows = [("variant", *(label[name] for name in names))]
  for variant, values in means.items():
    rows.append((variant, *(f"{np.mean(values[name]):.4f}" if name in values else "-" for name in names)))
  among = "within the target's domain" if protocol == "full_per_domain" else "among all items"
  parts = [f"NDCG@{k} {among}, mean over seeds:", text_table(rows, "lr"), ""]
  rows = [("difference", "domain", "users", "seeds", "mean", "standard error", "95% interval", "of the base")]
  for pair, by_domain in differences.items():
    base = means[pair.split(" - ")[1]]
    for name, values in by_domain.items():
      one = Interval(**values)
      share = f"{100 * one.mean / np.mean(base[name]):+.1f}%" if np.mean(base[name]) else "-"
      cells = f"{one.mean:+.4f}", f"{one.error:.4f}", f"[{one.low:+.4f}, {one.high:+.4f}]", share
      rows.append((pair, label[name], f"{one.count:,}", str(one.seeds), *cells))
  return "\n".join([*parts, text_table(rows, "llr")])


def verdicts(differences: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
  """Returns a sentence for each comparison with models that do not see other domains.

  >>> one = dict(mean=0.003, error=0.001, low=0.001, high=0.005, count=9, seeds=2)
  >>> verdicts({"intra - merged": {"": one, "books": one | {"mean": 0.001}}})
  ['intra is above merged by two standard errors: over all users. Other domains do harm there.']
  >>> verdicts({"single - merged": {"": one | {"mean": 0.001}}})[1]
  'No negative transfer is shown: a method against it has nothing to remove here.'
  """
  found = []
  for pair, by_domain in differences.items():
    if pair.split(" - ")[0] == "target_domain":
      continue
    where = [name for name, one in by_domain.items() if one["mean"] >= 2 * one["error"] and one["mean"] > 0]
    what = pair.replace(" - ", " is above ") + " by two standard errors"
    places = ", ".join("over all users" if not name else f"in {name!r}" for name in where)
    sentence = f"{what}: {places}. Other domains do harm there." if where else f"{what} nowhere."
    found.append(sentence)
  if any("harm" in sentence for sentence in found):
    return found
  if {pair.split(" - ")[0] for pair in differences} & {"apart", "single"}:
    return [*found, "No negative transfer is shown: a method against it has nothing to remove here."]
  caveat = (
    "where the next event is often in another domain that does not exclude it; the variants apart and single tell"
  )
  return [*found, f"No negative transfer is shown by attention inside each domain: {caveat}."]


def unfinished(trainings: Mapping[str, Mapping[str, float]]) -> list[str]:
  """Returns a sentence on the runs that were at their best on validation when training ended, if there are any.

  >>> unfinished({"merged-1": {"best_step": 90, "steps": 90}, "apart-1": {"best_step": 60, "steps": 90}})[0][:58]
  'At its best when training ended, and perhaps still learnin'
  """
  names = [name for name, one in trainings.items() if one["best_step"] >= one["steps"]]
  said = "At its best when training ended, and perhaps still learning"
  advice = "with more epochs a difference may change, because one variant may only learn faster"
  return [f"{said}: {', '.join(names)}; {advice}."] if names else []


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  define_config(values)
  flags.DEFINE_string("data", None, DATA_HELP, flag_values=values)
  flags.DEFINE_string("out", None, "Folder of the runs and of certificate.json.", flag_values=values)
  flags.DEFINE_list("seeds", ["1", "2", "3"], "Seeds of each variant.", flag_values=values)
  flags.DEFINE_list("variants", [], f"Some of {', '.join(VARIANTS)}; all that the model has.", flag_values=values)
  flags.DEFINE_integer("k", 10, "NDCG@k is compared.", lower_bound=1, flag_values=values)
  flags.DEFINE_enum("split", "test", ["validation", "test"], "Split of the targets.", flag_values=values)
  flags.DEFINE_integer("resamples", 2000, "Draws of users and seeds.", lower_bound=100, flag_values=values)
  flags.DEFINE_bool("dry_run", False, "List the runs without training.", flag_values=values)
  flags.mark_flags_as_required(["config", "out"], flag_values=values)
