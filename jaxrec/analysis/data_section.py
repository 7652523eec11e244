"""Prepared data on a page: sizes, domains, lengths of the histories, popularity of the items."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int

from jaxrec.analysis import html_page as page
from jaxrec.analysis.run_figures import draw_histogram, draw_lines
from jaxrec.data.action_columns import PREFIX
from jaxrec.data.prepared import PreparedData

MOST_EVENTS = 50_000_000  # To count them by item and domain takes about a second.
_MOST_BARS = 40
_QUANTILES = {"least": 0, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "most": 1}


def data_section(data: PreparedData) -> str:
  """Returns the section; without the counts of each item and domain where there are more than `MOST_EVENTS` events."""
  lengths = user_lengths(data)
  figures = [_length_figure(lengths)]
  quantiles = [f"{np.quantile(lengths, q):,.0f}" for q in _QUANTILES.values()]
  tables, domains = [page.table("Events of a user", [list(_QUANTILES), quantiles], texts=0)], ""
  if data.num_events <= MOST_EVENTS:
    counts = np.sort(np.bincount(data.item_id, minlength=data.num_items + 1)[1:])[::-1]
    figures.append(_popularity_figure(counts))
    tables.append(page.table("Popularity of items", _popularity_rows(counts)))
    domains = page.table("Domains", _domain_rows(data)) if data.num_domains > 1 else ""
  drawn = page.side_by_side(*figures)
  numbers = page.folded("Numbers", *tables, is_open=not drawn)
  return page.section("Data", page.facts(_facts(data)), domains, drawn, numbers)


def user_lengths(data: PreparedData) -> Int[np.ndarray, " U"]:
  """Returns the number of events of each user who has any."""
  lengths = np.diff(data.offsets)
  return lengths[lengths > 0]


def _facts(data: PreparedData) -> dict[str, str]:
  facts = {"source": str(data.meta["source"]), "split": str(data.meta["split"].get("kind", "given"))}
  if data.has_timestamps:
    ends = np.array([data.timestamp.min(), data.timestamp.max()], "datetime64[s]").astype("datetime64[D]")
    facts |= {"first event": str(ends[0]), "last event": str(ends[1])}
  facts |= {column.removeprefix(PREFIX): ", ".join(names[:_MOST_BARS]) for column, names in data.action_names.items()}
  dropped = data.meta.get("counts", {}).get("dropped", {})
  return facts | {f"dropped: {reason}": f"{count:,}" for reason, count in dropped.items()}


def _domain_rows(data: PreparedData) -> list[list[str]]:
  seen = np.zeros((data.num_users, data.num_domains + 1), bool)
  seen[np.repeat(np.arange(data.num_users), np.diff(data.offsets)), data.domain_id] = True
  items, events = (np.bincount(ids, minlength=seen.shape[1]) for ids in (data.item_domain(), data.domain_id))
  columns = seen.sum(axis=0), items, events
  largest_first = (np.argsort(-events[1:], kind="stable") + 1).tolist()
  rows = [[data.domain_names[d - 1], *(f"{column[d]:,}" for column in columns)] for d in largest_first]
  return [["domain", "users", "items", "events"], *rows]


def _length_figure(lengths):
  top = max(int(np.quantile(lengths, 0.99)), 1)
  width = math.ceil(top / _MOST_BARS)
  edges = np.arange(0, top + width, width) + 0.5
  counts = np.histogram(np.minimum(lengths, edges[-1]), edges)[0]
  more, most = np.mean(lengths > edges[-1]), lengths.max()
  note = f"The last bar also holds the {more:.1%} of the users with more events, up to {most:,}." if more else ""
  drawing = draw_histogram("lengths", edges.tolist(), counts.tolist(), "events of a user", "users")
  return page.figure("Lengths of histories", drawing, note)


def _popularity_figure(counts):
  rank = np.unique(np.geomspace(1, len(counts), 200).astype(int))
  rank = rank[counts[rank - 1] > 0]
  line = ("items", rank.tolist(), counts[rank - 1].tolist())
  drawing = draw_lines("popularity", [line], "items, the most popular first", "events of an item", log=True)
  half = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)) + 1
  note = f"Half of the events are of {half:,} of the {len(counts):,} items."
  return page.figure("Popularity of items", drawing, note)


def _popularity_rows(counts):
  sizes = {share: math.ceil(share * len(counts)) for share in (0.01, 0.05, 0.1, 0.2, 0.5)}
  shares = {share: counts[:size].sum() / counts.sum() for share, size in sizes.items()}
  rows = [[f"{share:.0%}", f"{size:,}", f"{shares[share]:.1%}"] for share, size in sizes.items()]
  return [["most popular", "items", "share of the events"], *rows]
