"""The bodies of requests. Events are checked where they are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

MOST_EVENTS, MOST_ITEMS, MOST_RECOMMENDED = 10_000, 10_000, 1000

Id = Annotated[StrictStr, Field(min_length=1, max_length=200)] | StrictInt
Ids = Annotated[list[Id], Field(min_length=1, max_length=MOST_ITEMS)]
Events = Annotated[list[Any], Field(max_length=MOST_EVENTS)]


class _Form(BaseModel):
  model_config = ConfigDict(extra="forbid")


class EventsForm(_Form):
  """New events of a user: `[item, time]`, `[item, time, domain]` or `[item, time, domain, action]`, oldest first.

  Those for a ranking model end with a mapping of typed actions: `[item, time, {"like": 1}]`.
  """

  user: Id
  events: Annotated[Events, Field(min_length=1)]
  unknown: Literal["skip", "raise"] = "skip"


class ScoreForm(_Form):
  """Items to score for a user of the data or with posted events, or for a history, which may name its user."""

  items: Ids
  user: Id | None = None
  history: Events | None = None
  domain: Annotated[StrictStr, Field(max_length=200)] | None = None
  at: float | None = None
  unknown: Literal["skip", "raise"] = "skip"


class RecommendForm(_Form):
  """How many items to recommend, for whom, and among which."""

  user: Id | None = None
  history: Events | None = None
  k: Annotated[StrictInt, Field(ge=1, le=MOST_RECOMMENDED)] = 10
  domain: Annotated[StrictStr, Field(max_length=200)] | None = None
  at: float | None = None
  exclude_seen: bool = True
  allowed: Ids | None = None
  unknown: Literal["skip", "raise"] = "skip"
  show_history: Annotated[StrictInt, Field(ge=0, le=100)] = 0
  show_attention: bool = False
