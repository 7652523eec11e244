"""Recommendations: what a `Recommender` returns for a user, as text with titles and as a table."""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.data.prepared import PreparedData
from jaxrec.data.printable import printable
from jaxrec.serving.histories import Histories

if TYPE_CHECKING:
  import polars as pl

MODEL, POPULARITY = "model", "popularity"


class RecommendedItem(NamedTuple):
  """An item of the raw data, its rank from 1, and its score; scores of different users are not comparable."""

  rank: int
  item: str
  title: str
  domain: str
  score: float


class HeldOut(NamedTuple):
  """The item of a test event that the history did not hold, and its rank among all candidates."""

  item: str
  title: str
  domain: str
  rank: int


@dataclasses.dataclass(frozen=True)
class Recommendation:
  """The recommendations for one user, with the history that they are based on.

  user: id in the raw data, or the given name; None for a new user without one.
  items: best first; fewer than k where there are fewer candidates.
  ranked_by: "model", or "popularity" where the history has no item that the model knows.
  unknown: events of the given history that were skipped because the model does not know their item.
  history: the events that the model could read, oldest first, as columns of one history.
  held_out: the test event, if it was held out.
  """

  user: str | None
  items: tuple[RecommendedItem, ...]
  ranked_by: str
  unknown: int
  history: Histories
  held_out: HeldOut | None = None


class BestItems(NamedTuple):
  """The best items of B histories, as arrays; K columns, padded with item 0 at score -inf.

  is_popular: histories without a known item, for which items are ranked by popularity.
  held_out_rank: rank of each held-out item; None without.
  """

  items: Int[np.ndarray, "B K"]
  scores: Float[np.ndarray, "B K"]
  is_popular: Bool[np.ndarray, " B"]
  held_out_rank: Int[np.ndarray, " B"] | None = None


def table(data: PreparedData, histories: Histories, best: BestItems) -> pl.DataFrame:
  """Returns recommendations as a table: user, rank, item, title, domain, score, ranked_by; a row for each item.

  New users without a name are called by their index.

  Args:
    data: names the items.
    histories: of B users.
    best: their best items.
  """
  import polars as pl

  row, column = np.nonzero(best.items)
  items = data.items[best.items[row, column] - 1]
  users = [str(i) if name is None else name for i, name in enumerate(histories.user)]
  domains = pl.Series(data.domain_names, dtype=pl.String)
  return pl.DataFrame(
    {
      "user": pl.Series(users, dtype=pl.String).gather(row),
      "rank": (column + 1).astype(np.int32),
      "item": items["raw_id"],
      "title": items["title"],
      "domain": domains.gather(items["domain_id"] - 1),
      "score": best.scores[row, column],
      "ranked_by": pl.Series([MODEL, POPULARITY], dtype=pl.String).gather(best.is_popular[row].astype(np.int32)),
    }
  )


def describe(data: PreparedData, recommendation: Recommendation, history: int = 10) -> str:
  """Formats the latest events of a user and the recommended items as two columns of text.

  Line breaks and other characters of titles and ids that do not print are escaped.

  Args:
    data: the prepared data of the recommender.
    recommendation: for one user.
    history: how many of the latest events to show.
  """
  events, titles = recommendation.history, data.item_titles()
  several = data.num_domains > 1
  shown = range(len(events.item_id) - 1, max(len(events.item_id) - history, 0) - 1, -1)
  left = [
    _day(data, events.timestamp[i])
    + printable((f"{data.domain_names[events.domain_id[i] - 1]}: " if several else "") + titles[events.item_id[i]])
    for i in shown
  ]
  chosen = recommendation.held_out
  right = [
    f"{item.rank:3}. {item.score:7.3f}  {_label(item, several)}"
    + " <- chosen next" * (chosen is not None and (item.item, item.domain) == (chosen.item, chosen.domain))
    for item in recommendation.items
  ]
  heading = f"{len(left)} of {len(events.item_id)} events, newest first"
  ranked = "  recommended" if recommendation.ranked_by == MODEL else "  no known item in the history: the most popular"
  name = "A new user" if recommendation.user is None else f"User {recommendation.user}"
  skipped = f" ({recommendation.unknown} events of unknown items skipped)" if recommendation.unknown else ""
  lines = [printable(name + skipped), *_columns([heading, *left], [ranked, *right])]
  if chosen is not None:
    lines.append(printable(f"  chosen next: {_label(chosen, several)}, rank {chosen.rank}"))
  return "\n".join(lines)


def _label(item: RecommendedItem | HeldOut, several: bool) -> str:
  return printable((f"{item.domain}: " if several else "") + (item.title or item.item))


def _day(data, timestamp):
  if not data.has_timestamps:
    return ""
  return datetime.datetime.fromtimestamp(int(timestamp), datetime.UTC).strftime("%Y-%m-%d  ")


def _columns(left, right, width=56):
  """Joins two lists of lines into two columns; lines of the left column that exceed `width` are truncated."""
  num_lines = max(len(left), len(right))
  left, right = left + [""] * (num_lines - len(left)), right + [""] * (num_lines - len(right))
  truncated = [text if len(text) <= width else text[: width - 3] + "..." for text in left]
  return [f"  {a:{width}}  {b}".rstrip() for a, b in zip(truncated, right, strict=True)]
