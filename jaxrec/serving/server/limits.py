"""The longest time of a request, reading its body included, and the count of responses."""

from __future__ import annotations

import asyncio
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxrec.serving.server.refusals import RefusedRequest
from jaxrec.serving.server.server_metrics import ServerMetrics

_PATHS = ("/", "/recommend", "/score", "/events", "/about", "/items", "/healthz", "/metrics")


class Limits:
  """ASGI middleware: 408 where the body does not arrive in time, 504 where the answer does not."""

  def __init__(self, app: ASGIApp, seconds: float, metrics: ServerMetrics):
    self._app, self._seconds, self._metrics = app, seconds, metrics

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Handles one request."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    await _Exchange(receive, send).run(self._app, scope, self._seconds, self._metrics)


class _Exchange:
  """One request and its response."""

  def __init__(self, receive, send):
    self._receive, self._send = receive, send
    self._is_received, self._status = False, None

  async def run(self, app, scope, seconds, metrics):
    start = time.perf_counter()
    path = scope["path"] if scope["path"] in _PATHS else "other"
    try:
      async with asyncio.timeout(seconds):
        await app(scope, self.receive, self.send)
    except TimeoutError:
      if self._status is None:
        await self._late(scope, seconds)
    finally:
      metrics.requests.labels(path, self._status or 500).inc()
      metrics.seconds.labels(path).observe(time.perf_counter() - start)

  async def receive(self) -> Message:
    message = await self._receive()
    self._is_received = not message.get("more_body", False)
    return message

  async def send(self, message: Message) -> None:
    if message["type"] == "http.response.start":
      self._status = message["status"]
    await self._send(message)

  async def _late(self, scope, seconds):
    status, what = (504, "no answer") if self._is_received else (408, "the body has not arrived")
    headers = {"Connection": "close"}
    response = JSONResponse(RefusedRequest(status, None, f"{what} within {seconds:g} s").body(), status, headers)
    await response(scope, self._receive, self.send)
