"""Configs of runs on disk, with today's names and the defaults of settings that were added since."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from jaxrec.train.config import default_config

_RENAMED = {"multi_objective.solve_every": "multi_objective.reweight_every"}
_BEFORE = {"multi_objective.score": "all_keys", "data.held_out_seed": -1}  # What runs had before there was the setting.


def saved_config(saved: dict[str, Any], default: ConfigDict | None = None) -> ConfigDict:
  """Returns the config of a saved run, with the defaults of settings that were added later and today's names.

  Args:
    saved: what config.json of the run holds.
    default: default config of its task; None: of sequential recommendation.

  >>> saved_config({"seed": 7}).train.batch_size
  128
  """
  saved = {name: dict(value) if isinstance(value, dict) else value for name, value in saved.items()}
  for old, new in _RENAMED.items():
    (group, old_key), (_, new_key) = old.split("."), new.split(".")
    if old_key in saved.get(group, {}):
      saved[group][new_key] = saved[group].pop(old_key)
  default = (default or default_config()).to_dict()
  for name, value in _BEFORE.items():
    group, key = name.split(".")
    if group in saved and key in default.get(group, {}):
      saved[group].setdefault(key, value)
  return ConfigDict(_with_defaults(saved, default, ""))


def _with_defaults(saved, default, name):
  """Open groups stay as they were saved: their defaults belong to another model or objective."""
  if name in ("data.options", "model", "objective", "multi_objective.weighting") or not isinstance(saved, dict):
    return saved
  prefix = name and f"{name}."
  return default | {key: _with_defaults(value, default.get(key, {}), prefix + key) for key, value in saved.items()}
