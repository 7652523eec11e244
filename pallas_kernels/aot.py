"""Compiles for TPUs and NVIDIA GPUs on a machine that has none, and reports what the compilers say.

    devices = target_devices("v5p:16x16x16")  # or "v5e:2x2", "v6e:16x16", "tpu7x:2x2x1", "h100", "b200"
    compiled, seconds = compile_for(step, devices[:1], *shapes)
    compiled.memory_analysis()

It needs the compilers of the target, not its driver: `pip install "jaxrec[compilers]"`, which is `jax[tpu]` for TPUs,
and `jax[cuda13-local]` with nvidia-cuda-nvcc for GPUs. `python -m experiments.benchmarks.compile_check` is a
program around this module.

TPUs issue instructions on a static schedule, which the compiler can write down: `schedule_regions` reads from it how
many bundles each part of a kernel takes, how full the matrix unit's slots are, and how many values are spilled.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import importlib.util
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# What the compiler asks of a GPU that is not there: the numbers of an H100 SXM, and what differs on other GPUs.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {cache}
  clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: {major} minor: 0 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
_GPUS = {
  "h100": {
    "name": "NVIDIA H100 80GB HBM3", "major": 9, "cores": 132, "clock": 1.98, "bandwidth": 3352320000000,
    "cache": 52428800, "memory": 84978434048,
  },
  "b200": {  # From its data sheet; programs are compiled for it, never run.
    "name": "NVIDIA B200", "major": 10, "cores": 148, "clock": 1.96, "bandwidth": 8000000000000,
    "cache": 132644864, "memory": 191000000000,
  },
}  # fmt: skip
_COLLECTIVES = "all-to-all|all-reduce|all-gather|reduce-scatter|collective-permute|ragged-all-to-all"
_BYTES = {
  "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
  "u64": 8, "f64": 8,
}  # fmt: skip


def why_not(target: str) -> str | None:
  """What is missing to compile for `target` here, or None.

  >>> why_not("abacus")
  "target='abacus' is not one of h100, b200 or a TPU topology like 'v6e:2x2'"
  """
  if target in _GPUS:
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
      return "the packages jax-cuda13-plugin and jax-cuda13-pjrt are not installed"
    return None if _find_ptxas() else "ptxas is not on the PATH; pip install nvidia-cuda-nvcc"
  if not re.fullmatch(r"(v\d+[a-z]*|tpu\d+x):\d+(x\d+)*", target):
    return f"{target=} is not one of {', '.join(_GPUS)} or a TPU topology like 'v6e:2x2'"
  return None if importlib.util.find_spec("libtpu") else "the package libtpu is not installed; pip install 'jax[tpu]'"


def _find_ptxas() -> bool:
  """Whether there is a ptxas; that of the package nvidia-cuda-nvcc is put on the PATH."""
  if shutil.which("ptxas"):
    return True
  spec = importlib.util.find_spec("nvidia")
  roots = spec.submodule_search_locations if spec else []
  found = [path for root in roots for path in glob.glob(f"{root}/*/bin/ptxas")]
  if found:
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), os.path.dirname(found[0])])
  return bool(found)


@functools.cache
def target_devices(target: str) -> tuple[jax.Device, ...]:
  """The devices of a target that need not exist.

  Raises:
    ValueError: an unknown target.
    NotImplementedError: the target's compiler is not installed.
  """
  reason = why_not(target)
  if reason:
    raise (ValueError if reason.startswith("target=") else NotImplementedError)(reason)
  if target in _GPUS:
    options = {"topology": "1x1x1", "target_config": _GPU.format(**_GPUS[target])}
    return tuple(topologies.get_topology_desc(topology_name=target, platform="cuda", **options).devices)
  _without_machine()
  return tuple(topologies.get_topology_desc(platform="tpu", topology_name=target).devices)


def _without_machine():
  """Keeps libtpu from asking the network which machine this is, and from locking chips that are not there."""
  for name, value in (
    ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_ACCELERATOR_TYPE", "v6e-4"), ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
  ):  # fmt: skip
    os.environ.setdefault(name, value)


def compile_for(
  function: Callable, devices: Sequence[jax.Device], *arguments: Any, **jit_options: Any
) -> tuple[Any, float]:
  """Compiles `function` for devices that need not exist; returns the program and the seconds that it took.

  Args:
    function: to be compiled; a jitted one must have no shardings of its own.
    devices: from `target_devices`.
    *arguments: arrays or `jax.ShapeDtypeStruct`; those without a sharding are on every device.
    **jit_options: of `jax.jit`.
  """
  everywhere = NamedSharding(Mesh(np.asarray(devices), ("all",)), PartitionSpec())

  def place(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or everywhere)

  return compile_lowered(jax.jit(function, **jit_options).lower(*jax.tree.map(place, arguments)))


def compile_lowered(lowered: Any) -> tuple[Any, float]:
  """Compiles what `jax.jit(...).lower(...)` returned; returns the program and the seconds that it took."""
  option, start = "jax_persistent_cache_min_compile_time_secs", time.perf_counter()
  before = getattr(jax.config, option)
  jax.config.update(option, math.inf)  # A program of absent devices can be written to the cache, but not read again.
  try:
    return lowered.compile(), time.perf_counter() - start
  finally:
    jax.config.update(option, before)


def memory_of(compiled: Any) -> dict[str, int]:
  """Bytes on each device: "arguments", "outputs", "temporary"."""
  analysis = compiled.memory_analysis()
  kinds = {"arguments": "argument", "outputs": "output", "temporary": "temp"}
  return {name: getattr(analysis, f"{kind}_size_in_bytes") for name, kind in kinds.items()}


def collectives_of(compiled: Any) -> dict[str, dict[str, int]]:
  """What a program sends between devices: by kind of collective, how many there are and the bytes of their results.

  Those inside loops count once.
  """
  found: dict[str, dict[str, int]] = {}
  for line in compiled.as_text().splitlines():
    match = re.search(rf" = (.*?) ({_COLLECTIVES})(?:-start)?\(", line)
    if match:
      kind = found.setdefault(match[2], {"count": 0, "bytes": 0})
      kind["count"] += 1
      kind["bytes"] += sum(
        math.prod(int(size) for size in sizes.split(",") if size) * _BYTES[dtype]
        for dtype, sizes in re.findall(r"\b([a-z]+\d+|pred)\[([\d,]*)\]", match[1])
      )
  return found


def write_schedules_to(folder: str) -> None:
  """Has the TPU compiler write down its schedules; only before it is first used in the process.

  Raises:
    ValueError: the folder isn't there.
  """
  if not os.path.isdir(folder):
    raise ValueError(f"{folder=} must be an existing folder")
  options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
  os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {options}".strip()


@dataclasses.dataclass(frozen=True)
class Region:
  """A part of a kernel without branches.

  kernel: its name.
  bundles: instructions on the static schedule, one a cycle apart from waits.
  used: instruction slots in use, by unit; "VLOAD:FILL" and "VSTORE:SPILL" move values that found no register.
  capacity: slots of a bundle, by unit.
  """

  kernel: str
  bundles: int
  used: dict[str, int]
  capacity: dict[str, int]

  def share(self, unit: str) -> float:
    """Used slots of a unit over those that there are."""
    return self.used[unit] / (self.bundles * self.capacity[unit])


def schedule_regions(folder: str, kernel: str) -> list[Region]:
  """The parts of the kernels whose name contains `kernel`, in program order, as `write_schedules_to` asked for."""
  regions = []
  for path in sorted(glob.glob(os.path.join(folder, "*-final_hlo-static-per-bundle-utilization.txt"))):
    name = re.sub(r"^\d+-|-\d+-final_hlo.*$", "", os.path.basename(path))
    if kernel not in name or "fusion" in name:
      continue
    capacity, rows = _utilization(path)
    cuts = [0, *_region_starts(folder, name), len(rows)]
    for first, end in zip(cuts[:-1], cuts[1:], strict=True):
      if end > first:
        totals = (int(x) for x in rows[first:end].sum(axis=0))
        regions.append(Region(name, end - first, dict(zip(capacity, totals, strict=True)), capacity))
  return regions


def _utilization(path):
  """Slots of a bundle by unit, and the slots that each bundle uses, `[bundles, units]`.

  The matrix unit of v5e has slots of two kinds, MATMUL and MATPUSH; those of the products stand for "MXU".
  """
  with open(path, encoding="utf-8") as file:
    lines = [line.strip() for line in file]
  header = next(line for line in lines if re.fullmatch(r"[A-Z:]+(, *[A-Z:]+)+", line))
  units = [{"MATMUL": "MXU"}.get(unit, unit) for unit in re.split(r", *", header)]
  rows = [line.split() for line in lines if re.fullmatch(r"[\d\s]+", line)]
  numbers = np.array([row for row in rows if len(row) == len(units)], int)
  return dict(zip(units, numbers[0].tolist(), strict=True)), numbers[1:]


def _region_starts(folder, name):
  """Bundles to which a branch or a loop leads: the compiler marks them with two letters."""
  (path,) = [
    path for path in glob.glob(os.path.join(folder, f"*-{glob.escape(name)}-*-final_bundles.txt"))
    if "schedule-analysis" not in path
  ]  # fmt: skip
  with open(path, encoding="utf-8") as file:
    marked = (re.match(r"^ *(0x[0-9a-f]+|0) +[A-Z]{2}", line) for line in file)
    return [int(match[1], 16) for match in marked if match]


def tile_bodies(regions: Sequence[Region]) -> list[Region]:
  """The regions that multiply matrices, the most products first: of an attention kernel its ways through a tile."""
  return sorted((region for region in regions if region.used["MXU"] > 16), key=lambda region: -region.used["MXU"])
