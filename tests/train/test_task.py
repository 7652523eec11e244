"""A task of one's own: the loop trains it with checkpoints and resume, knowing the public protocol only."""

import dataclasses
import signal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.data.batches.training import TrainingBatches, TrainingOptions
from jaxrec.data.generators.synthetic import synthetic_data
from jaxrec.objectives.objective import FunctionObjective
from jaxrec.train import loop
from jaxrec.train.config import default_config
from jaxrec.train.monitor import Interrupted
from jaxrec.train.optimizer import make_optimizer
from jaxrec.train.state import create_state
from jaxrec.train.step import make_train_step
from jaxrec.train.task import BaseTask, Plan, build_task
from jaxrec.train.timetable import Timetable

DATA = synthetic_data(num_users=60, num_items=36, num_domains=3, mean_events=12.0)


class NextDomain(nn.Module):
  """Scores of the next event's domain from the domain of this one."""

  num_domains: int

  @nn.compact
  def __call__(self, batch, deterministic=True):
    return nn.Embed(self.num_domains + 1, self.num_domains + 1)(batch.domain_id)  # [B, N, C + 1]


def domain_loss(model, params, batch, rng):
  """Cross-entropy of the next domain."""
  scores = model.apply({"params": params}, batch)
  losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch.target_domain)
  weight = batch.target_weight.sum()
  return (losses * batch.target_weight).sum() / jnp.maximum(weight, 1), {"weight": weight}


@dataclasses.dataclass
class DomainTask(BaseTask):
  """Predict the domain of the next event."""

  model: nn.Module = NextDomain(DATA.num_domains)

  def plan(self, phase, num_epochs, mesh):
    batches = TrainingBatches(DATA, TrainingOptions(max_length=8, row_length=8, rows_per_batch=16))
    return Plan(
      Timetable.from_config(self.config.train, batches.batches_per_epoch, num_epochs),
      batches,
      count=lambda batch: {"tokens": int((batch.sequence_id > 0).sum())},
    )

  def init_state(self, mesh, total_steps):
    batch = self.plan("select", 1, mesh).batches[0]
    return create_state(self.model, make_optimizer(self.config.optimizer, total_steps), batch, self.config.seed)

  def train_step(self, mesh, like, total_steps):
    return make_train_step(
      self.model, FunctionObjective(domain_loss), make_optimizer(self.config.optimizer, total_steps), seed=0
    )

  def evaluate(self, state, split, mesh):
    batch = self.plan("select", 1, mesh).batches[0]
    scores = self.model.apply({"params": state.params}, batch)
    hits = (np.asarray(scores).argmax(-1) == batch.target_domain)[batch.target_weight > 0]
    return {"accuracy": float(hits.mean()), "count": len(hits)}


def config():
  settings = default_config()
  settings.train.num_epochs, settings.optimizer.learning_rate, settings.eval.metric = 4, 0.3, "accuracy"
  settings.train.log_every_steps, settings.train.checkpoint_every_steps = 2, 3
  return settings


def test_a_task_of_ones_own_trains_saves_and_resumes(tmp_path, monkeypatch):
  whole = loop.run(config(), str(tmp_path / "whole"), make_task=DomainTask)
  chance = 1 / DATA.num_domains
  assert whole["select"]["validation"]["accuracy"] > chance + 0.05

  with monkeypatch.context() as patch, pytest.raises(Interrupted):
    patch.setattr(
      loop.StopSignal, "requested", lambda stop, step: step == 5 and not setattr(stop, "number", signal.SIGTERM)
    )
    loop.run(config(), str(tmp_path / "cut"), make_task=DomainTask)
  resumed = loop.run(config(), str(tmp_path / "cut"), make_task=DomainTask)
  assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
  assert (tmp_path / "cut/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_an_unknown_task_is_refused_with_the_known_ones():
  settings = config()
  settings.task = "chess"
  with pytest.raises(ValueError, match="config.task='chess' is unknown; use one of .'sequential', 'click_through'.?"):
    build_task(settings)
