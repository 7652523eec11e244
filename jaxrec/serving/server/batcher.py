"""Dynamic batches: requests that arrive within a short time are answered together, by one thread."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxrec.serving.server.refusals import RefusedRequest


class Batcher:
  """A bounded queue in front of a function of lists. While the function runs, further requests gather.

  run: requests to results, one each; a result that is an exception is raised to its caller. Called in one thread.
  max_batch: most requests of a call.
  wait_seconds: how long the first request of a batch waits for others.
  max_queue: most requests that wait.
  """

  def __init__(self, run: Callable[[list], Sequence], max_batch: int, wait_seconds: float, max_queue: int):
    self._run, self._max_batch, self._wait_seconds, self._max_queue = run, max_batch, wait_seconds, max_queue
    self._waiting: collections.OrderedDict[asyncio.Future, Any] = collections.OrderedDict()
    self._arrived, self._is_full = asyncio.Event(), asyncio.Event()
    self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
    self._task: asyncio.Task | None = None
    self._is_busy = False

  def __len__(self) -> int:
    """The number of requests that wait."""
    return len(self._waiting)

  async def submit(self, request: Any) -> Any:
    """Returns the result of a request.

    Raises:
      RefusedRequest: 429, the queue is full.
    """
    if len(self._waiting) >= self._max_queue:
      raise RefusedRequest(429, None, f"{self._max_queue} requests are waiting already; try again later")
    future = asyncio.get_running_loop().create_future()
    self._waiting[future] = request
    self._arrived.set()
    if len(self._waiting) >= self._max_batch:
      self._is_full.set()
    try:
      return await future
    finally:
      self._waiting.pop(future, None)  # Is there still if it was given up.

  async def start(self) -> None:
    """Begins to answer."""
    self._task = asyncio.create_task(self._work())

  async def close(self) -> None:
    """Ends when all that waits is answered; nothing may be submitted from now on."""
    while self._waiting or self._is_busy:
      await asyncio.sleep(0.01)
    self._task.cancel()
    await asyncio.gather(self._task, return_exceptions=True)
    self._thread.shutdown()

  async def _work(self):
    while True:
      await self._arrived.wait()
      await self._gather()
      self._is_busy = True
      batch = [self._waiting.popitem(last=False) for _ in range(min(len(self._waiting), self._max_batch))]
      if not self._waiting:
        self._arrived.clear()
      if batch:
        await self._answer(batch)
      self._is_busy = False

  async def _gather(self):
    """Returns when a whole batch waits, or after the time that the first request may wait."""
    self._is_full.clear()
    if self._wait_seconds and len(self._waiting) < self._max_batch:
      try:
        await asyncio.wait_for(self._is_full.wait(), self._wait_seconds)
      except TimeoutError:
        pass

  async def _answer(self, batch):
    requests = [request for _, request in batch]
    try:
      results = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, requests)
    except Exception as error:  # Its callers get it; the next batch is answered.
      results = [error] * len(batch)
    for (future, _), result in zip(batch, results, strict=True):
      if future.done():
        continue
      if isinstance(result, Exception):
        future.set_exception(result)
      else:
        future.set_result(result)
