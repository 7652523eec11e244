"""What the server counts, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class ServerMetrics:
  """The counters of one server."""

  def __init__(self):
    self._registry = CollectorRegistry()
    own = {"registry": self._registry}
    self.requests = Counter("jaxrec_requests", "Responses by path and status.", ["path", "status"], **own)
    self.seconds = Histogram("jaxrec_request_seconds", "Time of a request.", ["path"], buckets=_SECONDS, **own)
    self.batch = Histogram(
      "jaxrec_batch_requests", "Requests of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), **own
    )
    self.model = Histogram("jaxrec_batch_seconds", "Time of a batch in the model's thread.", buckets=_SECONDS, **own)
    self.reloads = Counter("jaxrec_reloads", "Loads of a newer model.", ["result"], **own)

  def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
    """Adds a gauge whose value is asked for when it is read."""
    Gauge(f"jaxrec_{name}", text, registry=self._registry).set_function(value)

  def text(self) -> bytes:
    """Returns all values as text."""
    return generate_latest(self._registry)
