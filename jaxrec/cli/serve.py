"""Answers HTTP requests with the model of a run or of an artifact; a page to try it is at /.

    jaxrec serve --workdir=runs/shop
    jaxrec serve --artifact=artifact --port=8080

A run of generative ranking answers with the actions that users would take; its events end with theirs: {"like": 1}.
Listens on this machine only, unless --host says otherwise: there is no password. A newer checkpoint or artifact in the
same folder is loaded while the server answers. SIGTERM ends it after the requests in progress. Needs `jaxrec[serving]`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import pathlib
import signal
import sys
import zlib

from absl import app, flags

from jaxrec.cli.process import describe
from jaxrec.cli.ranking_runs import is_ranking_run, ranker_of
from jaxrec.recommenders import load
from jaxrec.serving.incremental_recommender import with_states
from jaxrec.serving.item_ranker import ItemRanker
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.server.server_settings import ServerSettings
from jaxrec.train.runs import load_run

FLAGS = flags.FLAGS
_NOT_STARTED = 3  # Exit status of uvicorn, too.
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
_KINDS = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  try:
    _serve(ServerSettings(**{field.name: FLAGS[field.name].value for field in dataclasses.fields(ServerSettings)}))
  except (ImportError, NotImplementedError, OSError, ValueError) as error:
    sys.exit(describe(error))


def _serve(settings):
  check_packages()
  if (FLAGS.workdir is None) == (FLAGS.artifact is None):
    raise ValueError("give exactly one of --workdir and --artifact")
  import uvicorn

  from jaxrec.serving.server.app import freeze_heap, make_app, warm
  from jaxrec.serving.server.draining_server import DrainingServer
  from jaxrec.serving.server.model_source import ModelSource

  source = ModelSource(functools.partial(_load, settings.state_bytes), _version)
  version, recommender = source.version(), source.load()
  if settings.warm:
    print("compiling the programs of all batch sizes", flush=True)
    warm(recommender, settings.max_batch)
  freeze_heap()
  print(f"serving {version} on http://{FLAGS.host}:{FLAGS.port}", flush=True)
  logging.getLogger("jaxrec").setLevel(logging.INFO)
  signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn has drained when it raises the signal again: exit with 0.
  config = uvicorn.Config(
    make_app(recommender, version, settings, source), host=FLAGS.host, port=FLAGS.port, log_level="warning",
    log_config=None, access_log=False, server_header=False, limit_concurrency=settings.max_connections,
    timeout_graceful_shutdown=settings.drain_seconds,
  )  # fmt: skip
  server = DrainingServer(config)
  with contextlib.suppress(KeyboardInterrupt):  # Which uvicorn raises again after it has drained.
    server.run()
  if not server.started:  # As when the port is in use, which uvicorn has said.
    sys.exit(_NOT_STARTED)


def check_packages() -> None:
  """Raises ImportError with the name of the extra unless the packages of the server are installed."""
  missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
  if missing:
    raise ImportError(f"{', '.join(missing)} not installed; the server needs them (pip install 'jaxrec[serving]')")


def _load(state_bytes) -> Recommender | ItemRanker:
  if FLAGS.artifact is not None:
    from jaxrec.serving.artifact import load_artifact

    return load_artifact(FLAGS.artifact)
  if is_ranking_run(FLAGS.workdir):
    if state_bytes:
      raise ValueError(f"--{state_bytes=} is for models of sequential recommendation; {FLAGS.workdir} ranks by actions")
    return ranker_of(load_run(FLAGS.workdir, FLAGS.checkpoint, FLAGS.phase))
  recommender = load(FLAGS.workdir, FLAGS.checkpoint, FLAGS.phase)
  return with_states(recommender, state_bytes) if state_bytes else recommender


def _version() -> str:
  """Returns a name of what there is to load: the checkpoints of a run, or the signature of an artifact."""
  if FLAGS.artifact is not None:
    return _name(FLAGS.artifact, [pathlib.Path(FLAGS.artifact, "signature.json")])
  for phase in ("final", "select") if FLAGS.phase is None else (FLAGS.phase,):
    paths = pathlib.Path(FLAGS.workdir, phase, "checkpoints").glob("*")
    if steps := sorted((path for path in paths if path.name.isdigit()), key=lambda path: int(path.name)):
      return _name(f"{FLAGS.workdir}/{phase}/{steps[-1].name}", steps)
  return f"{FLAGS.workdir}: no checkpoint"


def _name(text, paths):
  """Returns a text with a checksum of what tells files from later ones of the same name."""
  return f"{text}-{zlib.crc32(repr([(path.name, path.stat().st_mtime_ns) for path in paths]).encode()):08x}"


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_string("workdir", None, "Workdir of a training run.", flag_values=values)
  flags.DEFINE_string("artifact", None, "Folder that `jaxrec export` wrote.", flag_values=values)
  flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Checkpoint to load.", flag_values=values)
  flags.DEFINE_enum("phase", None, ["select", "final"], "Phase of the run; default: the last one.", flag_values=values)
  flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0: all, without a password.", flag_values=values
  )
  flags.DEFINE_integer("port", 8000, "Port to listen on.", lower_bound=1, upper_bound=65535, flag_values=values)
  for field in dataclasses.fields(ServerSettings):
    kind = type(field.default)
    limits = {} if kind is bool else {"lower_bound": field.metadata["at_least"]}
    _KINDS[kind](field.name, field.default, field.metadata["text"], flag_values=values, **limits)
