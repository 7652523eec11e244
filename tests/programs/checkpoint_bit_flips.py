"""Flips single bits in the files of a checkpoint and restores it: is each flip noticed, or without effect?

    python tests/programs/checkpoint_bit_flips.py --flips=300 --seed=1

Prints how often what happened, by kind of file. "fell back": the checkpoint before was restored, exactly. "harmless":
what was saved came back, exactly. Anything else is a failure, and the exit code is 1. `test_checkpoints.py` runs a few.
"""

import argparse
import collections
import json
import pathlib
import random
import shutil
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.train.checkpoint import Checkpoints
from jaxrec.train.state import TrainState

POSITION = {"batches": {"next_index": 11, "epoch": 2}, "log": {"count": 3, "sums": {"loss": 1.25}}, "stopping": [0.5]}
GOOD = ("fell back", "harmless")


def state_at(step):
  """Returns a small state with arrays of several shapes and dtypes."""
  rng = np.random.default_rng(step)

  def some(*shape, dtype=jnp.float32):
    return jnp.asarray(rng.normal(size=shape), dtype)

  params = {"items": {"table": some(97, 8)}, "layer": {"kernel": some(8, 24), "bias": jnp.zeros(24), "scale": some(1)}}
  moments = [jax.tree.map(lambda x: some(*x.shape), params) for _ in range(2)]
  optimizer = {"count": jnp.int32(step), "mu": moments[0], "nu": moments[1], "half": some(5, 3, dtype=jnp.bfloat16)}
  return TrainState(jnp.int32(step), params, optimizer, average=moments[1])


def save_two(folder):
  """Saves checkpoints 10 and 11."""
  with Checkpoints(str(folder)) as checkpoints:
    for step in (10, 11):
      checkpoints.save(state_at(step), POSITION | {"step": step}, best_step=10)


def flip(path, rng):
  """Flips one bit of a file, and returns which."""
  content = bytearray(path.read_bytes())
  byte, bit = rng.randrange(len(content)), rng.randrange(8)
  content[byte] ^= 1 << bit
  path.write_bytes(content)
  return byte, bit


def outcome(folder):
  """Returns what restoring gave."""
  try:
    with Checkpoints(str(folder)) as checkpoints:
      state, position = checkpoints.restore(state_at(0))
  except ValueError as error:
    return "refused" if str(folder) in str(error) else f"unclear error {error}"
  except Exception as error:
    return f"foreign error {type(error).__name__}: {error}"
  step = int(state.step)
  if step not in (10, 11) or not _same(state, state_at(step)):
    return "WRONG STATE"
  if position != {"best_step": 10, **POSITION, "step": step}:
    return "WRONG POSITION"
  return "harmless" if step == 11 else "fell back"


def run(flips, seed):
  """Returns {(kind of file, outcome): how often} and a line for each failure."""
  rng, counts, failures = random.Random(seed), collections.Counter(), []
  with tempfile.TemporaryDirectory() as folder:
    whole, broken = pathlib.Path(folder, "whole"), pathlib.Path(folder, "broken")
    save_two(whole)
    files = sorted(f.relative_to(whole) for f in (whole / "11").rglob("*") if f.is_file() and f.stat().st_size)
    sizes = [max((whole / file).stat().st_size, 300) for file in files]  # Small files are as important.
    for _ in range(flips):
      shutil.rmtree(broken, ignore_errors=True)
      shutil.copytree(whole, broken)
      (file,) = rng.choices(files, sizes)
      where = flip(broken / file, rng)
      found = outcome(broken)
      counts["array data" if "/d/" in str(file) else file.name, found[:30]] += 1
      if found not in GOOD:
        failures.append(f"{file} {where}: {found}")
  return counts, failures


def _same(one, other):
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def main():
  """Runs the program."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--flips", type=int, default=300)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  counts, failures = run(arguments.flips, arguments.seed)
  table = [{"file": file, "outcome": found, "count": count} for (file, found), count in sorted(counts.items())]
  print("\n".join(map(json.dumps, table)))
  print("\n".join(failures), file=sys.stderr)
  sys.exit(bool(failures))


if __name__ == "__main__":
  main()
