"""Configs by name for any prepared data: `--config=hstu --data=FOLDER`; sizes are derived from the data.

Every setting can be overridden, as with a config file. The configs of papers, with their data and recorded numbers, are
files in `experiments/configs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from ml_collections import ConfigDict

from jaxrec.data.prepared import TRAIN, PreparedData
from jaxrec.train import click_task, ranking_task
from jaxrec.train.config import CLICK_THROUGH, RANKING, default_config

_SHORTEST, _LONGEST = 8, 200  # Events of a history; 200 as in the papers.
_MOST_FOR_FULL_SOFTMAX = 2000  # Items.
_STEPS, _EVALUATIONS = 2000, 10  # Of a training, about.


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of a training that suit the data.

  max_length: events of a history; no more than 5% of the users have more, up to 200.
  row_length: positions of a row, which several histories share.
  batch_size: users in a step.
  num_epochs: for about 2,000 steps, but at least 5 and at most 60.
  num_negatives: 0 for a softmax over all items.
  """

  max_length: int
  row_length: int
  batch_size: int
  num_epochs: int
  num_negatives: int

  @classmethod
  def of(cls, data: PreparedData) -> Sizes:
    """Returns the sizes for prepared data.

    >>> Sizes.of(PreparedData.from_columns(user=[0] * 9, item_id=range(1, 10)))
    Sizes(max_length=16, row_length=32, batch_size=16, num_epochs=60, num_negatives=0)
    """
    lengths = np.diff(data.offsets)
    lengths = lengths[lengths > 0]
    longest = int(np.quantile(lengths, 0.95)) if len(lengths) else 1
    max_length = int(np.clip(-(-longest // 8) * 8, _SHORTEST, _LONGEST))
    batch_size = int(np.clip(1 << (max(len(lengths) // 32, 1)).bit_length() - 1, 16, 128))
    epochs = int(np.clip(_STEPS * batch_size // max(len(lengths), 1), 5, 60))
    row_length = 1 << (2 * max_length - 1).bit_length()
    return cls(max_length, row_length, batch_size, epochs, 0 if data.num_items <= _MOST_FOR_FULL_SOFTMAX else 256)


def named_config(name: str, data: PreparedData) -> ConfigDict:
  """Returns the config of a name in `NAMES`, with sizes that suit the data; `config.data.prepared` is its folder.

  Args:
    name: such as "hstu".
    data: prepared columns.

  Raises:
    ValueError: an unknown name, or one that needs several domains or typed actions, for data without them.

  >>> from jaxrec.data.generators.synthetic import synthetic_data
  >>> named_config("sasrec", synthetic_data(num_users=50)).model.name
  'sasrec'
  """
  if name not in NAMES:
    raise ValueError(f"config {name!r} is neither a file nor a name; names: {', '.join(NAMES)}")
  if NAMES[name].several_domains and data.num_domains < 2:
    raise ValueError(f"config {name!r} needs data of several domains; this has one. Try 'hstu'")
  if NAMES[name].typed_actions and not data.actions:
    raise ValueError(
      f"config {name!r} needs data with typed actions; this has none. Prepare it from a source that has them, such as"
      " table with --actions=like=binary, or try 'hstu'"
    )
  config = NAMES[name].make(data)
  if data.num_domains > 1 and config.task not in (CLICK_THROUGH, RANKING):
    config.model.target_domain = config.model.get("target_domain", False)  # So that a flag can change it.
  config.name = name
  config.data.prepared = "" if data.path is None else str(data.path)
  config.data.source = str(data.meta["source"])
  return config


def sizes_text(config: ConfigDict, data: PreparedData) -> str:
  """Returns a line that says which sizes a named config derived from the data."""
  if config.task == CLICK_THROUGH:
    least = max(config.data.min_events, config.data.min_history + 1)
    users = int(np.count_nonzero(np.diff(data.offsets) >= least))
    return (
      f"{config.train.num_epochs} epochs, {config.train.batch_size} candidates in a step; {users:,} users with {least}"
      f" events or more; histories of up to {config.data.history_length} events"
    )
  if config.task == RANKING:
    loss = f"predicts {', '.join(config.data.heads or data.actions)}"
  else:
    negatives = config.objective.get("num_negatives", 0)
    loss = f"{negatives} negatives" if negatives else f"a softmax over all {data.num_items:,} items"
  users = int(np.count_nonzero(np.diff(data.offsets)))
  return (
    f"{config.train.num_epochs} epochs of {users:,} users, {config.train.batch_size} in a step; histories of up to"
    f" {config.data.max_length} events; {loss}"
  )


def _sequential(data: PreparedData) -> ConfigDict:
  """The settings that the sequence models share."""
  config, sizes = default_config(), Sizes.of(data)
  config.data.max_length, config.data.row_length = sizes.max_length, sizes.row_length
  config.train.batch_size, config.train.num_epochs = sizes.batch_size, sizes.num_epochs
  config.train.evaluate_every_epochs = max(1, sizes.num_epochs // _EVALUATIONS)
  config.train.patience = 3
  config.objective = {"name": "full_softmax"}
  if sizes.num_negatives:
    config.objective = {
      "name": "sampled_softmax", "num_negatives": sizes.num_negatives, "sharing": "row", "temperature": 0.05
    }  # fmt: skip
  config.optimizer.learning_rate = 3e-3
  config.optimizer.schedule = "warmup_cosine"
  users = int(np.count_nonzero(np.diff(data.offsets)))
  config.optimizer.warmup_steps = min(50, users // sizes.batch_size // 2)  # Less than one epoch.
  if not data.has_timestamps:
    config.data.request_time = "last_event"
  if data.num_domains > 1:
    config.eval.protocol = "both"
  return config


def _hstu(data: PreparedData, width: int = 64, num_layers: int = 2, num_heads: int = 2) -> ConfigDict:
  config = _sequential(data)
  positions, head = config.data.max_length + 1, width // num_heads
  config.model = {
    "name": "hstu", "width": width, "num_layers": num_layers, "num_heads": num_heads, "head_width": head,
    "value_width": head, "max_positions": positions, "attention_length": positions, "input_dropout": 0.2,
    "dropout": 0.2,
  }  # fmt: skip
  return config


def _hstu_large(data: PreparedData) -> ConfigDict:
  config = _hstu(data, num_layers=8)
  config.optimizer.learning_rate = 2e-3
  return config


def _sasrec(data: PreparedData) -> ConfigDict:
  config = _sequential(data)
  config.model = {
    "name": "sasrec", "width": 64, "num_layers": 2, "num_heads": 2, "hidden": 64, "feed_forward_activation": "relu",
    "max_positions": config.data.max_length + 1, "input_dropout": 0.2, "dropout": 0.2,
  }  # fmt: skip
  return config


def _gsasrec(data: PreparedData) -> ConfigDict:
  config = _sasrec(data)
  # As published: dot products, 256 negatives, t = 0.75; shared by a row, unlike there.
  config.model.output_norm = "layer_norm"
  config.objective = {
    "name": "gbce", "num_negatives": 256, "sharing": "row", "temperature": 1.0, "gbce_t": 0.75
  }  # fmt: skip
  config.optimizer.learning_rate = 1e-3
  return config


def _esasrec(data: PreparedData) -> ConfigDict:
  config = _sasrec(data)
  config.model = {
    "name": "sasrec", "layer": "ligr", "width": 64, "num_layers": 2, "num_heads": 2, "hidden": 256,
    "max_positions": config.data.max_length + 1, "input_dropout": 0.2, "dropout": 0.2,
  }  # fmt: skip
  return config


def _bert4rec(data: PreparedData) -> ConfigDict:
  config = _sequential(data)
  config.data.task = "masked_item"
  config.data.mask_probability, config.data.mask_last_probability = 0.2, 0.1
  config.model = {
    "name": "bert4rec", "width": 64, "num_layers": 2, "num_heads": 2, "hidden": 256,
    "max_positions": config.data.max_length + 1, "input_dropout": 0.1, "dropout": 0.1, "output_norm": "l2",
  }  # fmt: skip
  config.train.num_epochs *= 2  # Only masked events are targets.
  return config


def _multi_domain_hstu(data: PreparedData) -> ConfigDict:
  config = _hstu(data)
  config.model.name = "multi_domain_hstu"
  config.model.target_domain = True
  return config


def _autocdsr(data: PreparedData, num_bottlenecks: int = 0) -> ConfigDict:
  config = _hstu(data)
  config.multi_objective.objectives = ("cross_domain_attention",)
  if num_bottlenecks:
    config.model.update(num_bottlenecks=num_bottlenecks, bottleneck_stride=8)
  return config


def _autocdsr_plus(data: PreparedData) -> ConfigDict:
  return _autocdsr(data, num_bottlenecks=1)


def _dare(data: PreparedData) -> ConfigDict:
  config = click_task.default_config()
  config.model = {"name": "dare", "width": 16, "evaluation_norm": "running"}
  lengths = np.diff(data.offsets)
  if 2 * np.count_nonzero(lengths >= config.data.min_events) < np.count_nonzero(lengths):
    config.data.min_events = 0  # The published minimum is for long histories.
    config.data.history_length = Sizes.of(data).max_length
  examples = int(np.count_nonzero(np.asarray(data.split) == TRAIN))
  config.train.batch_size = 512
  config.train.evaluate_every_steps = int(np.clip(examples // 512 // 4, 20, 500))
  config.train.patience = 3
  return config


def _ranking(data: PreparedData) -> ConfigDict:
  config, sizes = ranking_task.default_config(), Sizes.of(data)
  config.data.max_length = sizes.max_length
  if data.num_domains > 1:
    config.data.features = ("domain",)
  config.model = {
    "name": "ranking", "width": 64, "num_layers": 2, "num_heads": 2, "head_width": 32, "value_width": 32,
    "input_dropout": 0.1, "dropout": 0.1, "time_bias": bool(data.has_timestamps),
  }  # fmt: skip
  config.train.batch_size = max(sizes.batch_size // 4, 8)  # Each of a user's events is a target.
  config.train.num_epochs = max(sizes.num_epochs // 4, 5)
  config.train.patience = 3
  config.train.average = 0.99
  config.optimizer.learning_rate = 3e-3
  config.optimizer.schedule = "warmup_cosine"
  users = int(np.count_nonzero(np.diff(data.offsets)))
  config.optimizer.warmup_steps = min(50, users // config.train.batch_size // 2)
  return config


@dataclasses.dataclass(frozen=True)
class NamedConfig:
  """A line that says what it is, how to make it, and whether it needs several domains or typed actions."""

  text: str
  make: Callable[[PreparedData], ConfigDict]
  several_domains: bool = False
  typed_actions: bool = False


NAMES: Mapping[str, NamedConfig] = {
  "hstu": NamedConfig("HSTU, 2 layers: attention with time and position bias; the one to start with", _hstu),
  "hstu_large": NamedConfig("HSTU, 8 layers", _hstu_large),
  "sasrec": NamedConfig("SASRec: causal softmax transformer; reads no times", _sasrec),
  "gsasrec": NamedConfig("gSASRec: SASRec with a binary loss that is calibrated for its negatives (gBCE)", _gsasrec),
  "esasrec": NamedConfig("eSASRec: SASRec with LiGR layers, whose residual branches are gated", _esasrec),
  "bert4rec": NamedConfig("BERT4Rec: bidirectional transformer, trained on masked items", _bert4rec),
  "multi_domain_hstu": NamedConfig(
    "HSTU with attention inside each domain and domain states; recommends for a given domain", _multi_domain_hstu, True
  ),
  "autocdsr": NamedConfig("HSTU with cross-domain attention as a second objective (AutoCDSR)", _autocdsr, True),
  "autocdsr_plus": NamedConfig("AutoCDSR with bottleneck tokens", _autocdsr_plus, True),
  "dare": NamedConfig("DARE: click-through prediction on long histories", _dare),
  "ranking": NamedConfig(
    "HSTU that predicts what a user will do with an item, from items and actions", _ranking, typed_actions=True
  ),
}
"""Name -> config; `jaxrec train --list` prints them."""
