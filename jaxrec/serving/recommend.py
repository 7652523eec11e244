"""Recommends items to users of the prepared data, and reads the result back as titles."""

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
from jaxrec.evaluation.catalogue import Catalogue
from jaxrec.evaluation.model import last_queries


@dataclasses.dataclass(frozen=True)
class Recommendation:
  """What one user did and what the model would show them next.

  user: what the raw data call the user.
  history: indices of the user's events that the model could read, oldest first.
  items: recommended items, best first; fewer than asked for where candidates ran out.
  scores: of those items.
  held_out: the item that the user chose next, where the test event was held out.
  held_out_rank: its rank among all candidates.
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
  """Returns the k best items for each user, asked at the time of their last event.

  Args:
    model: Linen module; see `jaxrec.models`.
    params: its parameters.
    data: the prepared data that the model was trained on.
    config: `config.data` says how histories are cropped.
    users: 0-based users; `data.user_index` finds them by raw id.
    k: how many items.
    domain: name of the domain to recommend from; None: all. A model that asks for a domain is then told that of the
      test event, with `hold_out`.
    hold_out: stop before the user's test event, and tell its rank, instead of reading the whole history.
    exclude_seen: recommend no item that the user has met.

  Raises:
    ValueError: an unknown user or domain, a user without events, or without a test event where one is to be held out;
      no domain for a model that asks for one.
  """
  if domain is None and not hold_out and getattr(model, "needs_target_domain", False):
    raise ValueError(f"the model predicts for the domain that is asked for; name one of {', '.join(data.domain_names)}")
  number = None if domain is None else domain_number(data, domain)
  asked = _at_the_time_of_asking(data, users, number, hold_out)
  queries_of = _compiled_queries(model)
  catalogue = Catalogue(model.apply({"params": params}, method="item_vectors").astype(jnp.float32))
  item_domain = None if number is None else data.item_domain()
  found: dict[int, Recommendation] = {}
  for batch in evaluation_batches(asked, TEST, min(len(users), config.eval.batch_size), config.data.max_length,
                                  config.data.task, request_time=config.data.request_time,
                                  reveal_domain=config.data.reveal_domain):  # fmt: skip
    rows = len(batch.user)
    options = {
      "seen_items": batch.seen_items if exclude_seen else None,
      "item_domain": item_domain,
    }
    queries = queries_of(params, batch.batch)  # [B, M]
    wanted = None if number is None else np.full(rows, number, np.int32)
    scores, items = catalogue.top_k(queries, min(k, data.num_items), domain=wanted, **options)
    ranks = catalogue.target_ranks(queries, batch.target_item, target_domain=wanted, **options)
    for row, place in enumerate(batch.user):
      if place >= 0:
        user = users[place]
        chosen = (int(batch.target_item[row]), int(ranks[row])) if hold_out else (None, None)
        found[place] = _recommendation(data, user, hold_out, np.asarray(items[row]), np.asarray(scores[row]), *chosen)
  return [found[place] for place in range(len(users))]


def domain_number(data: PreparedData, name: str) -> int:
  """Returns the number 1..C of a domain.

  Raises:
    ValueError: there is none of that name.

  >>> domain_number(PreparedData.from_columns(user=[0, 0], item_id=[1, 2], domain_id=[1, 2]), "domain 2")
  2
  """
  if name not in data.domain_names:
    raise ValueError(f"domain={name!r} is unknown; the data has {', '.join(map(repr, data.domain_names))}")
  return data.domain_names.index(name) + 1


def describe(data: PreparedData, recommendation: Recommendation, history: int = 10) -> str:
  """Returns a user's latest events and the recommended items as two columns of text.

  Args:
    data: what was recommended from.
    recommendation: one result of `recommend`.
    history: how many of the latest events to show.
  """
  titles, domains = data.item_titles(), data.item_domain()

  def label(item, domain):
    name = f"{data.domain_names[domain - 1]}: " if data.num_domains > 1 else ""
    return f"{name}{titles[item]}"

  events = recommendation.history[-history:][::-1] if history else recommendation.history[:0]
  left = [_day(data, event) + label(data.item_id[event], data.domain_id[event]) for event in events]
  right = [
    f"{place:3}. {score:7.3f}  {label(item, domains[item])}" + " <- chosen next" * (item == recommendation.held_out)
    for place, (item, score) in enumerate(zip(recommendation.items, recommendation.scores, strict=True), start=1)
  ]
  shown = f"{len(left)} of {len(recommendation.history)} events, newest first"
  lines = [f"User {recommendation.user}", *_columns([shown, *left], ["  recommended", *right])]
  if recommendation.held_out is not None:
    item = recommendation.held_out
    lines.append(f"  chosen next: {label(item, domains[item])}, rank {recommendation.held_out_rank}")
  return "\n".join(lines)


@functools.lru_cache(maxsize=8)
def _compiled_queries(model):
  return jax.jit(functools.partial(last_queries, model))


def _at_the_time_of_asking(data, users, domain, hold_out):
  """Returns data of these users alone, whose one test event is what is asked for.

  Where nothing is held out, that event is made up: it stands for the unknown, at the time of the last event. The model
  never reads it; it only tells where to ask.
  """
  if not len(users):
    raise ValueError("users is empty; name at least one")
  parts = {name: [] for name in ("item_id", "domain_id", "timestamp", "action", "split")}
  lengths = []
  for user in users:
    events = history_of(data, user, hold_out)
    last = events[-1]
    following = _test_event(data, user) if hold_out else last
    asked = np.append(events, following)
    lengths.append(len(asked))
    for name in ("item_id", "domain_id", "timestamp", "action"):
      parts[name].append(getattr(data, name)[asked])
    if domain is not None:
      parts["domain_id"][-1][-1] = domain
    parts["split"].append(np.append(np.zeros(len(events), np.uint8), np.uint8(TEST)))
  columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
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
  """Returns the indices of the user's events: all of them, or those before the test event.

  Raises:
    ValueError: there is no such user or no such event.
  """
  span = data.user_slice(user)
  events = np.arange(span.start, span.stop)
  if hold_out:
    events = events[events < _test_event(data, user)]
  if not len(events):
    raise ValueError(f"user {data.user_raw_id(user)!r} has no event to go by")
  return events


def _test_event(data, user):
  span = data.user_slice(user)
  tests = span.start + np.flatnonzero(np.asarray(data.split[span]) == TEST)
  if not len(tests):
    raise ValueError(f"user {data.user_raw_id(user)!r} has no test event to hold out; ask without hold_out")
  return int(tests[0])


def _recommendation(data, user, hold_out, items, scores, held_out, rank):
  real = items > 0
  history = history_of(data, user, hold_out)
  return Recommendation(data.user_raw_id(user), history, items[real].tolist(), scores[real].tolist(), held_out, rank)


def _day(data, event):
  if not data.has_timestamps:
    return ""
  return datetime.datetime.fromtimestamp(int(data.timestamp[event]), datetime.UTC).strftime("%Y-%m-%d  ")


def _columns(left, right, width=56):
  """Lines of two texts side by side; what is too wide on the left is cut."""
  rows = max(len(left), len(right))
  left, right = left + [""] * (rows - len(left)), right + [""] * (rows - len(right))
  cut = [text if len(text) <= width else text[: width - 3] + "..." for text in left]
  return [f"  {a:{width}}  {b}".rstrip() for a, b in zip(cut, right, strict=True)]
