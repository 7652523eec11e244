"""Recommends items to users of the data or to new users: as text with titles, or as a table for many users.

    python -m experiments.recommend --workdir=runs/shop --user=17 --user=4169
    python -m experiments.recommend --workdir=runs/demo --random=5 --domain=film --hold_out
    python -m experiments.recommend --workdir=runs/shop --all --k=50 --out=recommendations.parquet
    python -m experiments.recommend --workdir=runs/shop --histories=new_users.csv --out=new_users.jsonl

    python -m experiments.recommend --workdir=runs/ml1m_ranking --user=17 --weights=liked=1,rating=0.1

Of a run of generative ranking, items are ranked by the weighted sum of the actions that are predicted for them; a file
of histories then has the columns of the actions that the model reads.

Users are named by their ids in the raw data. A file of histories has the columns of the file from which the data was
prepared (`--source=table`), with a row for each event; users need not be in the data. A table has the columns user,
rank, item, title, domain, score and ranked_by; of a ranking run, the predicted actions instead of ranked_by. A killed
program that writes a table continues where it was when it is started again.
"""

from __future__ import annotations

import pathlib
import sys
import zlib
from collections.abc import Callable

import numpy as np
import polars as pl
from absl import app, flags

from jaxrec.cli import process, ranking_runs
from jaxrec.cli.history_files import read_histories
from jaxrec.cli.part_files import PartFiles
from jaxrec.data.prepared import PreparedData
from jaxrec.recommenders import load
from jaxrec.serving.histories import Histories, histories_of_events, histories_of_users
from jaxrec.serving.item_ranker import ItemRanker
from jaxrec.serving.recommendation import describe, table
from jaxrec.serving.recommender import Recommender
from jaxrec.train.progress import progress_bar
from jaxrec.train.runs import load_run

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; users are given as --user=<id>")
  try:
    print(_write_table() if FLAGS.out else _as_text())
  except (OSError, ValueError) as error:
    sys.exit(process.describe(error))


def _as_text() -> str:
  """Returns the recommendations for the users given by the flags, as text."""
  if FLAGS.all or FLAGS.users_file:
    raise ValueError("--all and --users_file write a table: give --out=recommendations.parquet (or .csv, .jsonl)")
  if ranking_runs.is_ranking_run(FLAGS.workdir):
    return _ranked_by_actions()
  recommender = _recommender()
  options = _options() | {"hold_out": FLAGS.hold_out}
  if FLAGS.histories:
    given = _given_histories(recommender)
    found = recommender.recommend(histories=given, **options)
  else:
    found = recommender.recommend(users=_named_users(recommender.data), **options)
  return "\n\n".join(describe(recommender.data, one, FLAGS.history) for one in found)


def _ranked_by_actions() -> str:
  """Returns the items that users would like best, by a run of generative ranking, as text."""
  ranker, options = _ranker()
  names, history_of = _requested_of_ranker(ranker)
  texts = []
  for name in names:
    history = history_of(name)
    items = ranker.rank_history(history, **options)
    texts.append(ranking_runs.ranking_text(name, items, int(history.lengths[0]), int(history.unknown[0])))
  return "\n\n".join(texts)


def _recommender() -> Recommender:
  if FLAGS.weights:
    raise ValueError("--weights ranks by predicted actions, which only a ranking run has")
  return load(FLAGS.workdir, FLAGS.checkpoint, FLAGS.phase)


def _ranker() -> tuple[ItemRanker, dict]:
  """Returns the ranker of a ranking run and the options of its `rank_history`."""
  if FLAGS.hold_out:
    raise ValueError(
      "a ranking run does not take --hold_out: `jaxrec evaluate` compares its predictions with what users did"
    )
  weights = ranking_runs.parse_weights(FLAGS.weights)
  ranker = ranking_runs.ranker_of(load_run(FLAGS.workdir, FLAGS.checkpoint, FLAGS.phase))
  weights = dict(ranker.check_weights(weights))
  candidates = ranker.items_of(FLAGS.domain)
  return ranker, {
    "candidates": candidates, "weights": weights, "k": FLAGS.k, "exclude_seen": FLAGS.exclude_seen, "at": FLAGS.at
  }  # fmt: skip


def _write_table() -> str:
  """Writes the table, part by part, and returns what to tell the user."""
  if FLAGS.hold_out:
    raise ValueError("--hold_out prints ranks as text; do not give --out")
  is_ranking = ranking_runs.is_ranking_run(FLAGS.workdir)
  names, identity, table_of = _tables_of_actions() if is_ranking else _tables_of_items()
  count = len(names)
  identity |= {"part_size": FLAGS.part_size, "users": zlib.crc32("\n".join(names).encode())}
  parts = PartFiles(FLAGS.out, identity)
  starts = range(0, count, FLAGS.part_size)
  spans = {part: (start, min(start + FLAGS.part_size, count)) for part, start in enumerate(starts)}
  missing = {part: span for part, span in spans.items() if not parts.has(part)}
  there = count - sum(end - start for start, end in missing.values())
  bar = progress_bar(total=count, initial=there, unit="user", desc="recommend")
  for part, (start, end) in missing.items():
    parts.write(part, table_of(start, end))
    bar.update(end - start)
  bar.close()
  rows, with_items = parts.finish(len(starts), "user")
  without = len(set(names)) - with_items
  left_out = f" ({without:,} without a row: no item is left for them)" if without else ""
  return f"{count:,} users, {rows:,} recommendations{left_out}: {FLAGS.out}"


def _tables_of_items() -> tuple[list[str], dict, Callable[[int, int], pl.DataFrame]]:
  """Returns the users, what the rows depend on besides them, and a function from a range of users to their rows."""
  recommender = _recommender()
  names, histories_of = _requested(recommender)

  def table_of(start, end):
    histories = histories_of(start, end)
    return table(recommender.data, histories, recommender.best_items(histories, **_options()))

  model = ranking_runs.checksum(recommender.item_vectors())  # Parts of another model are not joined.
  return names, _options() | {"model": model, "histories": _checksum_of_given()}, table_of


def _tables_of_actions() -> tuple[list[str], dict, Callable[[int, int], pl.DataFrame]]:
  """As `_tables_of_items`, of a run of generative ranking."""
  ranker, options = _ranker()
  names, history_of = _requested_of_ranker(ranker)

  def table_of(start, end):
    found = [(user, ranker.rank_history(history_of(user), **options)) for user in names[start:end]]
    return ranking_runs.ranking_table(found, ranker.value_names)

  identity = options | {"candidates": FLAGS.domain, "model": ranking_runs.checksum(ranker.params)}
  return names, identity | {"histories": _checksum_of_given()}, table_of


def _requested_of_ranker(ranker: ItemRanker) -> tuple[list[str], Callable[[str], Histories]]:
  """Returns the users, and a function from one of them to the history."""
  data = ranker.data
  if FLAGS.histories:
    given = read_histories(FLAGS.histories, data, typed=ranker.read_actions)
    return list(given), lambda name: ranker.histories({name: given[name]})
  return _users_of(data), ranker.history_of


def _checksum_of_given() -> int:
  return zlib.crc32(pathlib.Path(FLAGS.histories).read_bytes() if FLAGS.histories else b"")


def _requested(recommender: Recommender) -> tuple[list[str], Callable[[int, int], Histories]]:
  """Returns the users, and a function from a range of them to their histories."""
  data = recommender.data
  if FLAGS.histories:
    given = _given_histories(recommender)
    names = list(given)
    return names, lambda start, end: histories_of_events(data, {name: given[name] for name in names[start:end]})
  names = _users_of(data)
  users = np.array([data.user_index(user) for user in names], np.int64)
  return names, lambda start, end: histories_of_users(data, users[start:end])


def _given_histories(recommender: Recommender) -> dict:
  return read_histories(FLAGS.histories, recommender.data, getattr(recommender.model, "num_actions", 0) > 0)


def _users_of(data: PreparedData) -> list[str]:
  """Returns the users of the data that the flags name, in the spelling of the data."""
  if FLAGS.all:
    users = np.flatnonzero(np.diff(data.offsets))
  else:
    users = np.array([data.user_index(user) for user in _named_users(data)], np.int64)
  return data.users["raw_id"].gather(users).to_list()


def _named_users(data: PreparedData) -> list[str]:
  named = list(FLAGS.user)
  if FLAGS.users_file:
    lines = pathlib.Path(FLAGS.users_file).read_text(encoding="utf-8").splitlines()
    named += [line.strip() for line in lines if line.strip()]
  filled = np.flatnonzero(np.diff(data.offsets))
  drawn = np.random.default_rng(FLAGS.seed).choice(filled, min(FLAGS.random, len(filled)), replace=False)
  named += [data.user_raw_id(user) for user in drawn.tolist()]
  if not named:
    raise ValueError("no user given; use --user=<id>, --random=5, --users_file, --histories, or --all")
  return named


def _options() -> dict:
  return {"k": FLAGS.k, "domain": FLAGS.domain, "exclude_seen": FLAGS.exclude_seen, "at": FLAGS.at}


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  text, number = flags.DEFINE_string, flags.DEFINE_integer
  text("workdir", None, "Workdir of the training run.", flag_values=values)
  flags.DEFINE_multi_string("user", [], "Id of a user in the raw data; repeatable.", flag_values=values)
  number("random", 0, "Number of additional users, drawn at random.", lower_bound=0, flag_values=values)
  number("seed", 0, "Seed of --random.", lower_bound=0, flag_values=values)
  flags.DEFINE_bool("all", False, "All users of the data; needs --out.", flag_values=values)
  text("users_file", None, "Text file with the raw id of a user on each line; needs --out.", flag_values=values)
  text(
    "histories", None, "CSV or Parquet file with the events of users who need not be in the data.", flag_values=values
  )
  text("out", None, "Table to write: .parquet, .csv or .jsonl; default: text on the screen.", flag_values=values)
  number("part_size", 4096, "Users of a part of the table, written together.", lower_bound=1, flag_values=values)
  number("k", 10, "Number of items to recommend.", lower_bound=1, flag_values=values)
  number("at", None, "Time of the request in seconds since 1970; default: each user's last event.", flag_values=values)
  number("history", 10, "Number of latest events to show.", lower_bound=0, flag_values=values)
  flags.DEFINE_list(
    "weights",
    [],
    "Of a ranking run: action=weight of the sum that ranks, such as like=1,seconds=0.01.",
    flag_values=values,
  )
  text("domain", None, "Recommend from this domain only.", flag_values=values)
  flags.DEFINE_bool("hold_out", False, "End histories before the test event and show its rank.", flag_values=values)
  flags.DEFINE_bool("exclude_seen", True, "Recommend no item of the user's history.", flag_values=values)
  flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Checkpoint to load.", flag_values=values)
  flags.DEFINE_enum("phase", None, ["select", "final"], "Phase of the run; default: the last one.", flag_values=values)
  flags.mark_flags_as_required(["workdir"], flag_values=values)
