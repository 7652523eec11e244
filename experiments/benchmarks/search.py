"""Times stage one of click-through ranking: searching a long history for each of many candidates, by attention width.

    python -m experiments.benchmarks.search --widths=128,64,32 --history=10000 --candidates=8,32,64,256
    python -m experiments.benchmarks.search --smoke

Prints a JSON line for each number of candidates, variant and width, and a table at the end. A variant is timed for all
widths in turns, and its results are checked against NumPy first; a wrong one gets the error instead of a time, and the
program exits with status 1.

scores: the product of candidates and cached keys, alone. exact, approximate: `history_search.search` with a
recall of 1 and of --recall. sorted: scores, then `jax.lax.top_k` of them. "ratio" in the table is the time of the first
width divided by this one's, by the clock and by processor time, which other programs on the same core disturb less.
"""

from __future__ import annotations

import functools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.benchmarks.records import machine, publish
from jaxrec.serving import history_search

FLAGS = flags.FLAGS
TOLERANCE = 1e-4  # of the largest score


def main(argv: list[str]) -> None:
  """Measures and prints what the flags ask for."""
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
  """Yields a record for each number of candidates, variant and width; the widths of a variant are timed in turns."""
  about = machine()
  for number in candidates:
    inputs = {width: _inputs(number, width, history) for width in widths}
    for variant, function in _variants(k, recall).items():
      programs = {width: jax.jit(function).lower(*inputs[width]).compile() for width in widths}
      times = _times(programs, inputs, repetitions)
      for width in widths:
        record = {"benchmark": "search", "history": history, "k": k, "candidates": number, "variant": variant}
        record |= {"width": width}
        if variant == "approximate":
          record["recall_wanted"] = recall
        problem, found = _check(variant, programs[width](*inputs[width]), inputs[width], k, recall)
        if problem:
          yield record | {"wrong": problem} | about
          continue
        each, processor = (1e6 * np.array(times[width]) / number).T
        measured = {"median_us": statistics.median(each), "least_us": min(each), "most_us": max(each)}
        measured |= {"median_processor_us": statistics.median(processor)}
        rounded = {name: round(float(value), 2) for name, value in measured.items()}
        yield record | found | rounded | {"per": "candidate", "repetitions": repetitions} | about


def _inputs(number, width, history):
  """Candidates and keys whose scores are equally spread for all widths."""
  query, key = jax.random.split(jax.random.key(width))
  keys = jax.random.normal(key, (history, width)) * width**-0.5
  return jax.random.normal(query, (number, width)), history_search.cached(keys, jnp.ones(history, bool))


def _variants(k: int, recall: float) -> dict[str, Callable]:
  return {
    "scores": _scores,
    "exact": functools.partial(history_search.search, k=k),
    "approximate": functools.partial(history_search.search, k=k, recall=recall),
    "sorted": functools.partial(_sorted, k=k),
  }


def _scores(queries, history):
  return jnp.matmul(queries, history.keys, precision=jax.lax.Precision.HIGHEST)  # [B, N]


def _sorted(queries, history, k):
  scores, columns = jax.lax.top_k(jnp.where(history.place >= 0, _scores(queries, history), -jnp.inf), k)
  return scores, history.place[columns]


def _times(programs, inputs, repetitions):
  times = {width: [] for width in programs}
  for repetition in range(repetitions + 1):  # The first warms up.
    for width, program in programs.items():
      start = time.perf_counter(), time.process_time()
      jax.block_until_ready(program(*inputs[width]))
      if repetition:
        times[width].append((time.perf_counter() - start[0], time.process_time() - start[1]))
  return times


def _check(variant, result, inputs, k, recall) -> tuple[str | None, dict[str, float]]:
  """Returns what is wrong with a result, or None, and the recall of a search."""
  queries, history = inputs
  scores = np.asarray(queries) @ np.asarray(history.keys)
  tolerance = TOLERANCE * np.abs(scores).max()
  if variant == "scores":
    difference = np.abs(np.asarray(result) - scores).max()
    return (None if difference <= tolerance else f"differs by {difference:.1e}"), {}
  is_real = np.asarray(history.place) >= 0
  expected = np.empty((len(scores), is_real.sum()), scores.dtype)
  expected[:, np.asarray(history.place)[is_real]] = scores[:, is_real]
  scores, places = (np.asarray(x) for x in result)
  if not np.abs(np.take_along_axis(expected, places, axis=1) - scores).max() <= tolerance:
    return "scores are not those of the places", {}
  least = -np.sort(-expected, axis=1)[:, k - 1 : k]
  found = float(np.mean(scores >= least - tolerance))
  spread = math.sqrt(recall * (1 - recall) / scores.size)  # Of the mean over so many events.
  wanted = recall - 5 * spread if variant == "approximate" else 1.0
  problem = None if found >= wanted else f"found {found:.3f} of the best"
  return problem, {"recall": round(found, 4)}


def table(records: list[dict[str, Any]]) -> str:
  """Returns the records as a Markdown table; times are those of a candidate."""
  lines = [
    "| candidates | variant | width | us (least-most) | ratio | processor us | ratio | recall |",
    "|---" * 8 + "|",
  ]
  first = {}
  for r in records:
    start = f"| {r['candidates']} | {r['variant']} | {r['width']} |"
    if "wrong" in r:
      lines.append(f"{start} {r['wrong']} | | | | |")
      continue
    base = first.setdefault((r["candidates"], r["variant"]), r)
    ratio, of_processor = (base[name] / r[name] for name in ("median_us", "median_processor_us"))
    spread = f"{r['median_us']:.1f} ({r['least_us']:.1f}-{r['most_us']:.1f})"
    processor = f"{r['median_processor_us']:.1f} | {of_processor:.2f}"
    lines.append(f"{start} {spread} | {ratio:.2f} | {processor} | {r.get('recall', '')} |")
  return "\n".join(lines)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program; not on import, as other programs have flags of the same names."""
  flags.DEFINE_list("widths", ["128", "64", "32"], "Widths of attention vectors.", flag_values=values)
  flags.DEFINE_list("candidates", ["8", "32", "64", "256"], "Candidates of a request.", flag_values=values)
  flags.DEFINE_integer("history", 10_000, "Events of the history.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("k", 20, "Events to be found.", lower_bound=1, flag_values=values)
  flags.DEFINE_float("recall", 0.95, "Of the approximate search.", lower_bound=0, upper_bound=1, flag_values=values)
  flags.DEFINE_integer("repetitions", 15, "Measurements of each.", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("smoke", False, "Small sizes, to see that all runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to which the JSON lines are appended as well.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
