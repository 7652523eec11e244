"""Interaction logs of a few events, written as text."""

import polars as pl

from jaxrec.data.preparation.filters import PrepareOptions
from jaxrec.data.preparation.prepare import prepare_log
from jaxrec.data.sources import InteractionLog


def log_of(text, **fields):
  """An InteractionLog of events `user item time [domain]` separated by commas."""
  rows = [word.split() for word in text.split(",")]
  columns = {"user": [r[0] for r in rows], "item": [r[1] for r in rows], "timestamp": [int(r[2]) for r in rows]}
  if len(rows[0]) > 3:
    columns["domain"] = [r[3] for r in rows]
  return InteractionLog(pl.DataFrame(columns), **fields)


def prepared(text, fields=(), base=None, **options):
  """The prepared data of such a log, onto those of `base`."""
  return prepare_log(log_of(text, **dict(fields)), PrepareOptions(**options), source="test", base=base)
