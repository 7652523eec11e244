"""The truth of click-through data that a generator made."""

from __future__ import annotations

from jaxrec.data.generators.planted_interest import InterestTruth, planted_interest_truth
from jaxrec.data.generators.planted_styles import StyleTruth, planted_styles_truth
from jaxrec.data.prepared import PreparedData

TRUTHS = {"planted_interest": planted_interest_truth, "planted_styles": planted_styles_truth}


def click_truth(data: PreparedData) -> InterestTruth | StyleTruth | None:
  """Returns the rule by which the events were made; None for data that were not made, or without such a rule.

  >>> click_truth(PreparedData.from_columns(user=[0], item_id=[1])) is None
  True
  """
  found = TRUTHS.get(data.meta.get("source"))
  return found(data) if found else None
