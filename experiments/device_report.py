"""Says of the device at hand what is right and how fast: checks, times, a table, a web page.

    python -m experiments.device_report --quick --out=report
    python -m experiments.device_report --out=report --sections=checks,attention

Writes <out>/report.jsonl, a line for each measurement, and <out>/report.html; prints a table. The same command
continues an interrupted report, and leaves out the measurement during which the process ended. No network.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import sys
import tempfile
import time

from absl import app, flags

from jaxrec.device_report import attention_checks, attention_times, device, journal
from jaxrec.device_report.journal import Entry

FLAGS = flags.FLAGS


def main(argv):
  os.makedirs(FLAGS.out, exist_ok=True)
  path = os.path.join(FLAGS.out, "report.jsonl")
  entries = [e for e in all_entries() if not FLAGS.sections or e.section in FLAGS.sections]
  entries = [e for e in entries if fnmatch.fnmatchcase(e.name, FLAGS.names)]
  deadline = time.monotonic() + 60 * FLAGS.minutes
  try:
    records = journal.run_entries(entries, path, device.about(), functools.partial(print, flush=True), deadline, FLAGS.limit)
  except journal.DeviceLostError as error:
    sys.exit(str(error))
  print(len(records), "records")


def all_entries():
  import jax
  on_gpu = jax.default_backend() == "gpu"
  impl = ("gpu", "xla", "dense") if on_gpu else ("xla", "dense")
  out = [
    Entry("peak bfloat16", "device", functools.partial(device.peak_of_products, "bfloat16")),
    Entry("peak float32", "device", functools.partial(device.peak_of_products, "float32")),
    Entry("bandwidth", "device", device.bandwidth),
  ]
  for i in impl:
    for case in attention_checks.cases(FLAGS.quick):
      if i == "gpu" and case.dtype == "float32":
        continue
      out.append(Entry(f"{i} {case}", "checks", functools.partial(attention_checks.check, case, i)))
  W = attention_times.Workload
  def timed(w, i):
    out.append(Entry(f"{i} {w}", "attention", functools.partial(attention_times.measure, w, i)))
  for n in (4096, 1024, 512, 2048, 8192, 16384) if on_gpu else (512, 1024):
    rows = max(1, 2**17 // n) if on_gpu else 1
    for a in ("silu", "softmax"):
      for i in ("gpu", "torch"):
        timed(W(n, rows=rows, activation=a), i)
    if n <= 4096:
      small = max(1, 2**15 // n) if on_gpu else 1
      for i in ("dense", "xla"):
        timed(W(n, rows=small), i)
  if on_gpu:
    for n in (1024, 4096):
      timed(W(n, width=64, rows=2**17 // n), "gpu")
      timed(W(n, width=64, rows=2**17 // n, tables="time position"), "gpu")
      timed(W(n, width=128, rows=2**17 // n, tables="time position"), "gpu")
    timed(W(4096, width=128, rows=32, domains=8), "gpu")
    for n, d, h, b in ((256, 25, 2, 57), (512, 50, 1, 28)):
      for dt in ("float32", "bfloat16"):
        for i in ("dense", "xla", "gpu"):
          timed(W(n, width=d, heads=h, rows=b, dtype=dt, tables="time position"), i)
  from jaxrec.device_report import training_steps
  def step(name, **changes):
    import importlib
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    folder = os.environ.get("ML1M") or os.path.join(tempfile.mkdtemp(), "data")
    if not os.path.exists(folder):
      training_steps.random_data().save(folder)
    config.data.prepared = folder
    config.update_from_flattened_dict(changes)
    return training_steps.time_step(config, 20 if on_gpu else 3)
  for name in ("ml1m_hstu", "ml1m_hstu_large"):
    for dt in ("float32", "bfloat16"):
      out.append(Entry(f"{name} {dt}", "steps", functools.partial(step, name, **{"train.dtype": dt})))
  out.append(Entry("hstu 24 layers bfloat16", "steps", functools.partial(step, "ml1m_hstu_large", **{"train.dtype": "bfloat16", "model.num_layers": 24})))
  out.append(Entry("table update", "tables", functools.partial(training_steps.time_table_update, 2**20, 2**24 if on_gpu else 2**20, 128, 20 if on_gpu else 1)))
  return out


if __name__ == "__main__":
  flags.DEFINE_string("out", None, "", required=True)
  flags.DEFINE_string("names", "*", "")
  flags.DEFINE_float("limit", 120, "")
  flags.DEFINE_bool("quick", True, "")
  flags.DEFINE_list("sections", [], "")
  flags.DEFINE_float("minutes", 60, "")
  app.run(main)
