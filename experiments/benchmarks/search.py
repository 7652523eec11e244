"""Times stage one of click-through ranking, the search of a long history for each candidate, by attention width.

    python -m experiments.benchmarks.search --widths=128,64,32 --history=10000 --candidates=8,32,64,256
    python -m experiments.benchmarks.search --widths=128,64,32 --history=100000 --candidates=8,32
    python -m experiments.benchmarks.search --smoke

Prints one JSON line per number of candidates, variant and width, and a table at the end. The widths of a variant are
interleaved. Results are checked against NumPy; a wrong result gets the error instead of a time, and the program exits
with status 1.

| variant | what is timed |
|---|---|
| scores | the product of candidates and cached keys |
| selection | finding the k best among given scores |
| exact, approximate | `history_search.search` with recall 1 and --recall: both of the above |
| bfloat16, int8 | an exact search of keys that are cached in these types; recall is that of the true scores |
| sorted | scores, followed by `jax.lax.top_k` |
| numpy | the product, `argpartition` and a sort of the k best |
| faiss | `IndexFlatIP`, an exact search, where FAISS is installed |

"ratio" in the table is the time of the first width divided by the time of this width, for wall time and for processor
time, which is less sensitive to other programs on the same core.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Array, Float

from experiments.benchmarks.records import publish
from jaxrec import parallel
from jaxrec.cli.text_table import text_table
from jaxrec.serving import history_search

FLAGS = flags.FLAGS
TOLERANCE = 1e-4  # relative to the largest score
ROUNDED = {"bfloat16": 0.01, "int8": 0.02}  # The same for keys of these types.


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its records and a table."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  widths, candidates = ([int(text) for text in texts] for texts in (FLAGS.widths, FLAGS.candidates))
  sizes = (widths, candidates, FLAGS.history, FLAGS.k, FLAGS.repetitions)
  if FLAGS.smoke:
    sizes = ([16, 8], [3, 70], 640, 5, 2)
  records = []
  for record in measure(*sizes, FLAGS.recall):
    records.append(record)
    publish(record, FLAGS.out)
  print(table(records))
  if any("wrong" in record for record in records):
    sys.exit(1)


def measure(
  widths: list[int], candidates: list[int], history: int, k: int, repetitions: int, recall: float
) -> Iterator[dict[str, Any]]:
  """Yields one record per number of candidates, variant and width; the widths of a variant are interleaved."""
  about = parallel.machine()
  for count in candidates:
    inputs = {width: _inputs(count, width, history) for width in widths}
    for variant, make in _variants(k, recall).items():
      programs = {width: make(inputs[width]) for width in widths}
      times = _times(programs, repetitions)
      for width in widths:
        record = {"benchmark": "search", "history": history, "k": k, "candidates": count, "variant": variant}
        record |= {"width": width}
        if variant == "approximate":
          record["recall_wanted"] = recall
        problem, found = _check(variant, programs[width](), inputs[width], k, recall)
        if problem:
          yield record | {"wrong": problem} | about
          continue
        each, processor = (1e6 * np.array(times[width]) / count).T
        measured = {"median_us": statistics.median(each), "least_us": min(each), "most_us": max(each)}
        measured |= {"median_processor_us": statistics.median(processor)}
        rounded = {name: round(float(value), 2) for name, value in measured.items()}
        yield record | found | rounded | {"per": "candidate", "repetitions": repetitions} | about


class Inputs(NamedTuple):
  """Candidates and the keys of a history, in order of time and as they are cached."""

  queries: Array
  keys: Float[np.ndarray, "N M"]
  history: history_search.HistoryKeys


def _inputs(count, width, history) -> Inputs:
  """Returns candidates and keys; their scores have unit variance for every width."""
  query, key = jax.random.split(jax.random.key(width))
  keys = jax.random.normal(key, (history, width)) * width**-0.5
  cached = history_search.cache_keys(keys, jnp.ones(history, bool))
  return Inputs(jax.random.normal(query, (count, width)), np.asarray(keys), cached)


def _variants(k: int, recall: float) -> dict[str, Callable[[Inputs], Callable[[], Any]]]:
  """Returns the name of each variant -> inputs -> a program without arguments."""
  search = functools.partial(history_search.search, k=k)
  variants = {
    "scores": lambda inputs: _compiled(_scores, inputs.queries, inputs.history),
    "selection": functools.partial(_selection, k=k),
    "exact": lambda inputs: _compiled(search, inputs.queries, inputs.history),
    "approximate": lambda inputs: _compiled(functools.partial(search, recall=recall), inputs.queries, inputs.history),
    "bfloat16": functools.partial(_rounded, search=search, dtype="bfloat16"),
    "int8": functools.partial(_rounded, search=search, dtype="int8"),
    "sorted": lambda inputs: _compiled(functools.partial(_sorted, k=k), inputs.queries, inputs.history),
    "numpy": functools.partial(_numpy, k=k),
  }
  if importlib.util.find_spec("faiss"):
    variants["faiss"] = functools.partial(_faiss, k=k)
  return variants


def _compiled(function, *arguments):
  program = jax.jit(function).lower(*arguments).compile()
  return lambda: jax.block_until_ready(program(*arguments))


def _scores(queries, history):
  return jnp.matmul(queries, history.keys, precision=jax.lax.Precision.HIGHEST)  # [B, N]


def _selection(inputs, k):
  scores = jax.block_until_ready(_scores(inputs.queries, inputs.history))

  def select(scores, position):
    best, column = history_search.exact_top_k(scores, (position >= 0).sum(dtype=jnp.int32), k)
    return best, position[column]

  return _compiled(select, scores, inputs.history.position)


def _rounded(inputs, search, dtype):
  history = history_search.cache_keys(jnp.asarray(inputs.keys), jnp.ones(len(inputs.keys), bool), dtype)
  return _compiled(search, inputs.queries, history)


def _sorted(queries, history, k):
  scores, columns = jax.lax.top_k(jnp.where(history.position >= 0, _scores(queries, history), -jnp.inf), k)
  return scores, history.position[columns]


def _numpy(inputs, k):
  queries, keys = np.asarray(inputs.queries), np.ascontiguousarray(inputs.keys.T)

  def search():
    scores = queries @ keys
    found = np.argpartition(scores, -k, axis=1)[:, -k:]
    best = np.take_along_axis(scores, found, axis=1)
    order = np.argsort(-best, axis=1)
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(found, order, axis=1)

  return search


def _faiss(inputs, k):
  import faiss

  index = faiss.IndexFlatIP(inputs.keys.shape[1])
  index.add(np.ascontiguousarray(inputs.keys))
  queries = np.ascontiguousarray(inputs.queries)
  return lambda: index.search(queries, k)


def _times(programs, repetitions):
  times = {width: [] for width in programs}
  for repetition in range(repetitions + 1):  # The first is not timed.
    for width, program in programs.items():
      start = time.perf_counter(), time.process_time()
      program()
      if repetition:
        times[width].append((time.perf_counter() - start[0], time.process_time() - start[1]))
  return times


def _check(variant, result, inputs, k, recall) -> tuple[str | None, dict[str, float]]:
  """Returns the error of a result, or None, and the recall of a search."""
  if variant == "scores":
    expected = np.asarray(inputs.queries) @ np.asarray(inputs.history.keys)
    difference = np.abs(np.asarray(result) - expected).max()
    return (None if difference <= TOLERANCE * np.abs(expected).max() else f"differs by {difference:.1e}"), {}
  expected = np.asarray(inputs.queries) @ inputs.keys.T  # [B, N] in order of time
  scores, positions = (np.asarray(x) for x in result)
  tolerance = ROUNDED.get(variant, TOLERANCE) * np.abs(expected).max()
  true = np.take_along_axis(expected, positions, axis=1)
  if not np.abs(true - scores).max() <= tolerance:
    return "scores are not those of the positions", {}
  least = -np.partition(-expected, k - 1, axis=1)[:, k - 1 : k]
  found = float(np.mean(true >= least - TOLERANCE * np.abs(expected).max()))
  std = math.sqrt(recall * (1 - recall) / scores.size)  # Of the mean over the events found.
  required = recall - 5 * std if variant == "approximate" else 0.8 if variant in ROUNDED else 1.0
  problem = None if found >= required else f"recall {found:.3f} is below {required:.3f}"
  return problem, {"recall": round(found, 4)}


def table(records: list[dict[str, Any]]) -> str:
  """Formats the records as a Markdown table; times are per candidate."""
  rows = [["candidates", "variant", "width", "us (least-most)", "ratio", "processor us", "ratio", "recall"]]
  first = {}
  for r in records:
    case = [str(r["candidates"]), r["variant"], str(r["width"])]
    if "wrong" in r:
      rows.append([*case, r["wrong"]])
      continue
    base = first.setdefault((r["candidates"], r["variant"]), r)
    ratio, processor_ratio = (f"{base[name] / r[name]:.2f}" for name in ("median_us", "median_processor_us"))
    times = f"{r['median_us']:.1f} ({r['least_us']:.1f}-{r['most_us']:.1f})"
    rows.append([*case, times, ratio, f"{r['median_processor_us']:.1f}", processor_ratio, str(r.get("recall", ""))])
  return text_table(rows, "-", markdown=True)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_list("widths", ["128", "64", "32"], "Widths of attention vectors.", flag_values=values)
  flags.DEFINE_list("candidates", ["8", "32", "64", "256"], "Numbers of candidates per request.", flag_values=values)
  flags.DEFINE_integer("history", 10_000, "Number of events in the history.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("k", 20, "Number of events to find.", lower_bound=1, flag_values=values)
  flags.DEFINE_float("recall", 0.95, "Recall of approximate.", lower_bound=0, upper_bound=1, flag_values=values)
  flags.DEFINE_integer("repetitions", 15, "Timed repetitions.", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("smoke", False, "Small sizes, to check that everything runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
