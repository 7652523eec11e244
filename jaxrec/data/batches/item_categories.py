"""The category of each item, from a column of the item table or from the domains."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from jaxrec.data.prepared import PreparedData

AUTO = "auto"


def item_categories(data: PreparedData, column: str = AUTO) -> tuple[Int[np.ndarray, " V1"], int]:
  """Returns the category of each item, int32 [V + 1] with 0 for padding, and the number of categories.

  Args:
    data: prepared columns.
    column: see `CandidateOptions.category`; every distinct value is a category.

  Raises:
    ValueError: the items have no such column, or some item has no value in it.

  >>> data = PreparedData.from_columns(user=[0, 0, 0], item_id=[1, 2, 3], domain_id=[2, 1, 2])
  >>> categories, count = item_categories(data)
  >>> categories.tolist(), count
  ([0, 2, 1, 2], 2)
  """
  known = [name for name in data.items.columns if name not in ("item_id", "raw_id", "title", "domain_id")]
  if column == AUTO:
    column = next((name for name in ("category", "genres") if name in known), "domain")
  if column == "domain":
    return data.item_domain(), data.num_domains
  if column not in known:
    raise ValueError(f"options.category={column!r} is no column of the items; there are {['domain', *known]}")
  values = data.items[column]
  if values.null_count():
    raise ValueError(f"{values.null_count()} of {len(values)} items have no {column!r}; use options.category='domain'")
  categories = values.rank("dense").to_numpy()
  return np.concatenate([[0], categories]).astype(np.int32), int(categories.max(initial=0))
