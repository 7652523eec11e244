"""The events of one domain of data with several, for a baseline whose numbers compare with those of the whole.

Users, item ids, the catalogue and what is held out stay those of the whole data, so that the same held-out events are
ranked among the same candidates (of protocol "full_per_domain"); only histories shrink.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from jaxrec.data.prepared import TEST, VALIDATION, PreparedData

_ELSEWHERE = "users_held_out_elsewhere"


def only_domain(data: PreparedData, name: str) -> PreparedData:
  """Returns the data with the events of one domain only, in memory.

  Evaluation ranks the *first* event of a split. Where that is in another domain, the user is not evaluated on this
  split: later events of the split are dropped as well, as they would be another target. A user whose validation event
  is in another domain than the test event is so evaluated once in each, and each time reads the history of the one
  domain. Dropped events are counted in `meta["counts"]` and in the log.

  Args:
    data: of several domains; not changed.
    name: one of `data.domain_names`.

  Raises:
    ValueError: no such domain, no training event in it, or data that `only_domain` has cut before.

  >>> data = PreparedData.from_columns(user=[0] * 5, item_id=[1, 2, 3, 4, 5], domain_id=[1, 2, 1, 2, 1])
  >>> one = only_domain(data, "domain 1")  # The validation event, item 4, is in the other domain.
  >>> one.item_id.tolist(), one.split.tolist(), one.num_items, one.num_domains
  ([1, 3, 5], [0, 0, 2], 5, 2)
  """
  _check(data, name)
  user = _user_of_event(data)
  is_here = np.asarray(data.domain_id) == data.domain_names.index(name) + 1
  is_other_target = np.zeros(data.num_events, bool)
  for split in (VALIDATION, TEST):
    is_other_target |= _after_a_target_elsewhere(data, user, is_here, split)
  keep = is_here & ~is_other_target
  if not (keep & (np.asarray(data.split) < VALIDATION)).any():
    raise ValueError(f"domain={name!r} has no training event; choose another one")
  dropped = {"in other domains": int((~is_here).sum()), "held out behind one": int((is_here & is_other_target).sum())}
  logging.info("domain %s: %d events kept; dropped: %s", name, keep.sum(), dropped)
  elsewhere = {str(split): _users_with(data, user, ~keep, split) for split in (VALIDATION, TEST)}
  return _kept(data, keep, {"only_domain": name, _ELSEWHERE: elsewhere}, dropped)


def held_out_users(data: PreparedData, last_split: int) -> Int[np.ndarray, " K"]:
  """Returns the users with an event after `last_split`, those that `only_domain` dropped included.

  >>> data = PreparedData.from_columns(user=[0, 0, 0, 0, 1], item_id=[1, 2, 1, 2, 1], domain_id=[1, 1, 1, 2, 1])
  >>> held_out_users(only_domain(data, "domain 1"), last_split=1).tolist()
  [0]
  """
  users = _user_of_event(data)[np.asarray(data.split) > last_split]
  elsewhere = data.meta.get(_ELSEWHERE, {})
  more = [user for split, users in elsewhere.items() if int(split) > last_split for user in users]
  return np.union1d(users, np.asarray(more, np.int64)).astype(np.int64)


def _check(data, name):
  if name not in data.domain_names:
    raise ValueError(f"domain={name!r} is unknown; the data have {', '.join(map(repr, data.domain_names))}")
  if before := data.meta.get("only_domain"):
    raise ValueError(f"the data hold the domain {before!r} only: take {name!r} out of the whole data")


def _user_of_event(data) -> Int[np.ndarray, " E"]:
  return np.repeat(np.arange(data.num_users), np.diff(data.offsets))


def _after_a_target_elsewhere(data, user, is_here, split) -> Bool[np.ndarray, " E"]:
  """Which events are of a split whose first event, of the same user, is in another domain."""
  in_split = np.asarray(data.split) == split
  event = np.flatnonzero(in_split)
  users, first = np.unique(user[event], return_index=True)  # The first of each user, as users stand side by side.
  return in_split & np.isin(user, users[~is_here[event[first]]])


def _users_with(data, user, is_dropped, split) -> list[int]:
  return np.unique(user[is_dropped & (np.asarray(data.split) == split)]).tolist()


def _kept(data, keep, more_meta, dropped) -> PreparedData:
  columns = {name: np.asarray(getattr(data, name))[keep] for name in ("item_id", "domain_id", "timestamp", "action")}
  before = np.concatenate([[0], np.cumsum(keep)])
  counts = {**data.meta["counts"], "dropped_by_only_domain": dropped}
  return dataclasses.replace(
    data,
    **columns,
    split=np.asarray(data.split)[keep],
    offsets=before[np.asarray(data.offsets)],
    meta={**data.meta, **more_meta, "num_events": int(keep.sum()), "counts": counts},
    path=None,
    item_table=data.items,
    user_table=data.users,
  )
