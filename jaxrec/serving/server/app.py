"""The HTTP application: /recommend, /score, /events, /about, /items, /healthz, /metrics, and a page at /."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib.resources
import threading
import time
from collections.abc import Callable
from typing import Annotated

import polars as pl
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from jaxrec.serving.event_attention import why_no_attention
from jaxrec.serving.item_ranker import ItemRanker
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.server.answers import Answers
from jaxrec.serving.server.batcher import Batcher
from jaxrec.serving.server.forms import EventsForm, RecommendForm, ScoreForm
from jaxrec.serving.server.limits import Limits
from jaxrec.serving.server.model_source import ModelSource, watch_source
from jaxrec.serving.server.posted_events import PostedEvents
from jaxrec.serving.server.ranking_answers import RankingAnswers
from jaxrec.serving.server.refusals import RefusedRequest
from jaxrec.serving.server.server_metrics import ServerMetrics
from jaxrec.serving.server.server_settings import ServerSettings

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


class Service:
  """What the routes share: the model in use, the queue in front of it, and the counters."""

  def __init__(self, model: Recommender | ItemRanker, version: str, settings: ServerSettings):
    self.settings, self.metrics = settings, ServerMetrics()
    longest = model.max_length if isinstance(model, ItemRanker) else model.config.data.max_length
    self.posted = PostedEvents(settings.max_users, longest)
    self.answers = answers_of(model, self.posted, version)
    self.batcher = Batcher(self._run, settings.max_batch, settings.batch_wait_ms / 1000, settings.max_queue)
    self.is_closing = threading.Event()
    self._watch()

  async def use(self, model: Recommender | ItemRanker, version: str) -> None:
    """Answers with another model from the next batch on."""
    if self.settings.warm:
      await asyncio.to_thread(warm, model, self.settings.max_batch, self.is_closing.is_set)
    self.answers = answers_of(model, self.posted, version)
    freeze_heap()

  def _run(self, forms):
    start, answers = time.perf_counter(), self.answers
    self.metrics.batch.observe(len(forms))
    results = answers.run(forms)
    self.metrics.model.observe(time.perf_counter() - start)
    return results

  def _watch(self):
    watch = self.metrics.watch
    watch("queue_requests", "Requests that wait for the model.", lambda: len(self.batcher))
    watch("posted_users", "Users with posted events.", lambda: len(self.posted))
    watch("posted_users_dropped", "Users whose posted events were dropped.", lambda: self.posted.dropped)
    for name in ("hits", "misses", "evictions", "users", "bytes"):
      watch(f"states_{name}", f"{name} of the states of users.", functools.partial(self._states, name))

  def _states(self, name):
    states = getattr(self.answers.recommender, "states", None)
    return 0 if states is None else getattr(states.counters, name)


def answers_of(model: Recommender | ItemRanker, posted: PostedEvents, version: str) -> Answers | RankingAnswers:
  """Returns what answers requests with a model."""
  if isinstance(model, ItemRanker):
    return RankingAnswers(model, posted, version)
  return Answers(model, posted, version)


def make_app(
  model: Recommender | ItemRanker, version: str, settings: ServerSettings, source: ModelSource | None = None
) -> FastAPI:
  """Returns the application.

  Args:
    model: answers.
    version: its name, in each answer.
    settings: bounds of work and memory.
    source: is watched for newer models; None: no reload.
  """
  service = Service(model, version, settings)

  @contextlib.asynccontextmanager
  async def lifespan(app):
    await service.batcher.start()
    watching = None
    if source is not None and settings.reload_seconds:
      count = lambda result: service.metrics.reloads.labels(result).inc()  # noqa: E731
      watching = asyncio.create_task(watch_source(source, version, settings.reload_seconds, service.use, count))
    yield
    service.is_closing.set()
    if watching is not None:
      watching.cancel()
    await service.batcher.close()

  app = FastAPI(
    title="jaxrec", lifespan=lifespan, max_body_size=settings.max_body_bytes, docs_url=None, redoc_url=None,
    openapi_url=None,
  )  # fmt: skip
  app.state.service = service
  app.add_middleware(Limits, seconds=settings.timeout_seconds, metrics=service.metrics)
  _add_errors(app)
  _add_model_routes(app, service)
  _add_other_routes(app, service)
  return app


def warm(model: Recommender | ItemRanker, max_batch: int, is_closing: Callable[[], bool] = lambda: False) -> None:
  """Compiles the programs of batches of all sizes, for histories of each padded length.

  Args:
    model: to be used.
    max_batch: largest batch.
    is_closing: whether to stop before the next size.
  """
  if isinstance(model, ItemRanker):
    RankingAnswers(model, PostedEvents(1, 1), "").warm()
  else:
    _warm_recommender(model, max_batch, is_closing)


def freeze_heap() -> None:
  """Takes what is alive now out of later garbage collections, which stop all requests while they look at it.

  A loaded model and its compiled programs are some hundred thousand objects: 200 ms a collection, without this.
  """
  gc.unfreeze()  # What a model of before left behind.
  gc.collect()
  gc.freeze()


def _warm_recommender(recommender, max_batch, is_closing):
  data = recommender.data
  item = (data.items["raw_id"][0], 0, data.domain_names[int(data.items["domain_id"][0]) - 1])
  event = item if data.has_timestamps else item[:1]
  longest, rows = recommender.config.data.max_length, 1
  while True:
    for length in {1, min(65, longest), longest}:
      if is_closing():
        return
      posted = PostedEvents(1, 1)
      form = RecommendForm(history=[event] * length, domain=data.domain_names[0])
      Answers(recommender, posted, "").run([form] * rows)
    if rows >= max_batch:
      return
    rows *= 2


def _add_errors(app):
  @app.exception_handler(RefusedRequest)
  async def refused(_: Request, error: RefusedRequest):
    return JSONResponse(error.body(), error.status, {"Retry-After": "1"} if error.status == 429 else None)

  @app.exception_handler(RequestValidationError)
  async def invalid(_: Request, error: RequestValidationError):
    first = error.errors()[0]
    place = [str(part) for part in first["loc"][1:]]
    if first["type"] == "json_invalid":
      return JSONResponse(RefusedRequest(400, None, f"the body is no JSON: {first['ctx']['error']}").body(), 400)
    field = place[0] if place else None
    where = f"entry {place[1]}: " if len(place) > 1 and place[1].isdigit() else ""
    return JSONResponse(RefusedRequest(422, field, where + first["msg"]).body(), 422)

  @app.exception_handler(HTTPException)
  async def other(_: Request, error: HTTPException):
    return JSONResponse(RefusedRequest(error.status_code, None, error.detail).body(), error.status_code, error.headers)

  @app.exception_handler(Exception)
  async def failed(_: Request, error: Exception):
    return JSONResponse(RefusedRequest(500, None, f"an error of the server: {type(error).__name__}").body(), 500)


def _add_model_routes(app, service):
  @app.post("/recommend")
  async def recommend(form: RecommendForm):
    return JSONResponse(await service.batcher.submit(form))

  @app.post("/score")
  async def score(form: ScoreForm):
    return JSONResponse(await service.batcher.submit(form))

  @app.post("/events")
  async def events(form: EventsForm):
    return JSONResponse(await service.batcher.submit(form))


def _add_other_routes(app, service):
  page = importlib.resources.files("jaxrec.serving.server").joinpath("page.html").read_text(encoding="utf-8")

  @app.get("/")
  async def index():
    return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

  @app.get("/healthz")
  async def healthz():
    return {"status": "ok", "version": service.answers.version}

  @app.get("/metrics")
  async def metrics():
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

  @app.get("/about")
  async def about():
    recommender = service.answers.recommender
    data, is_ranker = recommender.data, isinstance(recommender, ItemRanker)
    return {
      "version": service.answers.version,
      "num_items": data.num_items,
      "domains": data.domain_names,
      "needs_domain": not is_ranker and bool(getattr(recommender.model, "needs_target_domain", False)),
      "has_times": data.has_timestamps,
      "actions": recommender.read_actions if is_ranker else (),
      "no_attention": "it ranks by predicted actions" if is_ranker else why_no_attention(recommender.model),
      "users": data.users["raw_id"].head(20).to_list(),
    }

  @app.get("/items")
  async def items(query: Annotated[str, Query(max_length=100)], limit: Annotated[int, Query(ge=1, le=100)] = 20):
    table = service.answers.recommender.data.items
    text = pl.coalesce(pl.col("title"), pl.col("raw_id")).str.to_lowercase()
    found = table.filter(text.str.contains(query.lower(), literal=True) | (pl.col("raw_id") == query)).head(limit)
    return found.select(item="raw_id", title="title").to_dicts()
