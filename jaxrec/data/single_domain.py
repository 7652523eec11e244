"""One domain of multi-domain data, or each for itself: baselines whose metrics compare with multi-domain ones.

Item ids, catalogue and held-out events stay as they are, so that the same held-out events are ranked among the same
candidates (protocol "full_per_domain"); only the histories shrink.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from jaxrec.data.event_selection import selected_events
from jaxrec.data.id_tables import user_table
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
  is_with_target = _is_with_target(data, user)
  keep = in_domain & is_with_target
  if not (keep & (np.asarray(data.split) < VALIDATION)).any():
    raise ValueError(f"domain={name!r} has no training event; choose another one")
  dropped = {
    "in other domains": int((~in_domain).sum()),
    "held out behind one": int((in_domain & ~is_with_target).sum()),
  }
  logging.info("domain %r: %d events kept; dropped: %s", name, keep.sum(), dropped)
  elsewhere = {str(split): _users_with(data, user, ~keep, split) for split in (VALIDATION, TEST)}
  meta = {"only_domain": name, _HELD_OUT_ELSEWHERE: elsewhere}
  return selected_events(data, keep, meta, ("dropped_by_only_domain", dropped))


def domains_apart(data: PreparedData) -> PreparedData:
  """Returns the data with each user's events of a domain as a history of their own, in memory.

  A model of them reads no other domain, shares all parameters, and learns from every event. User u's history in domain
  d is that of user `u * num_domains + d - 1`; many are empty. Every target of the multi-domain data is a target of one
  history; held-out events behind one in another domain are dropped as in `only_domain`.

  Args:
    data: data with several domains; not changed.

  Raises:
    ValueError: data that are of one domain, or the result of this function.

  >>> data = PreparedData.from_columns(user=[0] * 5, item_id=[1, 2, 3, 4, 5], domain_id=[1, 2, 1, 2, 1])
  >>> apart = domains_apart(data)  # The validation event, item 4, is in domain 2; the test event in domain 1.
  >>> apart.item_id.tolist(), apart.split.tolist(), apart.offsets.tolist()
  ([1, 3, 5, 2, 4], [0, 0, 2, 0, 1], [0, 3, 5])
  """
  if data.num_domains < 2 or data.meta.get("only_domain") or data.meta.get("domains_apart"):
    raise ValueError("histories can be taken apart by domain once, where there are several domains")
  user, domain = _user_of_event(data), np.asarray(data.domain_id)
  keep = _is_with_target(data, user)
  dropped = {"held out behind one in another domain": int((~keep).sum())}
  elsewhere = {}  # All histories of a user with a held-out event, as none of them may be trained on without it.
  for split in (VALIDATION, TEST):
    users = np.unique(user[np.asarray(data.split) == split])
    elsewhere[str(split)] = (users[:, None] * data.num_domains + np.arange(data.num_domains)).ravel().tolist()
  meta = {"domains_apart": True, _HELD_OUT_ELSEWHERE: elsewhere}
  some = selected_events(data, keep, meta, ("dropped_by_domains_apart", dropped))
  history = user[keep] * data.num_domains + domain[keep] - 1
  order = np.argsort(history, kind="stable")
  num_users = data.num_users * data.num_domains
  columns = {name: getattr(some, name)[order] for name in ("item_id", "domain_id", "timestamp", "action", "split")}
  names = [f"{raw_id} ({name})" for raw_id in data.users["raw_id"] for name in data.domain_names]
  return dataclasses.replace(
    some,
    **columns,
    actions={name: values[order] for name, values in some.actions.items()},
    offsets=np.searchsorted(history[order], np.arange(num_users + 1)),
    meta={**some.meta, "num_users": num_users},
    user_table=user_table(num_users, names),
  )


def whole_users(data: PreparedData, user: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
  """Returns the users of the multi-domain data whose histories these are: others in `domains_apart`, else the same.

  >>> data = PreparedData.from_columns(user=[0] * 3, item_id=[1, 2, 3], domain_id=[1, 2, 1])
  >>> whole_users(domains_apart(data), np.array([0, 1])).tolist(), whole_users(data, np.array([0])).tolist()
  ([0, 0], [0])
  """
  return user // data.num_domains if data.meta.get("domains_apart") else user


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


def _is_with_target(data, user) -> Bool[np.ndarray, " E"]:
  """Returns which events are of training, or in the domain of their split's target, the user's first event of it."""
  domain, found = np.asarray(data.domain_id), np.ones(data.num_events, bool)
  for split in (VALIDATION, TEST):
    event = np.flatnonzero(np.asarray(data.split) == split)
    _, first, owner = np.unique(user[event], return_index=True, return_inverse=True)  # Events are sorted by user.
    found[event] = domain[event] == domain[event[first]][owner]
  return found


def _users_with(data, user, is_dropped, split) -> list[int]:
  return np.unique(user[is_dropped & (np.asarray(data.split) == split)]).tolist()
