"""The settings of the server."""

from __future__ import annotations

import dataclasses


def _setting(default, text, at_least):
  return dataclasses.field(default=default, metadata={"text": text, "at_least": at_least})


@dataclasses.dataclass(frozen=True)
class ServerSettings:
  """What bounds the server's work and memory; each is a flag of `jaxrec serve`."""

  max_batch: int = _setting(64, "Most requests that the model answers together.", 1)
  batch_wait_ms: float = _setting(2.0, "Longest time that a request waits for others to share its batch.", 0)
  max_queue: int = _setting(256, "Most requests that wait for the model; further ones get 429.", 1)
  max_connections: int = _setting(1024, "Most open connections; further ones get 503.", 1)
  timeout_seconds: float = _setting(10.0, "A request gets 408 or 504 after this time.", 0.001)
  max_body_bytes: int = _setting(1 << 20, "Largest body of a request; larger ones get 413.", 1)
  max_users: int = _setting(10_000, "Most users whose posted events are kept; least recently used are dropped.", 1)
  state_bytes: int = _setting(0, "Bytes for the states of returning users (IncrementalRecommender); 0: none.", 0)
  reload_seconds: float = _setting(10.0, "How often to look for a newer checkpoint or artifact; 0: never.", 0)
  warm: bool = _setting(True, "Compile the programs of all batch sizes before a model is used.", False)
  drain_seconds: int = _setting(30, "Time for requests in progress to end after SIGTERM.", 0)

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, least = getattr(self, field.name), field.metadata["at_least"]
      if not value >= least:
        raise ValueError(f"{field.name}={value!r} must be at least {least}")
