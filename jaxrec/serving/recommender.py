"""Recommendations by a trained model, for users of its data and for new users; raw ids in, raw ids and titles out.

    recommender = jaxrec.load("runs/shop")
    recommender.recommend(users=["u17"], k=10)
    recommender.recommend(histories=[[("tea", 1700000000), ("jam", 1700000060)]], domain="food")

Each history is encoded in one pass. Batches have a few fixed shapes, so that requests of many sizes share compiled
programs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxrec.batches import AnyArray
from jaxrec.data.batches.evaluation import EvaluationBatch, EvaluationBatches, evaluation_batches
from jaxrec.data.prepared import TEST, PreparedData
from jaxrec.data.printable import printable
from jaxrec.evaluation.catalogue import Catalogue
from jaxrec.evaluation.model import last_queries
from jaxrec.serving.given_events import raw_id, request_seconds
from jaxrec.serving.histories import Histories, histories_of_events, histories_of_users, test_events
from jaxrec.serving.recommendation import MODEL, POPULARITY, BestItems, HeldOut, Recommendation, RecommendedItem

Events = Sequence[Sequence[Any]] | Mapping[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Recommender:
  """A trained model, its item catalogue, and the data that name its items and users.

  model: of `jaxrec.models`.
  params: its parameters, the whole item table among them.
  data: the prepared data that it was trained on.
  config: `config.data` says how histories are cropped, `config.eval.batch_size` how many are encoded at a time.

  Times of events and requests are seconds or datetimes.

  >>> import jax
  >>> from jaxrec.data.generators.synthetic import synthetic_data
  >>> from jaxrec.batches import next_item_batch
  >>> from jaxrec.models import SASRec
  >>> from jaxrec.train.config import default_config
  >>> data = synthetic_data(num_users=8, num_items=24)
  >>> model = SASRec(num_items=24, width=8, max_positions=200, num_layers=1, hidden=8)
  >>> params = model.init(jax.random.key(0), next_item_batch(np.array([[1, 2]])))["params"]
  >>> found = Recommender(model, params, data, default_config()).similar("3", k=2)  # By the vectors of the items.
  >>> [item.rank for item in found]
  [1, 2]
  """

  model: nn.Module
  params: Any
  data: PreparedData
  config: ConfigDict

  def recommend(
    self,
    *,
    users: Sequence[str | int] | None = None,
    histories: Events | None = None,
    k: int = 10,
    domain: str | None = None,
    at: Any = None,
    exclude_seen: bool = True,
    allowed: Iterable[str | int] | None = None,
    hold_out: bool = False,
    unknown: str = "skip",
  ) -> list[Recommendation]:
    """Returns the k best items for each user, in the order in which they are given.

    Args:
      users: raw ids of users of the data. Give either these or `histories`.
      histories: lists of events `(item, time[, domain[, action]])`, oldest first; see `histories_of_events`. Models
        with `num_actions` read the actions.
      k: how many items; fewer are returned where there are fewer candidates.
      domain: name of the domain to recommend from; None: all. Required by models that need a target domain, except with
        `hold_out`, where it is that of the test event.
      at: time of the request in seconds since 1970, or a list with one for each user; None: that of the last event.
      exclude_seen: whether items of the history are no candidates.
      allowed: raw ids of the items to choose from; None: all. Unknown ones are logged and ignored.
      hold_out: histories of `users` end before the test event, and its rank is returned.
      unknown: "skip" counts events of `histories` whose item is unknown; "raise" refuses them.

    A history without an item that the model knows gets the most popular items; `ranked_by` says so.

    Raises:
      ValueError: an unknown user, domain or event form; no domain for a model that needs one; no allowed item is known.
    """
    found = self._histories(users, histories, unknown, hold_out)
    held_out = test_events(self.data, self._users(users)) if hold_out else None
    options = {"domain": domain, "at": at, "exclude_seen": exclude_seen, "allowed": allowed}
    best = self.best_items(found, k, **options, held_out=held_out)
    return [self._recommendation(found, best, row, held_out) for row in range(len(found))]

  def best_items(
    self,
    histories: Histories,
    k: int = 10,
    *,
    domain: str | None = None,
    at: Any = None,
    exclude_seen: bool = True,
    allowed: Iterable[str | int] | None = None,
    held_out: np.ndarray | None = None,
  ) -> BestItems:
    """Returns the k best items of each history, as ids of the data; `recommend` without names and titles.

    Args:
      histories: of `histories_of_users` or `histories_of_events`.
      k, domain, at, exclude_seen, allowed: as in `recommend`.
      held_out: [B] index of the event of the data to rank for each history; None: none.

    Raises:
      ValueError: as `recommend`.
    """
    if k < 1:
      raise ValueError(f"{k=} must be at least 1")
    choice = _Candidates(self, domain, allowed)
    width = min(k, len(choice.items) - 1)
    items, scores = np.zeros((len(histories), width), np.int32), np.full((len(histories), width), -np.inf, np.float32)
    ranks = None if held_out is None else np.zeros(len(histories), np.int32)
    for rows, batch in self._batches(histories, domain, at, held_out):
      seen = choice.index[batch.seen_items] if exclude_seen else None
      options = {"seen_items": seen, "item_domain": choice.item_domain}
      domains = None if choice.domain is None else np.full(len(batch.user), choice.domain, np.int32)
      queries = self._queries(batch, [histories.user[row] for row in rows])
      best, index = choice.catalogue.top_k(queries, width, domain=domains, **options)
      is_user = batch.user >= 0
      items[rows], scores[rows] = choice.items[np.asarray(index)[is_user]], np.asarray(best)[is_user]
      if ranks is not None:
        target = choice.index[batch.target_item]
        ranks[rows] = np.asarray(choice.catalogue.target_ranks(queries, target, target_domain=domains, **options))[
          is_user
        ]
    is_popular = histories.lengths == 0
    if is_popular.any():
      items[is_popular], scores[is_popular] = choice.popular(width)
    return BestItems(items, scores, is_popular, ranks)

  def score(
    self,
    items: Sequence[str | int],
    *,
    users: Sequence[str | int] | None = None,
    histories: Events | None = None,
    domain: str | None = None,
    at: Any = None,
  ) -> Float[np.ndarray, "B K"]:
    """Returns the score of each item for each user; NaN for histories without a known item.

    Args:
      items: K raw ids.
      users, histories, domain, at: as in `recommend`.

    Raises:
      ValueError: an unknown item or user.
    """
    index = np.array([self._item(item) for item in items], np.int64)
    found = self._histories(users, histories)
    scores = self.vectors_of(found, domain=domain, at=at) @ self._vectors[index].T  # [B, K]
    return np.where(found.lengths[:, None] > 0, scores, np.nan)

  def similar(self, item: str | int, k: int = 10, domain: str | None = None) -> tuple[RecommendedItem, ...]:
    """Returns the k items whose vectors have the largest cosine similarity with that of an item, without itself.

    Args:
      item: raw id.
      k: how many items.
      domain: name of the domain of the results; None: all.

    Raises:
      ValueError: an unknown item or domain.
    """
    index = self._item(item)
    norms = np.linalg.norm(self._vectors, axis=1, keepdims=True)
    vectors = self._vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    options = (
      {} if domain is None else {"item_domain": self.data.item_domain(), "domain": np.array([self._domain(domain)])}
    )
    scores, items = Catalogue(vectors).top_k(
      vectors[[index]], min(k, self.data.num_items), seen_items=np.array([[index]]), **options
    )
    return self._named(np.asarray(items)[0], np.asarray(scores)[0])

  def item_vectors(self) -> Float[np.ndarray, "V M"]:
    """Returns the vectors of all items, in the order of `data.items`: a score is a dot product with a user vector."""
    return self._vectors[1:]

  def user_vectors(
    self,
    *,
    users: Sequence[str | int] | None = None,
    histories: Events | None = None,
    domain: str | None = None,
    at: Any = None,
  ) -> Float[np.ndarray, "B M"]:
    """Returns the query vector of each user; zeros for histories without a known item.

    Args:
      users, histories, domain, at: as in `recommend`.
    """
    return self.vectors_of(self._histories(users, histories), domain=domain, at=at)

  def vectors_of(self, histories: Histories, *, domain: str | None = None, at: Any = None) -> Float[np.ndarray, "B M"]:
    """Returns the query vectors of histories that are columns already; see `user_vectors`."""
    vectors = np.zeros((len(histories), self._vectors.shape[1]), np.float32)
    for rows, batch in self._batches(histories, domain, at, None):
      vectors[rows] = np.asarray(self._queries(batch, [histories.user[row] for row in rows]))[batch.user >= 0]
    return vectors

  @functools.cached_property
  def _vectors(self) -> np.ndarray:
    vectors = self.model.apply({"params": self.params}, method="item_vectors")
    if vectors.shape[0] <= self.data.num_items:
      raise ValueError(
        f"the model has {vectors.shape[0] - 1} items, the data {self.data.num_items}: they don't belong together"
      )
    return np.asarray(vectors[: self.data.num_items + 1], np.float32)  # Rows above are room for items to come.

  @functools.cached_property
  def _catalogue(self) -> Catalogue:
    return Catalogue(jnp.asarray(self._vectors))

  @functools.cached_property
  def _popularity(self) -> np.ndarray:
    return np.bincount(self.data.item_id, minlength=self.data.num_items + 1).astype(np.float32)

  def _queries(self, batch: EvaluationBatch, users: Sequence[str | None]) -> Float[AnyArray, "B M"]:
    """Returns the query vector of each row of a batch; `users` are the names of its first rows, the others padding."""
    return _compiled_queries(self.model)(self.params, batch.batch)  # [B, M]

  def _histories(self, users, histories, unknown="skip", hold_out=False):
    if (users is None) == (histories is None):
      raise ValueError("give exactly one of users= and histories=")
    given = users if histories is None else histories
    if isinstance(given, str | bytes) or not len(given):
      raise ValueError(
        f"{'users' if histories is None else 'histories'}={given!r} must be a list with at least one entry"
      )
    if histories is None:
      return histories_of_users(self.data, self._users(users), hold_out)
    if hold_out:
      raise ValueError("hold_out=True is for users of the data; histories have no test event")
    return histories_of_events(self.data, histories, unknown)

  def _users(self, users):
    return np.array([self.data.user_index(user) for user in users], np.int64)

  def _item(self, item):
    return self.data.item_index(raw_id(item, "item"))

  def _domain(self, name):
    if name not in self.data.domain_names:
      raise ValueError(f"domain={name!r} is unknown; the data has {', '.join(map(repr, self.data.domain_names))}")
    return self.data.domain_names.index(name) + 1

  def _batches(self, histories, domain, at, held_out):
    """Yields (indices of histories, batch) for the histories that are not empty."""
    if domain is None and held_out is None and getattr(self.model, "needs_target_domain", False):
      names = ", ".join(map(printable, self.data.domain_names))
      raise ValueError(f"the model needs a target domain; give domain=, one of {names}")
    target = None if domain is None else self._domain(domain)
    filled = np.flatnonzero(histories.lengths)
    if not len(filled):
      return
    if isinstance(at, list | tuple):
      if len(at) != len(histories):
        raise ValueError(f"at has {len(at)} times, for {len(histories)} histories")
      at = [at[index] for index in filled]
    reads_actions = getattr(self.model, "num_actions", 0) > 0
    requests = _requests(self.data, histories.take(filled), target, at, held_out, reads_actions)
    for batch in self._evaluation_batches(requests):
      yield filled[batch.user[batch.user >= 0]], batch

  def _evaluation_batches(self, requests: PreparedData) -> EvaluationBatches:
    settings = self.config.data
    size = min(1 << (requests.num_users - 1).bit_length(), self.config.eval.batch_size)
    return evaluation_batches(
      requests, TEST, size, settings.max_length, settings.task, request_time=settings.request_time,
      reveal_domain=settings.reveal_domain,
    )  # fmt: skip

  def _named(self, items, scores) -> tuple[RecommendedItem, ...]:
    count = int(np.count_nonzero(items))
    rows = self.data.items[items[:count].astype(np.int64) - 1]
    names = [self.data.domain_names[domain - 1] for domain in rows["domain_id"]]
    columns = zip(rows["raw_id"], rows["title"], names, scores[:count].tolist(), strict=True)
    return tuple(RecommendedItem(rank, *row) for rank, row in enumerate(columns, 1))

  def _recommendation(self, histories, best, row, held_out_events):
    held_out = None
    if held_out_events is not None:
      (item,) = self._named(self.data.item_id[held_out_events[[row]]], np.zeros(1))
      held_out = HeldOut(item.item, item.title, item.domain, int(best.held_out_rank[row]))
    ranked_by = POPULARITY if best.is_popular[row] else MODEL
    items = self._named(best.items[row], best.scores[row])
    history = histories.take(np.array([row]))
    return Recommendation(histories.user[row], items, ranked_by, int(histories.unknown[row]), history, held_out)


class _Candidates:
  """The items to choose from: `items[i]` is the id of candidate i, or 0 if that is padding; `index[id]` is i, or 0.

  Candidates are those whose `item_domain` is `domain`, all if that is None.
  """

  def __init__(self, recommender: Recommender, domain: str | None, allowed: Iterable[str | int] | None):
    data = recommender.data
    self.domain = None if domain is None else recommender._domain(domain)
    self._popularity = recommender._popularity
    self.catalogue = recommender._catalogue
    self.items = self.index = np.arange(data.num_items + 1)
    if allowed is not None:
      known = _known_items(data, allowed)
      self.items = np.zeros(1 + (1 << (len(known) - 1).bit_length()), np.int64)  # Of few sizes: each is a program.
      self.items[1 : len(known) + 1] = known
      self.index = np.zeros(data.num_items + 1, np.int64)
      self.index[known] = np.arange(1, len(known) + 1)
      self.catalogue = Catalogue(self.catalogue.vectors[self.items])
    self.item_domain = None if domain is None else data.item_domain()[self.items]
    if allowed is not None and domain is None:
      self.domain, self.item_domain = 1, (self.items > 0).astype(np.int32)  # All but padding.

  def popular(self, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k candidates with the most events, and these numbers; 0 and -inf where there are fewer."""
    counts = self._popularity[self.items]
    is_candidate = (self.items > 0) & ((self.item_domain is None) | (self.item_domain == self.domain))
    counts = np.where(is_candidate, counts, -np.inf)
    best = np.argsort(-counts, kind="stable")[:k]
    return np.where(counts[best] > -np.inf, self.items[best], 0), counts[best]


def _known_items(data, allowed):
  if isinstance(allowed, str | bytes):
    raise ValueError(f"{allowed=} must be a list of item ids")
  found = [data.raw_items.find(raw_id(item, "allowed")) for item in allowed]
  known = np.unique([item for item in found if item])
  if not len(known):
    raise ValueError(f"none of the {len(found)} allowed items is in the data")
  if 0 in found:
    logging.warning("%d of %d allowed items are not in the data and are ignored", found.count(0), len(found))
  return known


def _requests(data, histories: Histories, target_domain, at, held_out, reads_actions) -> PreparedData:
  """Returns histories as prepared data with one test event each: the target of the query, whose action is unknown.

  The model does not read the item of the target. Without a held-out event it is a copy of the last event, which sets
  the time and the domain of the query.
  """
  ends = histories.offsets[1:]
  target = {name: getattr(histories, name)[ends - 1] for name in ("item_id", "domain_id", "timestamp")}
  if held_out is not None:
    target = {name: np.asarray(getattr(data, name)[held_out]) for name in target}
  if target_domain is not None:
    target["domain_id"] = np.full(len(ends), target_domain, np.int32)
  if at is not None:
    times = at if isinstance(at, list) else [at] * len(ends)
    target["timestamp"] = np.array(
      [request_seconds(data, *pair) for pair in zip(times, target["timestamp"].tolist(), strict=True)], np.int64
    )
  target["action"] = np.zeros(len(ends), np.int32)
  columns = {name: np.insert(getattr(histories, name), ends, value) for name, value in target.items()}
  offsets = histories.offsets + np.arange(len(ends) + 1)
  split = np.zeros(offsets[-1], np.uint8)
  split[offsets[1:] - 1] = TEST
  meta = {**data.meta, "num_users": len(ends), "num_events": len(split), "has_actions": reads_actions}
  return PreparedData(**columns, split=split, offsets=offsets, meta=meta, item_table=data.items)


@functools.lru_cache(maxsize=8)
def _compiled_queries(model):
  return jax.jit(functools.partial(last_queries, model))
