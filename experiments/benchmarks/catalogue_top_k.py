"""Times the best k of a large catalogue against the exact inner-product index of FAISS, on the same cores in one run.

    pip install --target=packages faiss-cpu
    PYTHONPATH=packages:. python -m experiments.benchmarks.catalogue_top_k --items=1000000 --queries=64 --k=100
    python -m experiments.benchmarks.catalogue_top_k --smoke

Prints one JSON line per variant and a table at the end; the variants are interleaved. The items of all variants are
compared with those of the first; a wrong result gets the error instead of a time, and the program exits with status 1.

Variants: "library" is `Catalogue.top_k`; "small_chunks" the same, 4,096 items at a time; "approximate" the same with
--recall (`jax.lax.approx_max_k`), and the recall that it reached; "faiss" is `faiss.IndexFlatIP`, left out
where faiss is not installed; "scores" the product of queries and items, chunk by chunk, without a search; "read" the
sum of the table, which is the time of reading it from memory. "ratio" in the table is the time of a row divided by that
of "library", for wall time and for processor time, which is less sensitive to other programs on the same cores.
"""

from __future__ import annotations

import importlib.util
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
from jaxrec.cli.text_table import text_table
from jaxrec.evaluation.catalogue import Catalogue
from jaxrec.evaluation.chunked_scores import CHUNK_SIZE

FLAGS = flags.FLAGS
_WITHOUT_ITEMS = ("scores", "read")


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its records and a table."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  sizes = FLAGS.items, FLAGS.width, FLAGS.queries, FLAGS.k, FLAGS.repetitions
  if FLAGS.smoke:
    sizes = 10_000, 8, 4, 5, 2
  if not FLAGS.k <= FLAGS.items:
    sys.exit(f"--k={FLAGS.k} must be at most --items={FLAGS.items}")
  records = []
  for record in measure(*sizes, FLAGS.recall):
    records.append(record)
    publish(record, FLAGS.out)
  print(table(records))
  if any("wrong" in record for record in records):
    sys.exit(1)


def measure(
  num_items: int, width: int, num_queries: int, k: int, repetitions: int, recall: float
) -> Iterator[dict[str, Any]]:
  """Yields one record per variant."""
  rng = np.random.default_rng(0)
  vectors = rng.standard_normal((num_items + 1, width), np.float32)
  queries = rng.standard_normal((num_queries, width), np.float32)
  functions = variants(vectors, queries, k, recall)
  results = {name: function() for name, function in functions.items()}  # Compiles, too.
  times = _times(functions, repetitions)
  sizes = {"items": num_items, "width": width, "queries": num_queries, "k": k, "table_bytes": vectors[1:].nbytes}
  for name in functions:
    record = {"benchmark": "catalogue_top_k", **sizes, "variant": name}
    found = 1.0 if name in _WITHOUT_ITEMS else _recall(results[name], results["library"])
    if found < (recall - 0.05 if name == "approximate" else 0.999):  # Equal scores may come in another order.
      yield record | {"wrong": f"has {found:.4f} of the best items"} | parallel.machine()
      continue
    wall, processor = (1e3 * np.array(times[name])).T
    measured = {"median_ms": statistics.median(wall), "least_ms": min(wall), "most_ms": max(wall)}
    measured |= {"median_processor_ms": statistics.median(processor)}
    rounded = {key: round(float(value), 2) for key, value in measured.items()}
    yield record | {"recall": round(found, 4)} | rounded | {"repetitions": repetitions} | parallel.machine()


def variants(vectors: np.ndarray, queries: np.ndarray, k: int, recall: float) -> dict[str, Callable[[], Any]]:
  """Returns functions that search, by name; each returns the items [B, K], or a number where it has none."""
  on_device, asked = jnp.asarray(vectors), jnp.asarray(queries)
  catalogue = Catalogue(on_device)
  scores, read = jax.jit(_largest_scores), jax.jit(jnp.sum)
  found = {
    "library": lambda: catalogue.top_k(asked, k)[1],
    "small_chunks": lambda: catalogue.top_k(asked, k, chunk_size=CHUNK_SIZE)[1],
    "approximate": lambda: catalogue.top_k(asked, k, recall=recall)[1],
    "scores": lambda: scores(asked, on_device),
    "read": lambda: read(on_device),
  }
  if importlib.util.find_spec("faiss") is not None:
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors[1:])
    found["faiss"] = lambda: index.search(queries, k)[1] + 1
  return found


def _largest_scores(queries, vectors):
  """Returns the largest score of each query of all items but those of a last chunk that is not full."""

  def with_chunk(index, best):
    chunk = jax.lax.dynamic_slice_in_dim(vectors, index * size, size)
    return jnp.maximum(best, jnp.matmul(queries, chunk.T, precision=jax.lax.Precision.HIGHEST).max(axis=1))

  size = min(CHUNK_SIZE, vectors.shape[0])
  return jax.lax.fori_loop(0, vectors.shape[0] // size, with_chunk, jnp.full(queries.shape[0], -jnp.inf))


def _times(functions, repetitions):
  times = {name: [] for name in functions}
  for _ in range(repetitions):
    for name, function in functions.items():
      start = time.perf_counter(), time.process_time()
      jax.block_until_ready(function())
      times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
  return times


def _recall(items, expected) -> float:
  """Returns the share of the expected items of each row that are among its items."""
  pairs = zip(np.asarray(items).tolist(), np.asarray(expected).tolist(), strict=True)
  return float(np.mean([len({*row} & {*best}) / len(best) for row, best in pairs]))


def table(records: list[dict[str, Any]]) -> str:
  """Formats the records as a Markdown table; see the module."""
  rows = [["variant", "ms (least-most)", "processor ms", "recall", "GB/s of the table", "ratio", "processor ratio"]]
  library = records[0]
  for r in records:
    if "wrong" in r:
      rows.append([r["variant"], r["wrong"]])
      continue
    ratios = [
      r[name] / library[name] if name in library else float("nan") for name in ("median_ms", "median_processor_ms")
    ]
    times = f"{r['median_ms']:.1f} ({r['least_ms']:.1f}-{r['most_ms']:.1f})"
    recall = "" if r["variant"] in _WITHOUT_ITEMS else f"{r['recall']:.4f}"
    speed = f"{r['table_bytes'] / r['median_ms'] / 1e6:.2f}"
    rows.append([r["variant"], times, f"{r['median_processor_ms']:.1f}", recall, speed, *(f"{x:.2f}" for x in ratios)])
  return text_table(rows, "-", markdown=True)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_integer("items", 1_000_000, "Items of the catalogue.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("width", 64, "Width of the vectors.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("queries", 64, "Queries of a batch.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("k", 100, "Items to find.", lower_bound=1, flag_values=values)
  flags.DEFINE_float("recall", 0.95, "Recall wanted of the approximate search.", 0, 1, flag_values=values)
  flags.DEFINE_integer("repetitions", 7, "Timed repetitions.", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("smoke", False, "Small sizes, to check that everything runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
