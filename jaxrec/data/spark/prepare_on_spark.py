"""Part files of events -> prepared data in shards, on a cluster that runs Spark.

    prepare_on_spark("log/", "prepared/log", shards=64, min_user_events=5)

Events are only ever on the workers. This process holds the tables of users and items, and a length for each user. All
of them see the part files and the folder that is written, by the same paths.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from jaxrec.batches import MULTI_CLASS
from jaxrec.data import event_values, fingerprint, prepared_files, prepared_shards
from jaxrec.data.action_columns import PREFIX
from jaxrec.data.column_checks import COLUMNS
from jaxrec.data.preparation import action_names, assemble, filters, number_ids
from jaxrec.data.preparation.filters import PrepareOptions
from jaxrec.data.preparation.prepare import split_options
from jaxrec.data.preparation.raw_state import files_state
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import InteractionLog
from jaxrec.data.sources.parquet_parts import find_parts
from jaxrec.data.sources.tabular import TableColumns, read_table
from jaxrec.data.spark.event_filters import by_time, k_core, without_duplicates
from jaxrec.data.spark.event_pieces import PLACE, RATED, EventPieces, in_polars
from jaxrec.data.spark.scratch import Scratch, spark_errors
from jaxrec.data.spark.shard_writer import RESULT, SHARD, ShardWriter, described
from jaxrec.data.whole_folder import whole_folder

if TYPE_CHECKING:
  from pyspark.sql import DataFrame, SparkSession

_OF_TEXT_FILES = ("separator", "quote", "encoding", "header", "names")


def prepare_on_spark(
  raw: str | os.PathLike,
  out: str | os.PathLike,
  *,
  shards: int,
  overwrite: bool = False,
  report: Callable[[str], None] | None = None,
  session: SparkSession | None = None,
  **options: Any,
) -> dict[str, Any]:
  """Writes the prepared folder that `prepare("table", raw, out, shards=shards, ...)` writes, and returns its `meta`.

  Args:
    raw: Parquet part files: a file, a folder, or a pattern.
    out: the folder to write; it appears complete or not at all.
    shards: folders inside `out`; the events of one must fit into the memory of a worker.
    overwrite: whether to replace an existing prepared folder.
    report: called with a line of text at each stage.
    session: of Spark; None for the one that runs, as of spark-submit, or a local one.
    **options: as of `prepare`, but those of text files.

  Raises:
    ImportError: there is no package pyspark.
    ValueError: as `prepare`; there are no Parquet files; more shards than users.
  """
  prepare_options, reader_options = split_options("table", options)
  if of_text := [name for name in _OF_TEXT_FILES if name in reader_options]:
    raise ValueError(f"{of_text} are options of text files; on Spark the source must be Parquet part files")
  table, path = _table(reader_options), pathlib.Path(out)
  prepared_files.check_free(path, overwrite)
  before = files_state(raw)
  if not (parts := find_parts(raw)):
    raise ValueError(f"{raw}: no Parquet files; on Spark the source must be a Parquet file, a folder or a pattern")
  pieces = EventPieces.of(parts, table, prepare_options.min_rating)
  session = _session(session)
  with prepared_files.writing(path), whole_folder(path, overwrite) as unfinished:
    with prepared_files.writing(path):
      scratch = Scratch(session, unfinished / "scratch")
      run = _Preparation(scratch, pieces, prepare_options, shards, report or (lambda _: None))
      meta, event_hashes = run.write(unfinished)
      shutil.rmtree(unfinished / "scratch")
      meta |= {"options": assemble.recorded(reader_options, prepare_options), "raw_files": before}
      meta |= {"fingerprint": run.fingerprint(meta, event_hashes)}
    (unfinished / "meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
  return meta


def _table(reader_options: Mapping[str, Any]) -> TableColumns:
  known = {name: x.default for name, x in inspect.signature(read_table).parameters.items()} | dict(reader_options)
  meanings = ("user", "item", "timestamp", "domain", "action", "rating", "title")
  how = (known[name] for name in ("actions", "ids", "time_unit", "outside_period"))
  return TableColumns.of({name: known[name] for name in meanings}, *how)


def _session(session: SparkSession | None) -> SparkSession:
  """Returns a session with settings of its own."""
  try:
    from pyspark.sql import SparkSession
  except ImportError as error:
    raise ImportError(f"preparing on Spark needs the package pyspark: pip install 'jaxrec[spark]' ({error})") from error
  session = (session or SparkSession.builder.appName("jaxrec prepare").getOrCreate()).newSession()
  session.conf.set("spark.sql.caseSensitive", "true")  # Columns of actions may be "Like" and "like".
  return session


@dataclasses.dataclass
class _Preparation:
  """One preparation: its events are frames of Spark, its tables of users and items are here."""

  scratch: Scratch
  pieces: EventPieces
  options: PrepareOptions
  shards: int
  report: Callable[[str], None]

  def __post_init__(self):
    self.counts: dict[str, Any] = {"raw_rows": int(self.pieces.pieces["rows"].sum()), "dropped": {}}
    self.left = self.counts["raw_rows"]
    self.action_names: dict[str, tuple[str, ...]] = {}

  def write(self, folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Writes shards and id tables, and returns `meta` and the hashes of the columns of all events."""
    events, listed = self._read()
    self.report("numbering users, items and domains")
    events, users, items, domains = self._numbered(events, listed)
    events = k_core(self.scratch, events, len(domains), self.options, self._drop, self.report)
    events, users, items, lengths = self._renumbered(events, users, items, len(domains))
    cuts = self._cuts(events)
    self.report(f"writing {self.shards} shards with {self.left:,} events")
    kinds, time_unit = self.pieces.table.kinds, self.pieces.time_unit
    writer = ShardWriter(folder, self.shards, len(domains), time_unit, kinds, self.options.held_out_events, cuts)
    found = described(self._written(events, writer))
    tally = found.pop("tally")
    if cuts is not None:
      filters.check_cuts(cuts, tally["splits"], tuple(found["times"]))
    self.counts |= assemble.counts_of_users(lengths, tally, domains)
    self.items, self.users = items, users
    self.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items.write_parquet(folder / "items.parquet")
    users.write_parquet(folder / "users.parquet")
    meta = {"format": prepared_files.FORMAT, "source": "table", "num_users": len(users), "num_items": len(items)}
    meta |= {"num_domains": len(domains), "num_events": self.left, "domain_names": list(domains)}
    meta |= {"split": filters.described_split(self.options, cuts), "counts": self.counts, **found}
    meta |= {"has_timestamps": "timestamp" in events.columns}
    if self.action_names:
      meta |= {"action_names": {name: list(names) for name, names in self.action_names.items()}}
    self.report("hashing the columns")
    return meta, fingerprint.hashes_of_blocks(prepared_shards.columns_in_order(folder, meta))

  def fingerprint(self, meta: Mapping[str, Any], event_hashes: Mapping[str, str]) -> dict[str, Any]:
    """Returns the fingerprint of what `write` has written."""
    columns = {name: np.zeros(0, dtype) for name, dtype in COLUMNS.items()}
    tables = {"item_table": self.items, "user_table": self.users}
    return fingerprint.fingerprint(PreparedData(**columns, offsets=self.offsets, meta=meta, **tables), event_hashes)

  def _drop(self, reason: str, number: int) -> None:
    self.counts["dropped"][reason] = self.counts["dropped"].get(reason, 0) + number
    self.left -= number
    if not self.left:
      raise ValueError(f"no event is left; dropped: {self.counts['dropped']}; lower the limits")

  def _read(self) -> tuple[DataFrame, pl.DataFrame | None]:
    """Returns the events without low ratings and duplicates, and the items with titles, where the files have them."""
    from pyspark.sql import functions as F

    self.report(f"reading {len(self.pieces.pieces)} pieces of part files with {self.left:,} events")
    events, listed = self.scratch.settled(self.pieces.read(self.scratch.session)), None
    if early := self.left - events.count():
      self._drop("before 1970", early)
    if "title" in events.columns:
      first = F.min(F.when(F.col("title").isNotNull(), F.struct(PLACE, "title")))
      listed = self.scratch.collected(events.groupBy("item").agg(first.alias("first")).select("item", "first.title"))
      listed = listed.sort("item")
    for name in self.pieces.names_of_actions:
      events = self._with_numbers(events, name)
    if self.options.min_rating is not None:
      self._drop("rated below min_rating", events.where(~F.col(RATED)).count())
    events = events.where(F.col(RATED)).drop(RATED, "title")
    events, repeated = without_duplicates(self.scratch, events, self.options)
    if self.options.duplicates != "keep":
      self._drop("duplicate", repeated)
    return events, listed

  def _with_numbers(self, events: DataFrame, name: str) -> DataFrame:
    """Returns the events with numbers in place of the texts of an action."""
    meaning = in_polars(name)
    column = self.pieces.table.columns[self.pieces.table.name_of[meaning]]
    texts = self.scratch.collected(events.select(name).distinct().limit(action_names.MOST_NAMES + 1))[name]
    values = event_values.numbers_or_names(texts, column.numbers, lambda _: f"the action {meaning!r}").alias(meaning)
    kinds = {meaning.removeprefix(PREFIX): MULTI_CLASS} if meaning.startswith(PREFIX) else {}
    numbered = action_names.with_numbers(InteractionLog(pl.DataFrame([values]), action_kinds=kinds))
    self.action_names |= numbered.action_names
    return self._replaced(events, name, texts, numbered.events[meaning])

  def _numbered(
    self, events: DataFrame, listed: pl.DataFrame | None
  ) -> tuple[DataFrame, pl.DataFrame, pl.DataFrame, tuple[str, ...]]:
    """Returns the events with integers for users, items and domains, the two tables and the names of the domains."""
    from pyspark.sql import functions as F

    log, domains = InteractionLog(pl.DataFrame(), items=listed), ("all",)
    if "domain" in events.columns:
      found = self.scratch.collected(events.select("domain").distinct())["domain"]
      domains = number_ids.domains_in_order(found.to_list(), log)
      numbers = number_ids.with_domain_ids(pl.DataFrame({"domain": found}), domains)["domain"]
      events = self._replaced(events, "domain", found, numbers)
    else:
      events = events.withColumn("domain", F.lit(1))
    per_domain = self.options.item_identity == "per_domain"

    def distinct(keys: list[str]) -> pl.DataFrame:
      return self.scratch.collected(events.select(*keys).distinct())

    users, items = number_ids.id_tables(distinct, log, domains, per_domain)
    events = self._replaced(events, "user", users["user"], np.arange(len(users), dtype=np.int32))
    keys = ["item", "domain"] if per_domain else ["item"]
    ids = self.scratch.frame(items.select(keys).with_columns(__id=np.arange(len(items), dtype=np.int32)))
    events = events.join(ids, keys).drop("item").withColumnRenamed("__id", "item")
    return self.scratch.settled(events), users, items, domains

  def _replaced(self, events: DataFrame, name: str, before: Any, after: Any) -> DataFrame:
    """Returns the events with other values in a column."""
    values = self.scratch.frame(pl.DataFrame({name: before, "__id": after}))
    return events.join(values, name).drop(name).withColumnRenamed("__id", name)

  def _renumbered(
    self, events: DataFrame, users: pl.DataFrame, items: pl.DataFrame, num_domains: int
  ) -> tuple[DataFrame, pl.DataFrame, pl.DataFrame, np.ndarray]:
    """Returns events with ids of the users and items that are left and their shards, tables of prepared data, lengths.

    Raises:
      ValueError: more shards than users.
    """
    from pyspark.sql import functions as F

    counted = self.scratch.collected(events.groupBy("user").agg(F.count("*").alias("length"))).sort("user")
    lengths, kept = counted["length"].to_numpy(), counted["user"].to_numpy()
    prepared_shards.check_count(self.shards, len(kept))
    shard = np.empty(len(kept), np.int64)
    for index, of_shard in enumerate(prepared_shards.deal(lengths, self.shards)):
      shard[of_shard] = index
    if self.options.min_item_events:
      left = self.scratch.collected(events.select("item").distinct())["item"].sort()
      events = self._replaced(events, "item", left, np.arange(len(left), dtype=np.int32))
      items = items[left]
    domain = np.ones(len(items), np.int32)
    if num_domains > 1 and "domain" not in items.columns:
      first = F.min(F.struct("user", *by_time(events), "domain"))["domain"]
      found = self.scratch.collected(events.groupBy("item").agg(first.alias("domain")))
      domain[found["item"].to_numpy()] = found["domain"].to_numpy()
    new = pl.DataFrame({"user": kept, "__id": np.arange(len(kept), dtype=np.int32), SHARD: shard})
    events = events.join(self.scratch.frame(new), "user").drop("user").withColumnRenamed("__id", "user")
    return events, assemble.user_table(users[kept]), assemble.item_table(items, domain), lengths

  def _cuts(self, events: DataFrame) -> tuple[int, int] | None:
    """Returns the times in seconds at which validation and test begin; None where the split is by user."""
    filters.check_split(events.columns, self.options)
    if self.options.split == "leave_one_out":
      return None
    given = self.options.validation_time, self.options.test_time
    quantiles = filters.quantiles_of_split(self.options)
    return tuple(
      self._time_at(events, quantile) if time is None else time for time, quantile in zip(given, quantiles, strict=True)
    )

  def _time_at(self, events: DataFrame, quantile: float) -> int:
    """Returns a quantile of the times as numpy's "higher" has it: found by days, and then in that day."""
    from pyspark.sql import functions as F

    second = F.expr(f"timestamp div {event_values.UNITS[self.pieces.time_unit]}")
    rank = int(np.ceil((self.left - 1) * quantile))
    for unit in (86_400, 1):
      value = (second - second % unit).alias("value")
      counted = self.scratch.collected(events.groupBy(value).agg(F.count("*").alias("n"))).sort("value")
      index = int(np.searchsorted(counted["n"].cum_sum().to_numpy(), rank, side="right"))
      rank -= int(counted["n"][:index].sum())
      found = int(counted["value"][index])
      events = events.where((second >= found) & (second < found + unit))
    return found

  def _written(self, events: DataFrame, writer: ShardWriter) -> list[dict[str, Any]]:
    """Returns what `ShardWriter.write` says of each shard."""
    from pyspark.sql import functions as F

    # Spark deals rows to partitions by a hash of a key: a key for each partition, so that each gets one shard.
    numbers = self.scratch.session.range(32 * self.shards + 256).select(
      "id", F.expr(f"pmod(hash(id), {self.shards})").alias("p")
    )
    keys = dict(numbers.groupBy("p").agg(F.min("id")).collect())
    frame = self.scratch.frame(
      pl.DataFrame({SHARD: np.arange(self.shards), "key": [keys.get(p, p) for p in range(self.shards)]})
    )
    dealt = events.join(F.broadcast(frame), SHARD).repartition(self.shards, "key").drop("key")
    with spark_errors():
      rows = dealt.mapInArrow(
        functools.partial(ShardWriter.__call__, writer), f"{SHARD} long, {RESULT} string"
      ).collect()
    return [json.loads(row[RESULT]) for row in sorted(rows)]
