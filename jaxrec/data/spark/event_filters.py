"""Filters of events that need more than one event: duplicates, and the k-core of numbered events."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxrec.data.preparation.filters import PrepareOptions
from jaxrec.data.spark.event_pieces import PLACE
from jaxrec.data.spark.scratch import Scratch, spark_errors

if TYPE_CHECKING:
  from pyspark.sql import Column, DataFrame


def by_time(events: DataFrame) -> list[str]:
  """Returns the columns that put events of a user in order: the time, and the place in the files for equal ones."""
  return ["timestamp", PLACE] if "timestamp" in events.columns else [PLACE]


def without_duplicates(scratch: Scratch, events: DataFrame, options: PrepareOptions) -> tuple[DataFrame, int]:
  """Returns the events, one for each user and item as `duplicates` says, and how many are dropped."""
  from pyspark.sql import functions as F

  if options.duplicates == "keep":
    return events, 0
  keys = ["user", "item"]
  if options.item_identity == "per_domain" and "domain" in events.columns:
    keys.append("domain")
  order = by_time(events)
  others = [name for name in events.columns if name not in (*keys, *order)]
  one = F.min if options.duplicates == "first" else F.max
  chosen = events.groupBy(*keys).agg(one(F.struct(*order, *others)).alias("event")).select(*keys, "event.*")
  kept = scratch.settled(chosen.select(*events.columns))
  return kept, events.count() - kept.count()


def k_core(
  scratch: Scratch,
  events: DataFrame,
  num_domains: int,
  options: PrepareOptions,
  drop: Callable[[str, int], None],
  report: Callable[[str], None],
) -> DataFrame:
  """Returns the events of users and items with enough events, as `jaxrec.data.preparation.filters.k_core` does.

  Args:
    scratch: for the events of each round.
    events: columns `user`, `item` and `domain` are integers.
    num_domains: C.
    options: the limits.
    drop: called with a reason and the number of events that are dropped for it; raises where none is left.
    report: called with a line of text.
  """
  rounds, is_done = 0, False
  rules = (
    ("users with too few events", "user", options.min_user_events, None),
    ("items with too few events", "item", options.min_item_events, None),
    ("users with too few events in a domain", "user", options.min_domain_events, num_domains),
  )
  while not is_done:
    is_done = True
    for reason, key, minimum, domains in rules:
      if minimum <= (domains is None):  # Every user and item has an event.
        continue
      few, number = _with_too_few(scratch, events, key, minimum, domains)
      if number:
        is_done = False
        drop(reason, number)
        events = scratch.settled(events.join(few, key, "left_anti"))
    rounds += not is_done
  if rounds:
    report(f"{rounds} round(s) of filtering leave {events.count():,} events")
  return events


def _with_too_few(
  scratch: Scratch, events: DataFrame, key: str, minimum: int, domains: int | None
) -> tuple[DataFrame, int]:
  """Returns the users or items with too few events, and how many events they have."""
  from pyspark.sql import functions as F

  number, good = F.sum("n").alias("n"), F.sum((F.col("n") >= minimum).cast("int")).alias("good")
  if domains is None:
    few = _count(events, F.col(key)).where(F.col("n") < minimum)
  else:
    few = _count(events, F.col(key), F.col("domain")).groupBy(key).agg(number, good).where(F.col("good") < domains)
  few = scratch.settled(few.select(key, "n"))
  with spark_errors():
    return few.select(key), few.agg(number).first()[0] or 0


def _count(events: DataFrame, *keys: Column) -> Any:
  from pyspark.sql import functions as F

  return events.groupBy(*keys).agg(F.count("*").alias("n"))
