"""Recommendations for users of prepared data, as item ids and as text with titles."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.data.prepared import TEST, PreparedData
from jaxrec.data.printable import printable
from jaxrec.evaluation.catalogue import Catalogue
from jaxrec.evaluation.model import last_queries


@dataclasses.dataclass(frozen=True)
class Recommendation:
  """The recommendations for one user, with the history that they are based on.

  user: id of the user in the raw data.
  history: indices of the user's events that the model read, oldest first.
  items: ids of the recommended items, best first; fewer than k if there are fewer candidates.
  scores: scores of these items.
  held_out: item of the test event if that was held out, else None.
  held_out_rank: rank of that item among all candidates.
  """

  user: str
  history: np.ndarray
  items: list[int]
  scores: list[float]
  held_out: int | None = None
  held_out_rank: int | None = None


def recommend(
  model: nn.Module,
  params: Any,
  data: PreparedData,
  config: ConfigDict,
  users: Sequence[int],
  *,
  k: int = 10,
  domain: str | None = None,
  hold_out: bool = False,
  exclude_seen: bool = True,
) -> list[Recommendation]:
  """Returns the k best items for each user, in the order of `users`; the target time is that of the last event.

  Args:
    model: Linen module; see `jaxrec.models`.
    params: parameters of the model.
    data: the prepared data that the model was trained on.
    config: `config.data` says how histories are cropped.
    users: 0-based indices of users; `data.user_index` finds one by its raw id.
    k: how many items to recommend.
    domain: name of the domain to recommend from; None: all domains. Without it, a model that needs a target domain is
      given the domain of the held-out event.
    hold_out: if True, the history ends before the user's test event, and the rank of that event is returned.
    exclude_seen: if True, items in the user's history are no candidates.

  Raises:
    ValueError: an unknown user or domain; a user without events, or without a test event to hold out; no domain for a
      model that needs a target domain.
  """
  if domain is None and not hold_out and getattr(model, "needs_target_domain", False):
    names = ", ".join(map(printable, data.domain_names))
    raise ValueError(f"the model needs a target domain; give domain=, one of {names}")
  target_domain = None if domain is None else domain_id(data, domain)
  requests = _with_target_events(data, users, target_domain, hold_out)
  queries_of = _compiled_queries(model)
  vectors = model.apply({"params": params}, method="item_vectors").astype(jnp.float32)
  if vectors.shape[0] <= data.num_items:
    raise ValueError(
      f"the model has {vectors.shape[0] - 1} items, the data {data.num_items}: they don't belong together"
    )
  catalogue = Catalogue(vectors[: data.num_items + 1])  # Rows above are kept free for items to come.
  item_domain = None if target_domain is None else data.item_domain()
  found: dict[int, Recommendation] = {}
  for batch in evaluation_batches(requests, TEST, min(len(users), config.eval.batch_size), config.data.max_length,
                                  config.data.task, request_time=config.data.request_time,
                                  reveal_domain=config.data.reveal_domain):  # fmt: skip
    options = {"seen_items": batch.seen_items if exclude_seen else None, "item_domain": item_domain}
    queries = queries_of(params, batch.batch)  # [B, M]
    domains = None if target_domain is None else np.full(len(batch.user), target_domain, np.int32)
    scores, items = catalogue.top_k(queries, min(k, data.num_items), domain=domains, **options)
    ranks = catalogue.target_ranks(queries, batch.target_item, target_domain=domains, **options)
    for row, index in enumerate(batch.user):
      if index >= 0:
        held_out = (int(batch.target_item[row]), int(ranks[row])) if hold_out else (None, None)
        top = np.asarray(items[row]), np.asarray(scores[row])
        found[index] = _recommendation(data, users[index], hold_out, *top, *held_out)
  return [found[index] for index in range(len(users))]


def domain_id(data: PreparedData, name: str) -> int:
  """Returns the id 1..C of a domain.

  Raises:
    ValueError: no domain has that name.

  >>> domain_id(PreparedData.from_columns(user=[0, 0], item_id=[1, 2], domain_id=[1, 2]), "domain 2")
  2
  """
  if name not in data.domain_names:
    raise ValueError(f"domain={name!r} is unknown; the data has {', '.join(map(repr, data.domain_names))}")
  return data.domain_names.index(name) + 1


def describe(data: PreparedData, recommendation: Recommendation, history: int = 10) -> str:
  """Formats the latest events of a user and the recommended items as two columns of text.

  Line breaks and other characters of titles and ids that do not print are escaped.

  Args:
    data: the prepared data that was given to `recommend`.
    recommendation: one result of `recommend`.
    history: how many of the latest events to show.
  """
  titles, domains = data.item_titles(), data.item_domain()

  def label(item, domain):
    name = f"{data.domain_names[domain - 1]}: " if data.num_domains > 1 else ""
    return printable(f"{name}{titles[item]}")

  events = recommendation.history[-history:][::-1] if history else recommendation.history[:0]
  left = [_day(data, event) + label(data.item_id[event], data.domain_id[event]) for event in events]
  right = [
    f"{rank:3}. {score:7.3f}  {label(item, domains[item])}" + " <- chosen next" * (item == recommendation.held_out)
    for rank, (item, score) in enumerate(zip(recommendation.items, recommendation.scores, strict=True), start=1)
  ]
  shown = f"{len(left)} of {len(recommendation.history)} events, newest first"
  lines = [printable(f"User {recommendation.user}"), *_columns([shown, *left], ["  recommended", *right])]
  if recommendation.held_out is not None:
    item = recommendation.held_out
    lines.append(f"  chosen next: {label(item, domains[item])}, rank {recommendation.held_out_rank}")
  return "\n".join(lines)


@functools.lru_cache(maxsize=8)
def _compiled_queries(model):
  return jax.jit(functools.partial(last_queries, model))


def _with_target_events(data, users, target_domain, hold_out):
  """Returns the data of these users only, with exactly one test event each: the target of the query.

  If no event is held out, the target is a copy of the last event. The model does not read its item; it only sets the
  time and the domain of the query.
  """
  if not len(users):
    raise ValueError("users is empty; give at least one")
  arrays = {name: [] for name in ("item_id", "domain_id", "timestamp", "action", "split")}
  lengths = []
  for user in users:
    history = history_of(data, user, hold_out)
    events = np.append(history, _test_event(data, user) if hold_out else history[-1])
    lengths.append(len(events))
    for name in ("item_id", "domain_id", "timestamp", "action"):
      arrays[name].append(getattr(data, name)[events])
    if target_domain is not None:
      arrays["domain_id"][-1][-1] = target_domain
    arrays["split"].append(np.append(np.zeros(len(history), np.uint8), np.uint8(TEST)))
  columns = {name: np.concatenate(parts) for name, parts in arrays.items()}
  if not data.has_timestamps:
    columns["timestamp"] = None
  return PreparedData.from_columns(
    **columns,
    offsets=np.cumsum([0, *lengths]),
    num_items=data.num_items,
    domain_names=data.domain_names,
    item_domain=data.item_domain(),
  )


def history_of(data: PreparedData, user: int, hold_out: bool) -> np.ndarray:
  """Returns the indices of the user's events: all, or with `hold_out` those before the test event.

  Raises:
    ValueError: an unknown user, no event, or no test event to hold out.
  """
  span = data.user_slice(user)
  events = np.arange(span.start, span.stop)
  if hold_out:
    events = events[events < _test_event(data, user)]
  if not len(events):
    raise ValueError(f"user {data.user_raw_id(user)!r} has no event before the target; choose a user with a history")
  return events


def _test_event(data, user):
  span = data.user_slice(user)
  tests = span.start + np.flatnonzero(np.asarray(data.split[span]) == TEST)
  if not len(tests):
    raise ValueError(f"user {data.user_raw_id(user)!r} has no test event to hold out; use hold_out=False")
  return int(tests[0])


def _recommendation(data, user, hold_out, items, scores, held_out, rank):
  is_item = items > 0
  lists = items[is_item].tolist(), scores[is_item].tolist()
  return Recommendation(data.user_raw_id(user), history_of(data, user, hold_out), *lists, held_out, rank)


def _day(data, event):
  if not data.has_timestamps:
    return ""
  return datetime.datetime.fromtimestamp(int(data.timestamp[event]), datetime.UTC).strftime("%Y-%m-%d  ")


def _columns(left, right, width=56):
  """Joins two lists of lines into two columns; lines of the left column that exceed `width` are truncated."""
  num_lines = max(len(left), len(right))
  left, right = left + [""] * (num_lines - len(left)), right + [""] * (num_lines - len(right))
  truncated = [text if len(text) <= width else text[: width - 3] + "..." for text in left]
  return [f"  {a:{width}}  {b}".rstrip() for a, b in zip(truncated, right, strict=True)]
