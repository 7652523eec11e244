"""Scores of an exported model. Needs jax, numpy, and flatbuffers, with which `jax.export` reads programs."""

import json
import pathlib

import jax
import numpy as np
from jax import export


def load(folder):
  """Returns score(history, domain, at) -> [V + 1], the score of each item id; entry 0 is padding.

  history: (item id, domain id, seconds) of each event, oldest first; without one, scores are numbers of events.
  domain, at: domain id and seconds of the request; None: those of the last event.
  """
  folder = pathlib.Path(folder)
  signature = json.loads((folder / "signature.json").read_text())
  program = jax.jit(export.deserialize(bytearray((folder / "program.bin").read_bytes())).call)
  weights = [np.load(folder / entry["file"]) for entry in signature["weights"]]
  vectors, popularity = np.load(folder / "item_vectors.npy"), np.load(folder / "popularity.npy")
  longest, extra, multiple = (signature[name] for name in ("longest_history", "extra_positions", "length_multiple"))

  def score(history, domain=None, at=None):
    if not len(history):
      return popularity
    events = np.array(history[-longest:], np.int64)  # [N, 3]
    first, last = events[0, 2], events[-1]
    request = [last[1] if domain is None else domain, (last[2] if at is None else at) - first]
    events[:, 2] -= first
    padded = np.pad(events, ((0, -(len(events) + extra) % multiple + extra), (0, 0)))
    columns = [*padded.T[:, None], *np.reshape(request, (2, 1))]  # Three [1, N] and two [1].
    return vectors @ np.asarray(program(weights, *(x.astype(np.int32) for x in columns)))[0]

  return score
