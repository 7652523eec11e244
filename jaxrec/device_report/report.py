"""The report as a whole: what is measured, in what order, on the device at hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxrec.device_report import attention_checks, attention_times, device, training_steps
from jaxrec.device_report.attention_times import Workload
from jaxrec.device_report.journal import Entry

SECTIONS = ("device", "checks", "attention", "steps", "tables")
_TOKENS = 2**17  # of a workload on an accelerator: enough to fill it


def entries(configs: Mapping[str, Callable[[], ConfigDict]], quick: bool) -> list[Entry]:
  """Returns all measurements in the order in which they are worth having.

  Args:
    configs: what makes the config of each training step, by name; its data must be prepared or generated.
    quick: a choice of them, for less than nine minutes on an accelerator.
  """
  platform = jax.default_backend()
  return [
    Entry("product bfloat16", "device", functools.partial(device.peak_of_products, "bfloat16")),
    Entry("product float32", "device", functools.partial(device.peak_of_products, "float32")),
    Entry("copy", "device", device.bandwidth),
    *_checks(platform, quick),
    *_attention(platform, quick),
    *_steps(configs, platform),
    *_tables(platform),
  ]


def _checks(platform, quick):
  """The implementations that run here; on a CPU the TPU kernels too, interpreted."""
  implementations = {"cpu": ("xla", "dense", "tpu"), "gpu": ("gpu", "dense", "xla"), "tpu": ("tpu", "dense", "xla")}
  return [
    Entry(f"{name} {case}", "checks", functools.partial(attention_checks.check, case, name, interpret))
    for name in implementations[platform]
    for interpret in [name == "tpu" and platform != "tpu"]
    for case in attention_checks.cases(quick)
    if not (name == "gpu" and case.dtype == "float32")
  ]


def _attention(platform, quick):
  pairs = list(_accelerator_workloads(platform, quick) if platform != "cpu" else _cpu_workloads(quick))
  found = []
  for workload, name in pairs:
    measure = functools.partial(attention_times.measure, workload, name)
    ahead = functools.partial(attention_times.compile_ahead, workload, name) if name == platform else None
    found.append(Entry(f"{name} {workload}", "attention", measure, ahead))
  return found


def _cpu_workloads(quick):
  for length in (512, 1024, 2048) if quick else (512, 1024, 2048, 4096, 8192, 16384):
    for name in ("xla", "dense"):
      for activation in ("silu",) if quick else ("silu", "softmax"):
        yield Workload(length, width=64, heads=2, activation=activation, dtype="float32"), name
  for name in ("xla", "dense"):
    yield Workload(256, 25, heads=2, rows=8, dtype="float32", tables="time position"), name


def _accelerator_workloads(platform, quick):
  def rows(length, tokens=_TOKENS):
    return max(1, tokens // length)

  lengths = (512, 1024, 2048, 4096, 8192, 16384)
  both = "time position"
  for length in lengths:
    yield Workload(length, rows=rows(length)), platform
  for length in (1024, 4096, 16384) if quick else lengths:
    yield Workload(length, rows=rows(length), activation="softmax"), platform
  for length in (1024, 4096):
    for width in (128, 64):
      yield Workload(length, width, rows=rows(length), tables=both), platform
    yield Workload(length, 64, rows=rows(length)), platform
  yield Workload(4096, rows=rows(4096), domains=8), platform
  for length, width, heads, batch in ((256, 25, 2, 57), (512, 50, 1, 28)):
    for name, dtype in ((platform, "bfloat16"), ("dense", "bfloat16"), ("dense", "float32"), ("xla", "float32")):
      yield Workload(length, width, heads, batch, dtype=dtype, tables=both), name
  if platform == "gpu":
    for length in lengths:
      yield Workload(length, rows=rows(length), activation="softmax"), "torch"
  few = 2**15
  for length in (512, 1024, 2048, 4096):
    yield Workload(length, rows=rows(length, few)), "dense"
  for length in (1024, 4096):
    for name in ("dense", "xla"):
      yield Workload(length, rows=rows(length, few), dtype="float32"), name
  if not quick:
    for length in lengths:
      yield Workload(length, rows=rows(length, few)), "xla"


def _steps(configs, platform):
  steps = 3 if platform == "cpu" else 30
  return [
    Entry(name, "steps", functools.partial(_time_step, make_config, steps)) for name, make_config in configs.items()
  ]


def _time_step(make_config, steps) -> dict[str, Any]:
  return training_steps.time_step(make_config(), steps)


def _tables(platform):
  rows, steps = (2**20, 1) if platform == "cpu" else (2**24, 20)
  update = functools.partial(training_steps.time_table_update, 2**20, rows, 128, steps)
  return [Entry("update of 1,048,576 ids, width 128, Adam", "tables", update)]
