"""Click-through prediction: from a config to data, model, training step and scores. `experiments.train_ctr` runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from jaxrec.batches import CandidateBatch
from jaxrec.data.batches.candidates import CandidateData, CandidateOptions, held_out_candidates
from jaxrec.data.prepared import TRAIN, PreparedData
from jaxrec.evaluation.metrics import auc, grouped_auc, log_loss
from jaxrec.layers.ctr.batch_norm import OF_BATCH
from jaxrec.models import ctr
from jaxrec.objectives.click import ctr_loss
from jaxrec.train import sequence_task
from jaxrec.train.config import check_keys
from jaxrec.train.state import TrainState

METRICS = ("AUC", "GAUC", "GAUC_category", "log_loss")
_AT_LEAST_ONE = ("train.batch_size", "train.num_epochs", "train.evaluate_every_steps", "eval.batch_size")


def default_config() -> ConfigDict:
  """Returns the settings that every experiment starts from: those of the scripts of arXiv 2410.02604."""
  return ConfigDict({
    "name": "",  # For tables of results.
    "seed": 1,  # Of parameters, order of examples, negatives.
    "data": {
      "source": "",  # As in jaxrec.train.config, up to only_domain.
      "raw": "",
      "prepared": "",
      "options": {},
      "only_domain": "",
      **{field.name: field.default for field in dataclasses.fields(CandidateOptions) if field.name != "seed"},
    },
    "model": {"name": "dare"},  # See jaxrec.models.ctr.
    "optimizer": {"learning_rate": 1e-2, "l2": 1e-6},  # l2: on what is neither a table nor a bias.
    "train": {
      "batch_size": 2048,  # Candidates.
      "num_epochs": 2,
      "evaluate_every_steps": 150,
      "patience": 0,  # Validations without a new best before stopping; 0: never stop early.
      "log_every_steps": 20,
      "statistics_batches": 10,  # See `make_statistics`; 0: evaluate with the running statistics of training.
    },
    "eval": {"metric": "AUC", "batch_size": 2048},  # The metric chooses the parameters.
  })  # fmt: skip


def check_config(config: ConfigDict) -> None:
  """Raises unless the config has exactly the keys of `default_config()`, with values that fit.

  Raises:
    ValueError: names the key.

  >>> config = default_config()
  >>> config.eval.metric = "HR@10"
  >>> check_config(config)
  Traceback (most recent call last):
  ValueError: config.eval.metric='HR@10' must be one of ('AUC', 'GAUC', 'GAUC_category')
  """
  check_keys(config.to_dict(), default_config().to_dict())
  for name in _AT_LEAST_ONE:
    group, key = name.split(".")
    if config[group][key] < 1:
      raise ValueError(f"config.{name}={config[group][key]} must be at least 1")
  if config.train.statistics_batches < 0:
    raise ValueError(f"{config.train.statistics_batches=} must not be negative")
  if config.eval.metric not in METRICS[:-1]:
    raise ValueError(f"{config.eval.metric=} must be one of {METRICS[:-1]}")
  if not config.data.source and not config.data.prepared:
    raise ValueError("config.data.source is empty; name a data source, or a prepared folder in config.data.prepared")


@dataclasses.dataclass(frozen=True)
class ClickThrough:
  """What a config describes; the pieces can be replaced by others in Python."""

  config: ConfigDict
  data: PreparedData
  examples: CandidateData
  model: nn.Module

  @classmethod
  def from_config(cls, config: ConfigDict) -> ClickThrough:
    """Returns data, examples and model of a config, preparing the data where needed.

    Raises:
      ValueError: the config doesn't fit `default_config`.
    """
    check_config(config)
    data = sequence_task.load_data(config)
    fields = {field.name for field in dataclasses.fields(CandidateOptions)} - {"seed"}
    options = CandidateOptions(**{name: config.data[name] for name in fields}, seed=config.seed)
    examples = CandidateData(data, options)
    sizes = {"num_items": examples.num_items, "num_categories": examples.num_categories}
    return cls(config, data, examples, ctr.build(model_settings(config), **sizes))


def model_settings(config: ConfigDict) -> dict[str, Any]:
  """Returns `config.model` for `jaxrec.models.ctr.build`; sequences that JSON made lists are tuples again."""
  return {name: tuple(value) if isinstance(value, list) else value for name, value in config.model.to_dict().items()}


def initial_state(pieces: ClickThrough) -> TrainState:
  """Returns the state before the first step. Its `params` are all variables: "params" and "batch_stats"."""
  batch, optimizer = pieces.examples.batch(TRAIN, np.arange(2)), make_optimizer(pieces.config)

  @jax.jit
  def init(key, batch):
    variables = pieces.model.init(key, batch, deterministic=True)
    return TrainState(jnp.zeros((), jnp.int32), dict(variables), optimizer.init(variables["params"]))

  return init(jax.random.key(pieces.config.seed), batch)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Returns Adam at a constant rate; the penalty on weights is part of the loss."""
  return optax.adam(config.optimizer.learning_rate)


def make_train_step(pieces: ClickThrough) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
  """Returns the jitted step: (state, batch) -> (state after the update, "loss", "main", "auxiliary", "penalty",
  "grad_norm").

  The old state is donated: don't use it afterwards.

  Source: arXiv 2410.02604, its scripts: the losses of both heads and the penalty are added up.
  """
  optimizer = make_optimizer(pieces.config)

  def loss_of(params, rest, batch):
    output, updated = pieces.model.apply(
      {"params": params, **rest}, batch, deterministic=False, mutable=["batch_stats"]
    )
    loss, parts = ctr_loss(
      output.logit, output.auxiliary_logit, batch.label, params=params, l2=pieces.config.optimizer.l2
    )
    return loss, ({"loss": loss, **parts}, updated)

  def step(state: TrainState, batch: CandidateBatch):
    rest = {name: value for name, value in state.params.items() if name != "params"}
    gradients, (scalars, updated) = jax.grad(loss_of, has_aux=True)(state.params["params"], rest, batch)
    changes, opt_state = optimizer.update(gradients, state.opt_state)
    variables = {**rest, **updated, "params": optax.apply_updates(state.params["params"], changes)}
    scalars["grad_norm"] = optax.tree.norm(gradients)
    return TrainState(state.step + 1, variables, opt_state), scalars

  return jax.jit(step, donate_argnums=0)


def make_statistics(pieces: ClickThrough) -> Callable[[dict[str, Any], Iterable[CandidateBatch]], dict[str, Any]]:
  """Returns (variables, batches) -> the variables with the mean statistics of these batches for running ones.

  Running statistics of training are those of parameters some steps ago. Where tables grow fast that makes a model far
  too sure of itself: an evaluated row is divided by a standard deviation of the past. Training does not read them. A
  model without `jaxrec.layers.ctr.batch_norm.BatchNorm` keeps its variables as they are.

  Source: Wu & Johnson 2021, arXiv 2105.07576 ("precise" batch normalisation).
  """

  @jax.jit
  def of_batch(variables, batch):
    _, updated = pieces.model.apply(variables, batch, deterministic=False, mutable=["batch_stats", OF_BATCH])
    return updated.get(OF_BATCH)

  def renew(variables, batches):
    found = [of_batch(variables, batch) for batch in batches]
    if not found or found[0] is None:
      return variables
    return {**variables, "batch_stats": jax.tree.map(lambda *values: sum(values) / len(values), *found)}

  return renew


def make_scorer(pieces: ClickThrough) -> Callable[..., dict[str, float | int]]:
  """Returns (variables, split) -> the metrics of a split; compiled once."""
  logits = jax.jit(lambda variables, batch: pieces.model.apply(variables, batch, deterministic=True).logit)

  def score(variables: Mapping[str, Any], split: int) -> dict[str, float | int]:
    columns = [
      (np.asarray(logits(variables, batch)), batch.label, batch.user_id, batch.category)
      for batch in held_out_candidates(pieces.examples, split, pieces.config.eval.batch_size)
    ]
    return click_metrics(*(np.concatenate(column) for column in zip(*columns, strict=True)))

  return score


def click_metrics(
  logit: Float[np.ndarray, " B"],
  label: Float[np.ndarray, " B"],
  user: Int[np.ndarray, " B"],
  category: Int[np.ndarray, " B"],
) -> dict[str, float | int]:
  """Returns AUC, GAUC by user and by the candidate's category, log loss, and the number of candidates.

  Choice: the published code calls GAUC what is `GAUC_category` here, and adds the auxiliary loss to the log loss.

  >>> values = click_metrics(np.zeros(2), np.array([1.0, 0.0]), np.array([7, 7]), np.array([1, 2]))
  >>> values["AUC"], values["GAUC"], round(values["log_loss"], 4)
  (0.5, 0.5, 0.6931)
  """
  return {
    "AUC": auc(logit, label),
    "GAUC": grouped_auc(logit, label, user).value,
    "GAUC_category": grouped_auc(logit, label, category).value,
    "log_loss": log_loss(1 / (1 + np.exp(-logit.astype(np.float64))), label),
    "count": len(label),
  }
