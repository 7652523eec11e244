"""Compiles attention or a whole training step for TPUs and H100s that are not here: will it fit, and run well?

    python -m experiments.benchmarks.compile_check --targets=v6e:2x2,h100 --lengths=1024,8192 --biases=none,both
    python -m experiments.benchmarks.compile_check --targets=v5p:4x4x4 --config=experiments/configs/ml1m_hstu.py

Prints a JSON line for each program: seconds of compilation, bytes on each device, for training steps the collectives
between devices, and for TPU kernels the static schedule of their tile: bundles (cycles, apart from waits), the share of
the matrix unit's slots in use, spilled values. For H100 kernels: registers and spilled bytes. A program that the
compiler refuses is a line with its "error", and the exit status is 1. What is needed beside this package: see
`pallas_kernels.aot`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from tqdm import tqdm

from jaxrec.cli.config_argument import define_config
from jaxrec.train.target_step import compile_training_step
from pallas_kernels import IntervalMask, RelativeBias, aot, segment_attention, tpu

FLAGS = flags.FLAGS
_BIASES = ("none", "time", "position", "both")


def main(argv: list[str]) -> None:
  """Compiles what the flags ask for and prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  for target in FLAGS.targets:
    reason = aot.why_not(target)
    if reason:
      raise SystemExit(f"compile_check: {reason}")
  failed = False
  with tempfile.TemporaryDirectory() as folder:
    if not FLAGS.config:  # Writing down the schedules of a whole step takes longer than compiling it.
      aot.write_schedules_to(folder)
    os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
    problems = _training_steps() if FLAGS.config else _attentions()
    for about, compile_it in tqdm(problems, desc="compile", disable=None, file=sys.stderr):
      record = about | _outcome(compile_it, folder)
      failed |= "error" in record
      _write(record)
  if failed:
    raise SystemExit(1)


def _write(record):
  line = json.dumps(record)
  tqdm.write(line, file=sys.stdout)
  sys.stdout.flush()
  if FLAGS.out:
    with open(FLAGS.out, "a", encoding="utf-8") as file:
      file.write(line + "\n")


def _outcome(compile_it, folder) -> dict[str, Any]:
  for name in os.listdir(folder):
    os.remove(os.path.join(folder, name))
  try:
    with _captured() as said:
      compiled, seconds = compile_it()
  except Exception as error:  # The compilers raise what they like; the line says what.
    return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
  bodies = aot.tile_bodies(aot.schedule_regions(folder, "attention"))
  return {
    "seconds": round(seconds, 1),
    "bytes": aot.memory_of(compiled),
    **(_collectives(compiled) if FLAGS.config else {}),
    **({"tile": _tiles(bodies)} if bodies else {}),
    **({"ptxas": _registers(said())} if _registers(said()) else {}),
  }


def _collectives(compiled):
  try:
    return {"collectives": aot.collectives_of(compiled)}
  except jax.errors.JaxRuntimeError as error:  # A compiler may be newer than the jaxlib that reads its program.
    return {"not_read": str(error).splitlines()[0]}


def _tiles(bodies):
  """The ways through a whole tile of each kernel, the shortest first."""
  most = {}
  for body in bodies:
    most[body.kernel] = max(most.get(body.kernel, 0), body.used["MXU"])
  whole = [body for body in bodies if body.used["MXU"] > 0.9 * most[body.kernel]]
  return [_describe(body) for body in sorted(whole, key=lambda body: (body.kernel, body.bundles))]


def _describe(region):
  return {
    "kernel": region.kernel,
    "bundles": region.bundles,
    **{f"{unit}_percent": round(100 * region.share(unit), 1) for unit in ("MXU", "VALU", "XLU", "EUP")},
    "spills": region.used["VSTORE:SPILL"],
    "fills": region.used["VLOAD:FILL"],
  }


def _registers(text):
  """Registers and spilled bytes of each kernel, from what ptxas printed."""
  spills = re.findall(r"(\d+) bytes spill stores", text)
  registers = re.findall(r"Used (\d+) registers", text)
  pairs = zip(registers, spills, strict=False)
  return [{"registers": int(used), "spilled_bytes": int(spilled)} for used, spilled in pairs]


@contextlib.contextmanager
def _captured():
  """Catches what compiled code prints past Python; yields a function that returns it."""
  with tempfile.TemporaryFile() as file:
    saved = [(os.dup(fd), fd) for fd in (1, 2)]
    sys.stdout.flush()
    sys.stderr.flush()
    for _, fd in saved:
      os.dup2(file.fileno(), fd)
    text = []
    try:
      yield lambda: text[0]
    finally:
      for copy, fd in saved:
        os.dup2(copy, fd)
        os.close(copy)
      file.seek(0)
      text.append(file.read().decode(errors="replace"))


def _attentions() -> Iterator[tuple[dict[str, Any], Any]]:
  """Every combination of the flags: what it is, and a function that compiles it."""
  axes = (FLAGS.targets, FLAGS.lengths, FLAGS.widths, FLAGS.activations, FLAGS.biases, FLAGS.directions)
  for target, length, width, activation, bias, direction in itertools.product(*axes):
    about = {
      "program": "attention", "target": target, "length": int(length), "width": int(width), "activation": activation,
      "bias": bias, "direction": direction, "dtype": FLAGS.dtype, "heads": FLAGS.heads, "rows": FLAGS.rows,
      **_compilers(target),
    }  # fmt: skip
    if FLAGS.blocks:
      about["blocks"] = [int(size) for size in FLAGS.blocks]
    yield about, lambda about=about: compile_attention(about, FLAGS.blocks)


def _compilers(target):
  """The versions that schedules and memory depend on."""
  versions = {"jax": jax.__version__}
  if ":" in target:  # A TPU topology.
    versions["libtpu"] = importlib.metadata.version("libtpu")
  return versions


def compile_attention(about: dict[str, Any], blocks: list[str] | None = None) -> tuple[Any, float]:
  """Compiles causal attention as described by the fields of a record; returns the program and the seconds it took."""
  devices = aot.target_devices(about["target"])
  implementation = {"h100": "gpu", "b200": "xla"}.get(about["target"], "tpu")  # The GPU kernel is for Hopper.
  rows, length, heads, width = (about[name] for name in ("rows", "length", "heads", "width"))
  vectors = jax.ShapeDtypeStruct((rows, length, heads, width), about["dtype"])
  integers = jax.ShapeDtypeStruct((rows, length), jnp.int32)
  time_table = jax.ShapeDtypeStruct((129,), jnp.float32)
  position_table = jax.ShapeDtypeStruct((2 * length - 1,), jnp.float32)  # An entry for every distance.

  def attend(q, k, v, time_table, position_table, sequence_id, place):
    parts = {}
    if about["bias"] in ("time", "both"):
      parts |= {"time_table": time_table, "query_time": place, "key_time": place}
    if about["bias"] in ("position", "both"):
      parts |= {"position_table": position_table, "query_position": place, "key_position": place}
    return segment_attention(
      q, k, v, IntervalMask.causal(sequence_id), activation=about["activation"], scale=width**-0.5,
      bias=RelativeBias(**parts) if parts else None, implementation=implementation,
      block_sizes=tpu.BlockSizes(*map(int, blocks)) if blocks and implementation == "tpu" else None,
    )  # fmt: skip

  def gradients(*arguments):
    return jax.value_and_grad(lambda *x: attend(*x).astype(jnp.float32).sum(), range(5))(*arguments)

  function = attend if about["direction"] == "forward" else gradients
  arguments = (vectors, vectors, vectors, time_table, position_table, integers, integers)
  return aot.compile_for(function, devices[:1], *arguments)


def _training_steps() -> Iterator[tuple[dict[str, Any], Any]]:
  for target in FLAGS.targets:
    about = {"program": "training step", "target": target, "config": FLAGS.config.name, **_compilers(target)}
    about |= {"dtype": FLAGS.config.train.dtype, "compiler_options": dict(FLAGS.config.train.compiler_options)}
    yield about, lambda target=target: compile_training_step(FLAGS.config, target)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program; not on import, as other programs have flags of the same names."""
  targets_help = "TPU topologies (v5e:2x2, v5p:4x4x4, v6e:16x16, tpu7x:2x2x1, ...) and h100."
  flags.DEFINE_list("targets", ["v6e:2x2"], targets_help, flag_values=values)
  config_help = "Compile this experiment's training step instead of attention; --config.group.key=value changes it."
  define_config(values, config_help)
  flags.DEFINE_list("lengths", ["1024"], "Queries and keys of a row.", flag_values=values)
  flags.DEFINE_list("widths", ["128"], "Widths of a head.", flag_values=values)
  flags.DEFINE_list("activations", ["silu"], "silu, softmax.", flag_values=values)
  flags.DEFINE_list("biases", ["none"], f"Of {', '.join(_BIASES)}.", flag_values=values)
  flags.DEFINE_list("directions", ["forward", "backward"], "backward contains forward.", flag_values=values)
  flags.DEFINE_string("dtype", "bfloat16", "Of q, k and v.", flag_values=values)
  flags.DEFINE_integer("heads", 2, "Heads.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("rows", 1, "Rows.", lower_bound=1, flag_values=values)
  flags.DEFINE_list("blocks", None, "query,key,heads of `tpu.BlockSizes`, for TPUs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to which the lines are appended as well.", flag_values=values)
  flags.register_validator(
    "biases", lambda chosen: set(chosen) <= set(_BIASES), f"must be of {_BIASES}", flag_values=values
  )
  flags.register_validator(
    "directions", lambda chosen: set(chosen) <= {"forward", "backward"}, "must be of forward, backward", values
  )


if __name__ == "__main__":
  define_flags()
  app.run(main)
