"""Where a server's model comes from, and how it notices that there is a newer one."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable

from jaxrec.serving.recommender import Recommender

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ModelSource:
  """A model on disk.

  load: reads it.
  version: names what is there now, such as its latest checkpoint, without reading it.
  """

  load: Callable[[], Recommender]
  version: Callable[[], str]


async def watch_source(
  source: ModelSource, loaded: str, every_seconds: float, use: Callable[[Recommender, str], Awaitable[None]],
  count: Callable[[str], None],
) -> None:  # fmt: skip
  """Loads each newer version in another thread and hands it over; runs until it is cancelled.

  A version that cannot be loaded, perhaps because it is being written, is tried again as long as it is the newest.

  Args:
    source: of the models.
    loaded: version in use.
    every_seconds: between two looks.
    use: is given a loaded model and its version.
    count: is given "ok" or "failed".
  """
  while True:
    await asyncio.sleep(every_seconds)
    try:
      version = source.version()
      if version == loaded:
        continue
      recommender = await asyncio.to_thread(source.load)
      await use(recommender, version)
    except Exception as error:  # Of any kind: the server goes on with the model that it has.
      _log.warning("a newer model cannot be loaded, the server keeps %s: %s", loaded, error)
      count("failed")
      continue
    loaded = version
    _log.info("the server uses %s now", version)
    count("ok")
