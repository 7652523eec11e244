"""Says of the device at hand what is right and how fast: checks, times, a table, a web page.

    jaxrec check --quick --out=report
    jaxrec check --out=report --sections=checks,attention

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
import os
import sys
import tempfile
import time
from collections.abc import Callable

from absl import app, flags
from ml_collections import ConfigDict

from jaxrec.data.prepared import PreparedData
from jaxrec.device_report import device, journal, pages, report, training_steps
from jaxrec.train.named_configs import named_config

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
  """Takes the measurements, writes the pages and returns the exit code.

  Args:
    folder: for the data of the training steps.
  """
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


def configs(folder: str) -> dict[str, Callable[[], ConfigDict]]:
  """Returns, by name, what makes the config of each training step: HSTU at the sizes of MovieLens-1M.

  Args:
    folder: where data are made when the first config is asked for, unless --data names prepared data.
  """

  def make(dtype, sizes):
    path = FLAGS.data or os.path.join(folder, "data")
    data = PreparedData.load(path) if os.path.exists(path) else training_steps.random_data().save(path)
    config = named_config("hstu", data)
    config.data.max_length, config.data.row_length = 200, 512 if sizes["num_layers"] == 2 else 256
    config.model.update(sizes, width=50, max_positions=211, attention_length=211)
    config.train.batch_size, config.train.dtype = 128, dtype
    return config

  small, large = (
    {"num_layers": layers, "num_heads": heads, "head_width": 50 // heads, "value_width": 50 // heads}
    for layers, heads in ((2, 1), (8, 2))
  )
  kinds = {"ml1m_hstu": small, "ml1m_hstu_large": large}
  made = {
    f"{name} {dtype}": functools.partial(make, dtype, sizes)
    for name, sizes in kinds.items()
    for dtype in ("bfloat16", "float32")
  }
  return made | {"hstu of 24 layers bfloat16": functools.partial(make, "bfloat16", large | {"num_layers": 24})}


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_string("out", None, "Folder of the report; an unfinished one in it is continued.", flag_values=values)
  flags.DEFINE_bool("quick", False, "Fewer cases: less than nine minutes on an accelerator.", flag_values=values)
  flags.DEFINE_list("sections", [], f"Some of {', '.join(report.SECTIONS)}; none: all.", flag_values=values)
  flags.DEFINE_string("names", "*", "Pattern that the names of measurements must match.", flag_values=values)
  flags.DEFINE_float("minutes", 60.0, "After these no further measurement starts.", lower_bound=0.0, flag_values=values)
  limit_help = "Seconds after which a measurement that does not end takes the process with it."
  flags.DEFINE_float("limit", 300.0, limit_help, lower_bound=1.0, flag_values=values)
  data_help = "Folder of prepared data for the training steps; default: random data of MovieLens-1M's size."
  flags.DEFINE_string("data", None, data_help, flag_values=values)
  flags.mark_flag_as_required("out", flag_values=values)
