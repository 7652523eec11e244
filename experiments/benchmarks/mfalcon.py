"""Times M-FALCON: many candidates of one user against cached keys and values of a long history.

    python -m experiments.benchmarks.mfalcon --history=2048 --candidates=4096 --microbatches=32,64,128,256,512,1024
    python -m experiments.benchmarks.mfalcon --targets=v5e:2x2,v5p:2x2x1,v6e:2x2,h100 --microbatches=1024
    python -m experiments.benchmarks.mfalcon --smoke

Prints one JSON line per variant and microbatch, and a table. Variants: "one by one" runs history and one candidate
anew for each; "history again" runs the history with each microbatch; "cached" encodes the history once, which its time
includes. The variants take turns within a repetition, and predictions are compared with those of one by one. One by
one and history again are timed on a few candidates and microbatches, and scaled to all.

With --targets nothing runs: the two programs of M-FALCON are compiled for devices that need not be there, in bfloat16,
and a line says what one device holds; for what that needs see `pallas_kernels.aot`.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.benchmarks.records import publish
from jaxrec import parallel
from jaxrec.batches import CANDIDATE, EVENT, ActionType, RankingBatch
from jaxrec.cli.text_table import text_table
from jaxrec.models.ranking import RankingModel
from jaxrec.serving.mfalcon import MFalcon, encode_histories, score_microbatch
from pallas_kernels import aot

FLAGS = flags.FLAGS
TOLERANCE = 1e-4
_ITEMS = 10_000
_SAMPLED = 4  # Runs of one by one and history again in a repetition.


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its records and a table."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  sizes = (FLAGS.history, FLAGS.candidates, [int(text) for text in FLAGS.microbatches], FLAGS.width, FLAGS.layers)
  repetitions = FLAGS.repetitions
  if FLAGS.smoke:
    sizes, repetitions = (40, 24, [4, 16], 8, 1), 1
  if FLAGS.targets:
    compile_for_targets(*sizes)
    return
  records = []
  for record in measure(*sizes, repetitions):
    records.append(record)
    publish(record, FLAGS.out)
  print(table(records))
  if any(record["largest_difference"] > TOLERANCE for record in records):
    sys.exit(1)


def compile_for_targets(history: int, candidates: int, microbatches: list[int], width: int, layers: int) -> None:
  """Prints a record for each target, program and microbatch: seconds of compilation, bytes on the device."""
  for target in FLAGS.targets:
    if reason := aot.why_not(target):
      raise SystemExit(f"mfalcon: {reason}")
  for target in FLAGS.targets:
    for size in microbatches:
      for program, (function, arguments) in _programs(history, size, width, layers).items():
        compiled, seconds = aot.compile_for(function, aot.target_devices(target)[:1], *arguments)
        about = {"benchmark": "mfalcon", "program": program, "target": target, "history": history, "microbatch": size}
        found = {"bytes": aot.memory_of(compiled), "compile_seconds": round(seconds, 1)}
        publish(about | {"width": width, "layers": layers} | found | {"jax": jax.__version__}, FLAGS.out)


def _programs(history, size, width, layers) -> dict[str, tuple[Callable, tuple]]:
  """Returns the two programs of M-FALCON in bfloat16 with their arguments as shapes."""
  model = _build(history, width, layers, jnp.bfloat16)
  past = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, _tokens(np.ones(history, int), np.ones(history, int))))
  params = jax.eval_shape(model.init, jax.random.key(0), past)["params"]
  encode = functools.partial(encode_histories, model, history + size)
  integers = jax.ShapeDtypeStruct((1, size), jnp.int32), {}, jax.ShapeDtypeStruct((1,), jnp.int32)
  cached = jax.eval_shape(encode, params, past)
  score = functools.partial(score_microbatch, model)
  return {"encode": (encode, (params, past)), "score": (score, (params, cached, *integers))}


def measure(
  history: int, candidates: int, microbatches: list[int], width: int, layers: int, repetitions: int
) -> Iterator[dict[str, Any]]:
  """Yields a record for each variant and microbatch; seconds are for all candidates."""
  model, params = _model(history, width, layers)
  rng = np.random.default_rng(0)
  past = _tokens(rng.integers(1, _ITEMS + 1, history), rng.integers(0, 2, history))
  item = rng.permutation(_ITEMS)[:candidates] + 1
  forward = jax.jit(lambda batch: model.apply({"params": params}, batch)["like"][:, history:])
  runs: dict[tuple[str, int], tuple[Callable[[], np.ndarray], float]] = {
    ("one by one", 1): (_again(forward, past, item, 1), candidates / _SAMPLED)
  }
  for size in microbatches:
    count = -(-candidates // size)
    sampled = min(count, _SAMPLED)
    runs["history again", size] = (_again(forward, past, item, size, sampled), count / sampled)
    runs["cached", size] = (_cached(MFalcon(model, params, history, size), past, item, history), 1.0)
  expected = runs["one by one", 1][0]()[0]
  about = {"benchmark": "mfalcon", "history": history, "candidates": candidates, "width": width, "layers": layers}
  seconds = _seconds(runs, repetitions)
  for (variant, size), (run, scale) in runs.items():
    difference = float(np.abs(run()[0, :_SAMPLED] - expected[: min(_SAMPLED, candidates)]).max())
    middle = statistics.median(seconds[variant, size]) * scale
    measured = {"variant": variant, "microbatch": size, "seconds": round(middle, 4), "largest_difference": difference}
    yield (
      about
      | measured
      | {"candidates_per_second": round(candidates / middle), "repetitions": repetitions}
      | parallel.machine()
    )


def _build(history, width, layers, dtype=jnp.float32) -> RankingModel:
  like = ActionType("like", "binary")
  return RankingModel(
    num_items=_ITEMS, actions=(like,), heads=(like,), width=width, max_positions=history + 1, num_layers=layers,
    num_heads=2, head_width=width // 2, value_width=width // 2, attention_length=history + 1, dtype=dtype,
  )  # fmt: skip


def _model(history, width, layers):
  model = _build(history, width, layers)
  params = jax.jit(model.init)(jax.random.key(0), _tokens(np.ones(2, int), np.ones(2, int)))["params"]
  return model, jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), params)


def _tokens(item, like, candidates=()) -> RankingBatch:
  """Returns one row: the events of a history, then candidates that read it."""
  count, more = len(item), len(candidates)
  place = np.concatenate([np.arange(count), np.full(more, count)]).astype(np.int32)[None]
  none = np.zeros_like(place)
  kind = np.where(np.arange(count + more) < count, EVENT, CANDIDATE).astype(np.int32)[None]
  actions = np.concatenate([like, np.zeros(more)]).astype(np.int32)[None]
  return RankingBatch(
    kind=kind, sequence_id=none + 1, position=place, item_id=np.concatenate([item, candidates]).astype(np.int32)[None],
    features={}, context_id=none, timestamp=60 * place, actions={"like": actions}, start=none, end=place,
    weight=none.astype(np.float32), user_id=none,
  )  # fmt: skip


def _again(forward, past, item, size, count=_SAMPLED):
  """Runs the history with each of a few microbatches."""
  batches = [
    _tokens(past.item_id[0], past.actions["like"][0], item[start : start + size])
    for start in range(0, count * size, size)
  ]
  whole = [batch for batch in batches if batch.kind.shape == batches[0].kind.shape]
  on_device = [jax.tree.map(jnp.asarray, batch) for batch in whole]
  return lambda: np.concatenate([np.asarray(forward(batch)) for batch in on_device], axis=1)


def _cached(scorer, past, item, history):
  now = np.array([60 * history])
  return lambda: scorer.score(scorer.encode(past), item[None], now)["like"]


def _seconds(runs, repetitions) -> dict[tuple[str, int], list[float]]:
  seconds = {name: [] for name in runs}
  for repetition in range(repetitions + 1):  # The first compiles.
    for name, (run, _) in runs.items():
      start = time.perf_counter()
      run()
      if repetition:
        seconds[name].append(time.perf_counter() - start)
  return seconds


def table(records: list[dict[str, Any]]) -> str:
  """Formats the records as a Markdown table, with speeds relative to the other variants."""
  one = next(r for r in records if r["variant"] == "one by one")
  again = {r["microbatch"]: r for r in records if r["variant"] == "history again"}
  rows = [["variant", "microbatch", "seconds", "candidates/s", "x one by one", "x history again"]]
  for r in records:
    other = again.get(r["microbatch"])
    ratio = f"{other['seconds'] / r['seconds']:.1f}" if other else "-"
    speed = f"{one['seconds'] / r['seconds']:.1f}"
    cells = [str(r["microbatch"]), f"{r['seconds']:.3f}", str(r["candidates_per_second"]), speed, ratio]
    rows.append([r["variant"], *cells])
  return text_table(rows, "lr", markdown=True)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  number = flags.DEFINE_integer
  number("history", 2048, "Events of the history.", lower_bound=1, flag_values=values)
  number("candidates", 4096, "Candidates of the user.", lower_bound=_SAMPLED, flag_values=values)
  flags.DEFINE_list("microbatches", ["32", "128", "256", "512", "1024"], "Sizes to time.", flag_values=values)
  number("width", 64, "Width of the model.", lower_bound=2, flag_values=values)
  number("layers", 2, "Layers of the model.", lower_bound=1, flag_values=values)
  number("repetitions", 3, "Timed repetitions.", lower_bound=1, flag_values=values)
  flags.DEFINE_list("targets", [], "Compile for these instead, such as v6e:2x2 and h100.", flag_values=values)
  flags.DEFINE_bool("smoke", False, "Small sizes, to check that everything runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
