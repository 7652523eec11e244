"""Converts raw data into prepared data, which training reads.

    python -m experiments.prepare --source=movielens-1m --raw=ml-1m --out=prepared/ml1m
    python -m experiments.prepare --source=table --raw=log.csv --out=prepared/log --user=uid --item=sku \\
        --timestamp=unix --min_user_events=5 --min_item_events=5 --split=by_time
    python -m experiments.prepare --source=merge --out=prepared/two --min_domain_events=5 \\
        --sources='books=amazon-ratings:Books.csv?edition=2018' \\
        --sources='films=amazon-ratings:Movies_and_TV.csv?edition=2018'
    python -m experiments.prepare --source=table --raw=tuesday.csv --extends=prepared/monday --out=prepared/tuesday

    spark-submit experiments/prepare.py --engine=spark --source=table --raw=/data/log --out=/data/prepared --shards=64

Without --raw, the source's folder in $JAXREC_DATA is read, or the official files are downloaded if they may be
downloaded freely. Every option of the source's reader (`jaxrec/data/sources/`) and of the filters
(`jaxrec.data.preparation.filters`) is a flag; an option that the source does not have is an error.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import signal
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from jaxrec.cli.process import describe
from jaxrec.cli.text_table import label_of_all, text_table
from jaxrec.data.action_columns import ACTION, PREFIX, first_number
from jaxrec.data.local_path import check_local
from jaxrec.data.preparation.prepare import PrepareOptions, prepare, reader_parameters
from jaxrec.data.prepared import PreparedData
from jaxrec.data.printable import printable
from jaxrec.data.sources import GENERATED, SOURCES, generator, source_names, source_reader

FLAGS = flags.FLAGS

_ANY = "any source"
_MAX_DOMAINS, _MAX_ACTIONS = 40, 20  # More domains or actions are not listed.


def _all_options() -> dict[str, list[str]]:
  """Returns option -> names of the sources that have it; every source has those of `PrepareOptions`."""
  sources = {field.name: [_ANY] for field in dataclasses.fields(PrepareOptions)}
  for source in source_names():
    for name in reader_parameters(source):
      if name != "sources":
        sources.setdefault(name, []).append(source)
  return sources


def option_names() -> list[str]:
  """Returns the names of all options of filters, split and readers; each is a flag."""
  return [*_all_options()]


def main(_) -> None:
  """Prepares the data as the flags say and prints a summary."""
  started = time.monotonic()

  def report(line: str) -> None:
    print(f"[{time.monotonic() - started:7.1f} s] {printable(line)}", file=sys.stderr, flush=True)

  before = signal.signal(signal.SIGTERM, _stop)  # As Ctrl-C: what is half written is removed.
  try:
    if FLAGS.raw:
      check_local("--raw", FLAGS.raw)
    if FLAGS.engine:
      print(_prepared_on_spark(report))
      return
    names = ("overwrite", "extends", "shards", "item_features")
    how = {name: FLAGS[name].value for name in names} | {"report": report}
    data = prepare(FLAGS.source, FLAGS.raw, FLAGS.out, **how, **given_options(FLAGS))
  except (ValueError, ImportError) as error:
    raise SystemExit(printable(f"prepare: {error}", keep="\n")) from error
  except OSError as error:
    raise SystemExit(f"prepare: {describe(error)}") from error
  except KeyboardInterrupt as error:
    print(f"prepare: stopped; {FLAGS.out} is as it was before", file=sys.stderr)
    raise SystemExit(128 + (error.args[0] if error.args else signal.SIGINT)) from None
  finally:
    signal.signal(signal.SIGTERM, before)
  report("done")
  print(summary(data))
  print(f"\nTrain on it: {next_command(data)}")


def _prepared_on_spark(report: Callable[[str], None]) -> str:
  """Prepares part files on Spark; returns a summary, for which no event is read."""
  from jaxrec.data.spark.prepare_on_spark import prepare_on_spark

  if FLAGS.source != "table" or not FLAGS.raw or FLAGS.extends or FLAGS.item_features:
    raise ValueError("--engine=spark needs --source=table and --raw, without --extends and --item_features")
  how = {"shards": FLAGS.shards, "overwrite": FLAGS.overwrite, "report": report}
  meta = prepare_on_spark(FLAGS.raw, FLAGS.out, **how, **given_options(FLAGS))
  report("done")
  sizes = ", ".join(f"{meta[f'num_{name}']:,} {name}" for name in ("users", "items", "domains", "events"))
  return "\n".join([sizes, *_dropped(meta["counts"]), printable(f"written to {FLAGS.out} in {FLAGS.shards} shards")])


def next_command(data: PreparedData) -> str:
  """Returns the command that trains a model on prepared data."""
  folder = shlex.quote(str(data.path))
  return f"jaxrec train --config=hstu --data={folder} --workdir={shlex.quote('runs/' + data.path.name)}"


def _stop(number, _) -> None:
  raise KeyboardInterrupt(number)


def summary(data: PreparedData) -> str:
  """Formats the counts of prepared data: a row per domain (if at most 40), a row for all, and what was dropped."""
  rows = [("domain", "users", "items", "events", "training", "validation", "test")]
  user = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
  domains = [*enumerate(data.domain_names, 1)] if 1 < data.num_domains <= _MAX_DOMAINS else []
  for domain, name in [*domains, (None, label_of_all(data.domain_names if domains else ()))]:
    selected = np.ones(data.num_events, bool) if domain is None else np.asarray(data.domain_id) == domain
    items = data.num_items if domain is None else int((data.item_domain()[1:] == domain).sum())
    counts = len(np.unique(user[selected])), items, int(selected.sum()), *np.bincount(data.split[selected], minlength=3)
    rows.append((name, *(f"{count:,}" for count in counts)))
  return "\n".join([text_table(rows, "lr"), *_notes(data)])


def _notes(data: PreparedData) -> list[str]:
  counts = data.meta["counts"]
  lengths = np.diff(data.offsets)
  times = "with timestamps" if data.has_timestamps else "without timestamps"
  events = f"{lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f}"
  notes = [f"{data.num_domains} domain(s); events per user: {events}; {times}"]
  notes += _dropped(counts)
  if "extends" in data.meta:
    added = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in data.meta["extends"].items())
    notes.append(f"extends earlier data, whose ids stay: {added}")
  notes += [action_note(data, column) for column in data.action_names]
  if counts.get("users_train_only"):
    notes.append(f"{counts['users_train_only']:,} users have no validation or test item")
  return [*map(printable, notes), printable(f"written to {data.path}")]


def _dropped(counts: Mapping[str, Any]) -> list[str]:
  return [f"dropped {count:,} events: {reason}" for reason, count in counts.get("dropped", {}).items() if count]


def action_note(data: PreparedData, column: str) -> str:
  """Returns a line with numbers, names and events of the actions of a column that the source wrote as text."""
  values = np.asarray(data.action if column == ACTION else data.actions[column.removeprefix(PREFIX)])
  names, first = data.action_names[column], first_number(column)
  counts = np.bincount(values, minlength=first + len(names))[first:]
  shown = [f"{first + i} = {name} ({counts[i]:,})" for i, name in enumerate(names[:_MAX_ACTIONS])]
  more = f", and {len(names) - _MAX_ACTIONS:,} more" if len(names) > _MAX_ACTIONS else ""
  return f"events by {column.removeprefix(PREFIX)}: {', '.join(shown)}{more}"


def given_options(values: flags.FlagValues) -> dict[str, Any]:
  """Returns the options of filters, split and reader that the flags of `define_source_flags` give.

  Raises:
    ValueError: a value that is not of the type of its option.
  """
  known = reader_parameters(values.source) | inspect.signature(PrepareOptions).parameters
  options = {}
  for name in option_names():
    text = values[name].value
    if text is not None:
      options[name] = parse_value(name, text, known[name].annotation) if name in known else text
  if values.sources:
    options["sources"] = [parse_source(text) for text in values.sources]
  return options


def parse_source(text: str) -> dict[str, Any]:
  """Parses `name=source:raw?option=value&…`, one entry of --sources.

  >>> parse_source("films=amazon-ratings:Movies.csv?edition=2018")
  {'source': 'amazon-ratings', 'raw': 'Movies.csv', 'name': 'films', 'edition': '2018'}
  """
  name, _, rest = text.partition("=")
  source, _, rest = rest.partition(":")
  raw, _, options = rest.partition("?")
  if not name or source not in source_names() or source in ("merge", *GENERATED):
    raise ValueError(f"--sources={text!r}: must be name=source:raw, with a source that has raw files")
  known = reader_parameters(source)
  pairs = urllib.parse.parse_qsl(options, keep_blank_values=True, strict_parsing=bool(options))
  parsed = {key: parse_value(key, value, known[key].annotation) if key in known else value for key, value in pairs}
  return {"source": source, "raw": raw or None, "name": name, **parsed}


def parse_value(name: str, text: str, annotation: Any) -> Any:
  """Converts the text of a flag to the type of the option's annotation.

  >>> parse_value("min_user_events", "5", "int"), parse_value("edition", "2018", "str | None")
  (5, '2018')
  """
  kind = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
  if "bool" in kind:
    if text.lower() not in ("true", "false", "1", "0"):
      raise ValueError(f"--{name}={text}: must be true or false")
    return text.lower() in ("true", "1")
  if "str" in kind or not ("int" in kind or "float" in kind):
    return text
  try:
    return int(text) if "float" not in kind else float(text)
  except ValueError as error:
    raise ValueError(f"--{name}={text}: must be {kind}") from error


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  define_source_flags(values)
  flags.mark_flag_as_required("source", flag_values=values)
  flags.DEFINE_string("out", None, "Folder of the prepared data.", required=True, flag_values=values)
  flags.DEFINE_bool("overwrite", False, "Replace prepared data in the folder.", flag_values=values)
  flags.DEFINE_string(
    "extends", None, "Prepared folder of a day before: its events come first, and its users and items keep their ids.",
    flag_values=values,
  )  # fmt: skip

  flags.DEFINE_string(
    "item_features", None, "Parquet file with further columns of the items: a column 'item' with raw ids, and others"
    " of text, numbers or lists of numbers.", flag_values=values,
  )  # fmt: skip
  flags.DEFINE_enum(
    "engine", "", ["", "spark"], "Prepare Parquet part files on Spark instead of this machine.", flag_values=values
  )
  flags.DEFINE_integer(
    "shards", 1, "Folders inside --out that users are dealt out to; each host of a training opens its own.",
    lower_bound=1, flag_values=values,
  )  # fmt: skip


def define_source_flags(values: flags.FlagValues) -> None:
  """Defines --source, --raw, --sources, and every option of a reader, of the filters and of the split."""
  flags.DEFINE_enum("source", None, source_names(), "Data source.", flag_values=values)
  flags.DEFINE_string(
    "raw", None, "File or folder with the raw data; default: that in $JAXREC_DATA, or a download.", flag_values=values
  )
  merge_help = "With --source=merge: name=source:raw or name=source:raw?option=value&…; repeatable."
  flags.DEFINE_multi_string("sources", [], merge_help, flag_values=values)
  chosen = _named_source(sys.argv)
  for name, sources in _all_options().items():
    flags.DEFINE_string(name, None, option_help(name, sources, chosen), flag_values=values)


def hidden_flags(argv: Sequence[str]) -> set[str]:
  """Returns the options that the source named in the arguments does not have; none where none is named."""
  source = _named_source(argv)
  return {name for name, having in _all_options().items() if source and having != [_ANY] and source not in having}


def _named_source(argv: Sequence[str]) -> str | None:
  named = [text.partition("=")[2] for text in argv if text.startswith("--source=")]
  return named[-1] if named and named[-1] in source_names() else None


def option_help(name: str, sources: Sequence[str], chosen: str | None = None) -> str:
  """Returns the help of an option: what the docstring of a reader that has it says, and which sources have it.

  Args:
    name: of the option.
    sources: those that have it.
    chosen: one of them, whose docstring is read; None: the first.

  >>> option_help("edition", ["amazon-ratings"])[:40]
  'of amazon-ratings: "2014", "2018" or "20'
  """
  if sources == [_ANY]:
    return _described(inspect.getdoc(PrepareOptions) or "").get(name, "")
  source = chosen if chosen in sources else sources[0]
  if source == "merge":
    from jaxrec.data.sources.merge import read_merge as function
  else:
    function = (source_reader if source in SOURCES else generator)(source)
  text = _described(inspect.getdoc(function) or "").get(name, "")
  return text if source == chosen else f"of {', '.join(sources)}: {text}"


def _described(docstring: str) -> dict[str, str]:
  """Returns name -> text of the arguments or fields that a docstring of the house describes, `name, other: text`."""
  texts, names = {}, []
  for line in docstring.splitlines():
    match = re.match(r"\s*((?:\w+, )*\w+): (.*)", line)
    if match:
      names = match[1].split(", ")
      texts |= dict.fromkeys(names, match[2])
    elif names and line.strip():
      texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    else:
      names = []
  return texts
