"""A uvicorn server that answers what has been sent to it before it closes connections."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

_CLOSE = (b"connection", b"close")


class DrainingServer(uvicorn.Server):
  """Between the signal to end and the closing of connections it goes on for a moment, and asks clients to go.

  At its shutdown uvicorn closes connections on which no request is being answered. A request whose first bytes have
  arrived, but have not been read, is on such a connection and would be lost. In the time between, requests are read and
  answered as before, with the header "Connection: close", so that clients do not send another one on a connection that
  is about to close.

  Source: RFC 9112, section 9.6: a server that closes a connection at once may lose requests that are on their way.

  Args:
    config: of uvicorn.
    grace_seconds: time between.
  """

  def __init__(self, config: uvicorn.Config, grace_seconds: float = 1.0):
    super().__init__(config)
    self._grace_seconds = grace_seconds

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    """Waits, then closes all connections as uvicorn does."""
    self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
    await asyncio.sleep(0 if self.force_exit else self._grace_seconds)
    await super().shutdown(sockets)
