"""PyTorch implementation for `experiments.benchmarks.tables`: `nn.Embedding(sparse=True)` with SparseAdam.

That benchmark starts one process per size, with a Python that has PyTorch. This module imports only NumPy and PyTorch.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np


def main(problem: str, num_rows: int, learning_rate: float) -> None:
  """Trains on a problem written by `tables` and prints one JSON line: times of all steps, losses, peak memory."""
  import torch

  torch.set_num_threads(1)
  arrays = np.load(problem)
  ids = {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in ("input", "target", "negative")}
  start = time.perf_counter()
  table = torch.nn.Embedding.from_pretrained(torch.zeros(num_rows, arrays["row"].size), freeze=False, sparse=True)
  table.weight.data += torch.from_numpy(arrays["row"])
  dense = torch.nn.Linear(arrays["row"].size, arrays["row"].size)
  dense.weight.data.copy_(torch.from_numpy(arrays["kernel"].T))
  dense.bias.data.zero_()
  optimizers = (torch.optim.SparseAdam(table.parameters(), learning_rate), torch.optim.Adam(dense.parameters(), 1e-3))
  record = {"init_s": round(time.perf_counter() - start, 2), "torch": torch.__version__}
  wall, processor, losses = [], [], []
  for i in range(len(ids["input"])):
    start = time.perf_counter(), time.process_time()
    for optimizer in optimizers:
      optimizer.zero_grad()
    loss = sampled_softmax(table, dense, {name: x[i] for name, x in ids.items()})
    loss.backward()
    for optimizer in optimizers:
      optimizer.step()
    losses.append(float(loss))
    wall.append(time.perf_counter() - start[0])
    processor.append(time.process_time() - start[1])
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(json.dumps(record | {"wall": wall, "processor": processor, "losses": losses, "peak_gib": round(peak, 2)}))


def sampled_softmax(table, dense, ids):
  """Returns the mean sampled softmax loss of the targets, with shared negatives."""
  import torch

  query = dense(table(ids["input"])).relu()  # [B, N, D]
  negative = query @ table(ids["negative"]).T  # [B, N, R]
  positive = (query * table(ids["target"])).sum(-1, keepdim=True)  # [B, N, 1]
  return (torch.logsumexp(torch.cat([positive, negative], -1), -1, keepdim=True) - positive).mean()


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
