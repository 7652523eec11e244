"""Writes the vectors of all items and users of a run, for search in an engine of your own.

    jaxrec export-vectors --workdir=runs/shop --out=vectors

Writes <out>/items.parquet (item, title, domain, vector), <out>/users.parquet (user, vector), and the same vectors as
NumPy arrays in the same order, <out>/items.npy and <out>/users.npy. The score of an item for a user is the dot product
of their vectors. Files appear complete or not at all.
"""

from __future__ import annotations

import os
import pathlib
import sys

import numpy as np
import polars as pl
from absl import app, flags

from jaxrec.cli.process import describe
from jaxrec.recommenders import load
from jaxrec.serving.histories import histories_of_users
from jaxrec.serving.recommender import Recommender
from jaxrec.train.progress import progress_bar

FLAGS = flags.FLAGS
_USERS_AT_A_TIME = 4096


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  try:
    recommender = load(FLAGS.workdir, FLAGS.checkpoint, FLAGS.phase)
    print(export(recommender, pathlib.Path(FLAGS.out), FLAGS.users, FLAGS.domain))
  except (OSError, ValueError) as error:
    sys.exit(describe(error))


def export(recommender: Recommender, out: pathlib.Path, users: bool, domain: str | None) -> str:
  """Writes the files and returns what to tell the user.

  Args:
    recommender: model and data.
    out: folder of the files.
    users: whether to write the vectors of users too.
    domain: target domain of the users' vectors, for models that need one.
  """
  data = recommender.data
  out.mkdir(parents=True, exist_ok=True)
  names = pl.Series(data.domain_names, dtype=pl.String).gather(data.items["domain_id"] - 1)
  items = pl.DataFrame({"item": data.items["raw_id"], "title": data.items["title"], "domain": names})
  _write(out, "items", items, recommender.item_vectors())
  if users:
    filled = np.flatnonzero(np.diff(data.offsets))
    ids = pl.DataFrame({"user": data.users["raw_id"].gather(filled)})
    _write(out, "users", ids, _user_vectors(recommender, filled, domain))
  return f"{len(items):,} items" + (f", {len(filled):,} users" if users else "") + f": {out}"


def _user_vectors(recommender, users, domain):
  bar = progress_bar(total=len(users), unit="user", desc="encode")
  parts = []
  for start in range(0, len(users), _USERS_AT_A_TIME):
    some = users[start : start + _USERS_AT_A_TIME]
    parts.append(recommender.vectors_of(histories_of_users(recommender.data, some), domain=domain))
    bar.update(len(some))
  bar.close()
  return np.concatenate(parts)


def _write(out, name, table, vectors):
  """Writes a table with its vectors, and the vectors alone."""
  width = vectors.shape[1]
  table = table.with_columns(vector=pl.Series(vectors, dtype=pl.Array(pl.Float32, width)))
  table.write_parquet(out / f"{name}.parquet.tmp")
  with open(out / f"{name}.npy.tmp", "wb") as file:
    np.save(file, vectors)
  for suffix in ("parquet", "npy"):
    os.replace(out / f"{name}.{suffix}.tmp", out / f"{name}.{suffix}")


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_string("workdir", None, "Workdir of the training run.", flag_values=values)
  flags.DEFINE_string("out", None, "Folder of the files.", flag_values=values)
  flags.DEFINE_bool("users", True, "Write the vectors of users too.", flag_values=values)
  flags.DEFINE_string("domain", None, "Target domain, for models that need one.", flag_values=values)
  flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Checkpoint to load.", flag_values=values)
  flags.DEFINE_enum("phase", None, ["select", "final"], "Phase of the run; default: the last one.", flag_values=values)
  flags.mark_flags_as_required(["workdir", "out"], flag_values=values)
