"""Predictions of an exported ranking model. Needs jax, numpy, and flatbuffers, which `jax.export` reads with."""

import json
import pathlib

import jax
import numpy as np
from jax import export


def load(folder):
  """Returns predict(history, items, at) -> {value: [K]}, what a user would do with each of K items.

  history: (item id, seconds, {action: number}) of each event, oldest first, at least one.
  items: item ids.
  at: seconds of the request; None: those of the last event.
  """
  folder = pathlib.Path(folder)
  signature = json.loads((folder / "signature.json").read_text())
  program = jax.jit(export.deserialize(bytearray((folder / "program.bin").read_bytes())).call)
  weights = [np.load(folder / entry["file"]) for entry in signature["weights"]]
  actions = [(entry["name"][len("action.") :], entry["dtype"]) for entry in signature["inputs"][2:-2]]

  def predict(history, items, at=None):
    item, time, done = zip(*history[-signature["longest_history"] :], strict=True)
    more = -len(item) % signature["length_multiple"]
    columns = [(item, "int32"), (np.subtract(time, time[0]), "int32")]
    columns += [([one[name] for one in done], dtype) for name, dtype in actions]
    inputs = [np.pad(np.asarray(values, dtype), (0, more))[None] for values, dtype in columns]  # [1, N] each.
    asked = (time[-1] if at is None else at) - time[0]
    found = program(weights, *inputs, np.array([items], np.int32), np.array([asked], np.int32))
    return dict(zip(signature["values"], np.asarray(found)[0].T, strict=True))

  return predict
