"""Some of the events of prepared data, in memory; users, items and ids stay as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

from jaxrec.data.prepared import PreparedData


def selected_events(
  data: PreparedData,
  keep: Bool[np.ndarray, " E"],
  more_meta: Mapping[str, Any],
  dropped: tuple[str, Mapping[str, int]],
  split: Integer[np.ndarray, " E"] | None = None,
) -> PreparedData:
  """Returns the data with the chosen events; users without one stay, with none.

  Args:
    data: not changed.
    keep: which events stay.
    more_meta: entries of `meta` that replace others.
    dropped: name of an entry of `meta["counts"]`, and the dropped events by reason.
    split: of all events, the dropped ones too; None: that of the data.

  >>> data = PreparedData.from_columns(user=[0, 0, 1], item_id=[1, 2, 3], split=[0, 2, 2])
  >>> some = selected_events(data, np.array([True, False, True]), {}, ("dropped_by_me", {"even": 1}))
  >>> some.item_id.tolist(), some.offsets.tolist(), some.num_items
  ([1, 3], [0, 1, 2], 3)
  """
  columns = {name: np.asarray(getattr(data, name))[keep] for name in ("item_id", "domain_id", "timestamp", "action")}
  kept_before = np.concatenate([[0], np.cumsum(keep)])
  counts = {**data.meta["counts"], dropped[0]: dict(dropped[1])}
  return dataclasses.replace(
    data,
    **columns,
    actions={name: np.asarray(values)[keep] for name, values in data.actions.items()},
    split=np.asarray(data.split if split is None else split)[keep],
    offsets=kept_before[np.asarray(data.offsets)],
    meta={**data.meta, **more_meta, "num_events": int(keep.sum()), "counts": counts},
    path=None,
    item_table=data.items,
    user_table=data.users,
  )
