"""Requests that are refused: the status, the field that is wrong, and the reason."""

from __future__ import annotations

import re

# Errors of the recommender name their argument in one of these ways.
_FIELDS = (
  (re.compile(r"^(?:unknown|k|at|domain|allowed|items?)(?=[=:])"), None),
  (re.compile(r"^history \d+, "), "history"),
  (re.compile(r"target domain"), "domain"),
  (re.compile(r"allowed items"), "allowed"),
)


class RefusedRequest(Exception):
  """A request that gets no answer but a status of 4xx or 5xx.

  status: of HTTP.
  field: of the body; None: the request as a whole.
  reason: what is wrong and what is needed.
  """

  def __init__(self, status: int, field: str | None, reason: str):
    super().__init__(reason)
    self.status, self.field, self.reason = status, field, reason

  def body(self) -> dict:
    """Returns the body of the response."""
    return {"error": {"field": self.field, "reason": self.reason}}


def refusal(error: ValueError, field: str | None = None) -> RefusedRequest:
  """Returns the refusal of what the recommender does not accept.

  Args:
    error: of the recommender.
    field: where it is known; None: the one that the error names.

  >>> refusal(ValueError("history 0, event 3: time 'noon' must be seconds")).body()
  {'error': {'field': 'history', 'reason': "event 3: time 'noon' must be seconds"}}
  """
  text = str(error)
  for pattern, name in _FIELDS:
    if field is None and (found := pattern.search(text)):
      field = name or found[0]
  return RefusedRequest(422, field, re.sub(r"^history \d+, ", "", text))
