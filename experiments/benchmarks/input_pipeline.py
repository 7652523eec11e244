"""Measures how fast training batches are made: rows of packed histories, as at the `pod` configuration.

    python -m experiments.benchmarks.input_pipeline --out=experiments/results/input_pipeline_cpu.jsonl
    python -m experiments.benchmarks.input_pipeline --events=20000 --rows=8 --length=64 --batches=2

Prints one JSON line per variant. Batches are only made, nothing trains on them. "per core" divides by the processor
seconds of this process instead of the seconds on the clock, so that other programs on the machine matter little.

one piece, 8 shards: `TrainingBatches[i]` one after another in this process.
thread: the iterator of the training loop, a thread that works ahead (Grain).
1, 2 workers: Grain's worker processes (`mp_prefetch`), which send batches through shared memory.
store of 50, 200 MB/s: columns are read as over a mounted bucket of that speed, in pages of 4 KiB of which none is kept;
  the thread works ahead.
put: the time to put a batch on the device, for comparison.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import app, flags

from experiments.benchmarks.records import publish
from jaxrec import parallel
from jaxrec.data.batches.sharded_training import make_training_batches
from jaxrec.data.batches.training import TrainingOptions
from jaxrec.data.prepared import PreparedData

FLAGS = flags.FLAGS
_PAGE = 4096  # Bytes.
_COLUMNS = ("item_id", "domain_id", "timestamp")


def main(argv: list[str]) -> None:
  """Runs all variants and prints their records."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  with tempfile.TemporaryDirectory() as folder:
    for record in measured(pathlib.Path(folder), FLAGS.events, FLAGS.rows, FLAGS.length, FLAGS.batches):
      publish(record, FLAGS.out or None)


def measured(
  folder: pathlib.Path, events: int, rows: int, length: int, count: int, workers: Sequence[int] = (1, 2)
) -> Iterator[dict[str, Any]]:
  """Yields a record for each variant.

  Args:
    folder: for the prepared data.
    events: of all users, of whom each has 2 / 5 of `length` in the mean.
    rows, length: of a batch.
    count: of batches that are timed; some more are made before.
    workers: numbers of worker processes.
  """
  made = some_data(events, length)
  whole = made.save(folder / "whole")
  shards = made.save(folder / "shards", shards=8)
  options = TrainingOptions(rows_per_batch=rows, max_length=length, row_length=length)
  sizes = {"program": "input pipeline", "events": events, "rows": rows, "length": length, "batches": count}
  batches = make_training_batches(whole, options)
  yield sizes | {"variant": "one piece"} | rate(lambda: in_turn(batches), count)
  sharded = make_training_batches(shards, options)
  yield sizes | {"variant": "8 shards"} | rate(lambda: in_turn(sharded), count)
  yield sizes | {"variant": "thread"} | rate(lambda: iter(working_ahead(batches)), count)
  for number in workers:
    how = grain.MultiprocessingOptions(num_workers=number, per_worker_buffer_size=4)
    in_processes = working_ahead(batches).mp_prefetch(how)
    yield sizes | {"variant": f"{number} workers"} | rate(functools.partial(iter, in_processes), count)
  for speed in (50, 200):
    slow = make_training_batches(over_a_mount(whole, speed), options)
    yield sizes | {"variant": f"store of {speed} MB/s"} | rate(functools.partial(iter, working_ahead(slow)), count)
  yield sizes | {"variant": "put"} | rate(lambda: put(batches), count)


def some_data(events: int, length: int) -> PreparedData:
  """Returns users whose histories have a log-normal number of events, in the mean 2 / 5 of `length`."""
  rng = np.random.default_rng(0)
  weight = rng.lognormal(0, 1, max(events * 5 // (2 * length), 16))
  lengths = np.maximum((weight / weight.sum() * events).astype(np.int64), 3)
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  user = np.repeat(np.arange(len(lengths)), lengths)
  second = rng.integers(0, 10_000_000, offsets[-1])
  order = np.lexsort((second, user))
  item = rng.integers(1, 1_000_000, offsets[-1])
  return PreparedData.from_columns(offsets=offsets, item_id=item, timestamp=second[order] + 1_700_000_000)


def in_turn(batches: Any) -> Iterator[Any]:
  """Yields batches that this thread makes."""
  return (batches[index] for index in range(len(batches)))


def working_ahead(batches: Any) -> grain.IterDataset:
  """Returns batches as the training loop reads them: a thread is some batches ahead."""
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  return grain.MapDataset.source(batches).to_iter_dataset(options)


def put(batches: Any) -> Iterator[Any]:
  """Yields batches that are on the device."""
  mesh, made = parallel.make_mesh(), [batches[index] for index in range(8)]
  while True:
    for batch in made:
      yield jax.block_until_ready(parallel.shard_batch(batch, mesh))


def rate(make: Callable[[], Iterator[Any]], count: int) -> dict[str, Any]:
  """Returns tokens and examples a second of an iterator, and per second of this process's processor time."""
  batches = make()
  warm = [next(batches) for _ in range(6)]  # More than are ahead.
  del warm
  started, processor, tokens, examples = time.perf_counter(), time.process_time(), 0, 0
  for _ in range(count):
    batch = next(batches)
    item = np.asarray(batch.item_id)
    tokens += int(np.count_nonzero(item))
    examples += int(np.asarray(batch.sequence_id).max(axis=1).sum())
  seconds, processor = time.perf_counter() - started, time.process_time() - processor
  if hasattr(batches, "close"):
    batches.close()
  return {
    "tokens_per_second": round(tokens / seconds), "examples_per_second": round(examples / seconds),
    "tokens_per_core_second": round(tokens / processor), "milliseconds": round(1000 * seconds / count, 3),
    "tokens": tokens,
  }  # fmt: skip


class Column(np.ndarray):
  """A column whose elements come over a mount: as many bytes a second as `store` gives, in whole pages."""

  store: Store

  def __getitem__(self, index: Any) -> np.ndarray:
    values = self.view(np.ndarray)
    if isinstance(index, np.ndarray) and index.size:
      pages = np.unique(index * values.itemsize // _PAGE)
      self.store.read(len(pages) * _PAGE)
    return values[index]


@dataclasses.dataclass
class Store:
  """A store that gives `speed` bytes a second to all readers together."""

  speed: float

  def __post_init__(self):
    self._free_at, self._lock = 0.0, threading.Lock()

  def read(self, size: int) -> None:
    """Waits until so many bytes have come."""
    with self._lock:
      self._free_at = max(self._free_at, time.monotonic()) + size / self.speed
      until = self._free_at
    time.sleep(max(0.0, until - time.monotonic()))


def over_a_mount(data: PreparedData, megabytes: float) -> PreparedData:
  """Returns data whose columns of events are read from a store with so many megabytes a second."""
  store, columns = Store(megabytes * 1e6), {}
  for name in _COLUMNS:
    columns[name] = np.asarray(getattr(data, name)).view(Column)
    columns[name].store = store
  return dataclasses.replace(data, **columns)


def define_flags() -> None:
  """Defines the flags of this program."""
  flags.DEFINE_integer("events", 4_000_000, "Events of the data that are made.")
  flags.DEFINE_integer("rows", 64, "Rows of a batch.")
  flags.DEFINE_integer("length", 1024, "Length of a row, and the longest history.")
  flags.DEFINE_integer("batches", 60, "Batches that are timed.")
  flags.DEFINE_string("out", "", "File to which the lines are appended.")


if __name__ == "__main__":
  define_flags()
  app.run(main)
