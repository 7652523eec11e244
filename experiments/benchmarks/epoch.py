"""Times an epoch of training beside RecTools and RecBole, on the same events.

    python -m experiments.benchmarks.epoch --config=experiments/configs/ml1m_hstu.py --negatives=128 \\
      --rectools_python=P --recbole_python=P --out=epochs.jsonl

Each library trains in a process of its own, one after the other, with its own batching and optimizer; RecTools and
RecBole run in the Python interpreters that have them. Model, width, layers, heads, events of a user and users of a
batch are those of the config, and RecTools draws as many negatives of each position. Prints one JSON line a library:
`epoch_s`, extrapolated from the mean of `steps` batches after two that are not timed; `users_per_s`; `peak_gib` of the
process.

"jaxrec" has the negatives of each position, "jaxrec_shared" those of the config. RecBole has SASRec, not HSTU; it makes
a sample of each prefix of a history and trains with the softmax over all items (`loss_type="CE"`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from experiments.benchmarks.other_libraries import Clock
from experiments.benchmarks.records import publish
from experiments.benchmarks.training import Training
from jaxrec import parallel
from jaxrec.cli.config_argument import define_config
from jaxrec.data import load
from jaxrec.data.prepared import VALIDATION

FLAGS = flags.FLAGS
OWN, OTHERS = ("jaxrec", "jaxrec_shared"), ("rectools", "recbole")
UNTIMED = 2  # Steps that compile, or fill caches.


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its records."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  if FLAGS.child:
    publish(own_epoch(FLAGS.config, FLAGS.steps), None)
    return
  with tempfile.TemporaryDirectory() as folder:
    problem = os.path.join(folder, "problem.npz")
    write_problem(FLAGS.config, FLAGS.negatives, FLAGS.steps, problem)
    for library in FLAGS.libraries:
      about = {"benchmark": "epoch", "config": FLAGS.config.name, "library": library} | parallel.machine()
      publish(about | measure(library, problem, folder), FLAGS.out)


def measure(library: str, problem: str, folder: str) -> dict:
  """Returns the record of a library, from a process of its own."""
  if library in OTHERS:
    python = os.path.abspath(FLAGS[f"{library}_python"].value)
    script = os.path.join(os.path.dirname(__file__), "other_libraries.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return _last_line([python, script, library, problem], folder, environment)
  command = [sys.executable, "-m", "experiments.benchmarks.epoch", "--child"]
  return _last_line(command + own_arguments(library, sys.argv[1:], FLAGS.negatives), os.getcwd(), os.environ)


def own_arguments(library: str, arguments: list[str], negatives: int) -> list[str]:
  """Returns the arguments of a process for this library.

  >>> own_arguments("jaxrec_shared", ["--config=a.py", "--steps=4", "--out=b"], negatives=5)
  ['--config=a.py', '--steps=4']
  """
  own = [name for name in arguments if name.startswith(("--config", "--steps"))]
  if library == "jaxrec":
    own += [f"--config.objective.num_negatives={negatives}", "--config.objective.sharing=position"]
  return own


def _last_line(command, folder, environment):
  found = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(found.stdout.splitlines()[-1])


def own_epoch(config: ConfigDict, steps: int) -> dict:
  """Returns the times of this library's epoch."""
  training, clock = Training.from_config(config, UNTIMED + steps), Clock({"untimed": UNTIMED, "steps": steps})
  for i in range(UNTIMED + steps):
    scalars = training.step(i)
    if i + 1 in (UNTIMED, UNTIMED + steps):
      jax.block_until_ready(scalars)
    clock.step()
  objective = {name: config.objective[name] for name in ("num_negatives", "sharing") if name in config.objective}
  return clock.record(training.plan.timetable.num_steps, config.train.batch_size) | objective


def write_problem(config: ConfigDict, negatives: int, steps: int, path: str) -> None:
  """Writes the training events of a config's data, in order, and its settings."""
  data = load.load_data(config.data)
  user = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
  is_training = np.asarray(data.split) < VALIDATION
  settings = {
    "model": config.model.name, "width": config.model.width, "layers": config.model.num_layers,
    "heads": config.model.num_heads, "length": config.data.max_length, "users": config.train.batch_size,
    "negatives": negatives, "dropout": config.model.dropout, "rate": config.optimizer.learning_rate,
    "steps": steps, "untimed": UNTIMED,
  }  # fmt: skip
  columns = {"user": user, "item": np.asarray(data.item_id), "time": np.asarray(data.timestamp)}
  columns = {name: x[is_training] for name, x in columns.items()}
  np.savez(path, settings=json.dumps(settings), **columns)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  define_config(values, "Experiment config of HSTU or SASRec.")
  flags.DEFINE_list("libraries", [*OWN, *OTHERS], "Libraries to time.", flag_values=values)
  flags.DEFINE_integer("negatives", 128, "Negatives of each position.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("steps", 20, "Batches that are timed.", lower_bound=1, flag_values=values)
  for name in OTHERS:
    flags.DEFINE_string(f"{name}_python", sys.executable, f"Python interpreter with {name}.", flag_values=values)
  flags.DEFINE_bool("child", False, "Time this library in this process.", flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)
  flags.mark_flag_as_required("config", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
