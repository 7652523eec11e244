"""A server that ends answers requests that it had not read yet."""

import contextlib
import socket
import threading
import time

import pytest

uvicorn = pytest.importorskip("uvicorn", reason="the server needs pip install 'jaxrec[test]'")

from jaxrec.serving.server.draining_server import DrainingServer  # noqa: E402


async def application(scope, receive, send):
  await receive()
  await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
  await send({"type": "http.response.body", "body": b"ok"})


@contextlib.contextmanager
def running(grace_seconds):
  """Yields a server in another thread and its port."""
  listening = socket.create_server(("127.0.0.1", 0))
  config = uvicorn.Config(application, lifespan="off", log_level="error")
  server = DrainingServer(config, grace_seconds)
  thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
  thread.start()
  try:
    while not server.started:
      time.sleep(0.005)
    yield server, listening.getsockname()[1]
  finally:
    server.should_exit = True
    thread.join(10)
  assert not thread.is_alive()


def answers_after_the_end_was_asked_for(grace_seconds):
  """Returns what two clients get that connect before a server is told to end, and send a request a moment later."""
  found = []
  with running(grace_seconds) as (server, port), contextlib.ExitStack() as stack:
    clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 5)) for _ in range(2)]
    clients[0].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # Its connection is kept alive.
    assert b"200 OK" in clients[0].recv(4096)
    server.should_exit = True
    time.sleep(0.3)  # uvicorn looks every 0.1 s.
    for client in clients:
      with contextlib.suppress(OSError):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        found.append(client.recv(4096))
  return found


def test_requests_that_arrive_while_it_ends_are_answered_and_close_their_connection():
  found = answers_after_the_end_was_asked_for(2.0)
  assert len(found) == 2
  assert all(b"200 OK" in answer and b"connection: close" in answer for answer in found)


def test_without_the_time_between_such_requests_are_lost():
  assert all(answer == b"" for answer in answers_after_the_end_was_asked_for(0.0))
