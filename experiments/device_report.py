"""Says of the device at hand what is right and how fast: checks, times, a table, a web page.

    python -m experiments.device_report --quick --out=report
    python -m experiments.device_report --out=report --sections=checks,attention

Checks every attention implementation that runs on the device: outputs and gradients against the dense reference in
float32, from fresh random inputs, for all masks, both activations, with and without bias, in bfloat16 and float32, at
odd sizes. Times attention forward and backward for rows of 512 to 16,384 tokens (on GPUs also PyTorch's flash
attention, where PyTorch is installed), training steps on random data of the size of MovieLens-1M, and the update of a
large table.

Writes <out>/report.jsonl, a line for each measurement, and <out>/report.md and report.html; prints the same table.
Exit codes: 0 done and right; 1 something is wrong or failed; 75 the device or the time ran out: the same command
continues, and leaves out the measurement during which the process ended.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib
import os
import sys
import tempfile
import time

from absl import app, flags

from jaxrec.device_report import device, journal, pages, report, training_steps

FLAGS = flags.FLAGS
_UNFINISHED = 75


def main(argv: list[str]) -> None:
  """Measures what the flags ask for, and writes the report."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  if unknown := set(FLAGS.sections) - set(report.SECTIONS):
    sys.exit(f"--sections={','.join(sorted(unknown))} names none of {', '.join(report.SECTIONS)}")
  os.makedirs(FLAGS.out, exist_ok=True)
  with tempfile.TemporaryDirectory() as folder:
    finished = measure(folder)
  sys.exit(finished)


def measure(folder: str) -> int:
  """Returns the exit code. folder: for the data of the training steps."""
  path = os.path.join(FLAGS.out, "report.jsonl")
  chosen = [
    entry
    for entry in report.entries(configs(folder), FLAGS.quick)
    if entry.section in (FLAGS.sections or report.SECTIONS) and fnmatch.fnmatchcase(entry.name, FLAGS.names)
  ]
  say = functools.partial(print, file=sys.stderr, flush=True)
  deadline = time.monotonic() + 60 * FLAGS.minutes
  try:
    records = journal.run_entries(chosen, path, device.about(), say, deadline, FLAGS.limit)
  except journal.DeviceLostError as error:
    say(error)
    return _UNFINISHED
  pages.write(records, FLAGS.out)
  print(pages.markdown(records))
  if any(record.get("skipped") == journal.OUT_OF_TIME for record in records):
    return _UNFINISHED
  return int(any("failed" in record for record in records))


def configs(folder: str):
  """What makes the config of each training step, by name; the data are made in `folder` when the first one is asked
  for, unless --data names prepared data."""

  def make(name, dtype, **changes):
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    config.data.prepared = FLAGS.data or os.path.join(folder, "data")
    if not os.path.exists(config.data.prepared):
      training_steps.random_data().save(config.data.prepared)
    config.train.dtype = dtype
    config.model.update(changes)
    return config

  kinds = {f"{name} {dtype}": (name, dtype) for name in ("ml1m_hstu", "ml1m_hstu_large") for dtype in _DTYPES}
  made = {title: functools.partial(make, *kind) for title, kind in kinds.items()}
  return made | {"hstu of 24 layers bfloat16": functools.partial(make, "ml1m_hstu_large", "bfloat16", num_layers=24)}


_DTYPES = ("bfloat16", "float32")


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program; not on import, as other programs have flags of the same names."""
  flags.DEFINE_string("out", None, "Folder of the report; an unfinished one in it is continued.", flag_values=values)
  flags.DEFINE_bool("quick", False, "Fewer cases: less than nine minutes on an accelerator.", flag_values=values)
  flags.DEFINE_list("sections", [], f"Some of {', '.join(report.SECTIONS)}; none: all.", flag_values=values)
  flags.DEFINE_string("names", "*", "Pattern that the names of measurements must match.", flag_values=values)
  flags.DEFINE_float("minutes", 60.0, "After these nothing new is begun.", lower_bound=0.0, flag_values=values)
  limit_help = "Seconds after which a measurement that does not end takes the process with it."
  flags.DEFINE_float("limit", 300.0, limit_help, lower_bound=1.0, flag_values=values)
  data_help = "Folder of prepared data for the training steps; default: random data of MovieLens-1M's size."
  flags.DEFINE_string("data", None, data_help, flag_values=values)
  flags.mark_flag_as_required("out", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
