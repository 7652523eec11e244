"""One domain of multi-domain data, for single-domain baselines whose metrics are comparable with multi-domain ones.

Users, item ids, catalogue and held-out events stay as they are, so that the same held-out events are ranked among the
same candidates (protocol "full_per_domain"); only the histories shrink.
"""

from __future__ import annotations

import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from jaxrec.data.event_selection import selected_events
from jaxrec.data.prepared import TEST, VALIDATION, PreparedData

_HELD_OUT_ELSEWHERE = "users_held_out_elsewhere"  # In `meta`: split -> users.


def only_domain(data: PreparedData, name: str) -> PreparedData:
  """Returns the data with the events of a single domain, in memory.

  The target of an evaluation is a user's *first* event of a split. If that event is in another domain, the user's later
  events of the split are dropped too, because the first of them would become another target; the user is then not
  evaluated on this split. Thus every target of the multi-domain data is a target in exactly one of the single-domain
  data sets. The log and `meta["counts"]` report the dropped events.

  Args:
    data: data with several domains; not changed.
    name: one of `data.domain_names`.

  Raises:
    ValueError: no such domain, no training event in it, or data that already is the result of `only_domain`.

  >>> data = PreparedData.from_columns(user=[0] * 5, item_id=[1, 2, 3, 4, 5], domain_id=[1, 2, 1, 2, 1])
  >>> one = only_domain(data, "domain 1")  # The validation event, item 4, is in the other domain.
  >>> one.item_id.tolist(), one.split.tolist(), one.num_items, one.num_domains
  ([1, 3, 5], [0, 0, 2], 5, 2)
  """
  _check(data, name)
  user = _user_of_event(data)
  in_domain = np.asarray(data.domain_id) == data.domain_names.index(name) + 1
  has_target_elsewhere = np.zeros(data.num_events, bool)
  for split in (VALIDATION, TEST):
    has_target_elsewhere |= _has_target_elsewhere(data, user, in_domain, split)
  keep = in_domain & ~has_target_elsewhere
  if not (keep & (np.asarray(data.split) < VALIDATION)).any():
    raise ValueError(f"domain={name!r} has no training event; choose another one")
  dropped = {
    "in other domains": int((~in_domain).sum()),
    "held out behind one": int((in_domain & has_target_elsewhere).sum()),
  }
  logging.info("domain %r: %d events kept; dropped: %s", name, keep.sum(), dropped)
  elsewhere = {str(split): _users_with(data, user, ~keep, split) for split in (VALIDATION, TEST)}
  meta = {"only_domain": name, _HELD_OUT_ELSEWHERE: elsewhere}
  return selected_events(data, keep, meta, ("dropped_by_only_domain", dropped))


def held_out_users(data: PreparedData, last_split: int) -> Int[np.ndarray, " K"]:
  """Returns the users with an event of a later split than `last_split`, including events dropped by `only_domain`.

  >>> data = PreparedData.from_columns(user=[0, 0, 0, 0, 1], item_id=[1, 2, 1, 2, 1], domain_id=[1, 1, 1, 2, 1])
  >>> held_out_users(only_domain(data, "domain 1"), last_split=1).tolist()
  [0]
  """
  users = _user_of_event(data)[np.asarray(data.split) > last_split]
  elsewhere = data.meta.get(_HELD_OUT_ELSEWHERE, {})
  more = [user for split, users in elsewhere.items() if int(split) > last_split for user in users]
  return np.union1d(users, np.asarray(more, np.int64)).astype(np.int64)


def _check(data, name):
  if name not in data.domain_names:
    raise ValueError(f"domain={name!r} is unknown; the data has {', '.join(map(repr, data.domain_names))}")
  if before := data.meta.get("only_domain"):
    raise ValueError(f"the data holds only the domain {before!r}; take {name!r} from the multi-domain data")


def _user_of_event(data) -> Int[np.ndarray, " E"]:
  return np.repeat(np.arange(data.num_users), np.diff(data.offsets))


def _has_target_elsewhere(data, user, in_domain, split) -> Bool[np.ndarray, " E"]:
  """Returns which events are in a split whose target, the user's first event of it, is in another domain."""
  in_split = np.asarray(data.split) == split
  event = np.flatnonzero(in_split)
  users, first = np.unique(user[event], return_index=True)  # Events are sorted by user.
  return in_split & np.isin(user, users[~in_domain[event[first]]])


def _users_with(data, user, is_dropped, split) -> list[int]:
  return np.unique(user[is_dropped & (np.asarray(data.split) == split)]).tolist()
