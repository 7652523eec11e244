"""A client of an application that runs in the event loop of another thread."""

import asyncio
import contextlib
import threading

import httpx

from jaxrec.serving.server.app import make_app
from jaxrec.serving.server.server_settings import ServerSettings


class Client:
  """Calls an application that runs in the event loop of another thread."""

  def __init__(self, app, loop):
    self._transport, self._loop = httpx.ASGITransport(app, raise_app_exceptions=False), loop

  def _call(self, method, path, **options):
    async def call():
      async with httpx.AsyncClient(transport=self._transport, base_url="http://test") as client:
        return await client.request(method, path, **options)

    return asyncio.run_coroutine_threadsafe(call(), self._loop).result(30)

  def get(self, path, **options):
    return self._call("GET", path, **options)

  def post(self, path, **options):
    return self._call("POST", path, **options)


@contextlib.contextmanager
def client_of(made, source=None, **settings):
  app, loop = make_app(made, "v1", ServerSettings(**settings), source), asyncio.new_event_loop()
  thread = threading.Thread(target=loop.run_forever)
  thread.start()
  lifespan = app.router.lifespan_context(app)
  asyncio.run_coroutine_threadsafe(lifespan.__aenter__(), loop).result(30)
  try:
    yield Client(app, loop)
  finally:
    asyncio.run_coroutine_threadsafe(lifespan.__aexit__(None, None, None), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
