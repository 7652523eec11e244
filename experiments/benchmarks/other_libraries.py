"""An epoch of RecTools or RecBole for `experiments.benchmarks.epoch`: imports only NumPy and that library.

Usage: `python other_libraries.py rectools problem.npz`
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time

import numpy as np


def main(library: str, problem: str) -> None:
  """Trains on a problem written by `epoch` and prints one JSON line."""
  columns = np.load(problem)
  settings = json.loads(str(columns["settings"]))
  events = {name: columns[name] for name in ("user", "item", "time")}
  print(json.dumps({"rectools": rectools, "recbole": recbole}[library](events, settings)))


class Clock:
  """The time of `steps` steps after `untimed` ones."""

  def __init__(self, settings):
    self.settings, self.count, self.start, self.total = settings, 0, 0.0, 0.0
    self.last = settings["untimed"] + settings["steps"]

  def step(self) -> bool:
    """Counts a step that has ended; says whether it was the last."""
    self.count += 1
    if self.count == self.settings["untimed"]:
      self.start = time.perf_counter()
    if self.count == self.last:
      self.total = time.perf_counter() - self.start
    return self.count >= self.last

  def record(self, in_epoch, users_per_step) -> dict:
    """Returns the record, scaled to the steps of an epoch."""
    step_s = self.total / self.settings["steps"]
    return {
      "epoch_s": round(step_s * in_epoch, 1),
      "step_ms": round(1e3 * step_s, 1),
      "steps_of_an_epoch": in_epoch,
      "steps": self.settings["steps"],
      "users_per_s": round(users_per_step / step_s, 1),
      "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def rectools(events, settings):
  """RecTools' SASRec or HSTU with sampled softmax."""
  import pandas as pd
  import pytorch_lightning as pl
  import rectools
  import torch
  from rectools.dataset import Dataset
  from rectools.models import HSTUModel, SASRecModel

  clock, found = Clock(settings), {}

  class Stop(pl.Callback):
    def on_train_start(self, trainer, module):
      found["in_epoch"] = trainer.num_training_batches

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
      trainer.should_stop = clock.step()

  def trainer():
    return pl.Trainer(
      accelerator="cpu", max_epochs=100, min_epochs=0, logger=False, enable_checkpointing=False,
      enable_progress_bar=False, enable_model_summary=False, callbacks=[Stop()],
    )  # fmt: skip

  frame = pd.DataFrame({
    "user_id": events["user"], "item_id": events["item"], "datetime": pd.to_datetime(events["time"], unit="s"),
    "weight": 1.0,
  })  # fmt: skip
  model = {"hstu": HSTUModel, "sasrec": SASRecModel}[settings["model"]](
    n_blocks=settings["layers"], n_heads=settings["heads"], n_factors=settings["width"],
    dropout_rate=settings["dropout"], session_max_len=settings["length"], batch_size=settings["users"],
    loss="sampled_softmax", n_negatives=settings["negatives"], lr=settings["rate"], epochs=100,
    get_trainer_func=trainer,
  )  # fmt: skip
  model.fit(Dataset.construct(frame))
  return clock.record(found["in_epoch"], settings["users"]) | {
    "num_negatives": settings["negatives"], "sharing": "position",
    "version": rectools.__version__, "torch": torch.__version__, "threads": torch.get_num_threads(),
  }  # fmt: skip


def recbole(events, settings):
  """RecBole's SASRec with the softmax over all items; a step is a batch of prefixes, not of users."""
  import recbole as library
  import torch
  from recbole.config import Config
  from recbole.data import create_dataset, data_preparation
  from recbole.utils import get_model, init_seed

  os.makedirs("events", exist_ok=True)
  header = "user_id:token\titem_id:token\ttimestamp:float"
  rows = np.stack([events["user"], events["item"], events["time"]], axis=1)
  np.savetxt("events/events.inter", rows, fmt="%d", delimiter="\t", header=header, comments="")
  config = Config(
    model="SASRec",
    dataset="events",
    config_dict={
      "data_path": ".", "use_gpu": False, "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
      "MAX_ITEM_LIST_LENGTH": settings["length"], "hidden_size": settings["width"], "inner_size": settings["width"],
      "n_layers": settings["layers"], "n_heads": settings["heads"], "train_neg_sample_args": None, "loss_type": "CE",
      "learning_rate": settings["rate"], "show_progress": False,
      "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "user", "mode": "full"},
    },
  )  # fmt: skip
  init_seed(1, True)
  dataset = create_dataset(config)
  batches = data_preparation(config, dataset)[0]
  model = get_model("SASRec")(config, batches.dataset)
  optimizer, clock = torch.optim.Adam(model.parameters(), lr=settings["rate"]), Clock(settings)
  for batch in batches:
    optimizer.zero_grad()
    model.calculate_loss(batch).backward()
    optimizer.step()
    if clock.step():
      break
  in_epoch = len(batches)
  users = len(np.unique(events["user"])) / in_epoch  # An epoch has all prefixes of all users.
  return clock.record(in_epoch, users) | {
    "loss": "full softmax", "prefixes_per_step": config["train_batch_size"], "version": library.__version__,
    "torch": torch.__version__, "threads": torch.get_num_threads(),
  }  # fmt: skip


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2])
