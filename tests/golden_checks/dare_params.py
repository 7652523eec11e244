"""Parameters of the ranker's reference under our names, those that several parts share included."""

from __future__ import annotations

import jax.numpy as jnp

_FIELDS = {"item": "item_id", "category": "category_id", "age": "time_id"}
_PROJECTED = {"item": "item", "category": "category", "age": "time"}
_SIDES = {"target": "target", "history": "behavior"}
_ROLES = ("attention", "representation")
_HEADS = {"head": "main_mlp", "auxiliary_head": "auxiliary_mlp"}
_TABLES = {
  "twin": "shared",
  "DIN": "shared",
  "DARE": "decoupled",
  "three_embedding": "three",
  "four_embedding": "four",
  "projection": "shared",
  "projection_two_linear": "shared",
  "projection_no_item": "shared",
  "projection_only_time": "shared",
  "projection_only_category": "shared",
  "projection_only_item": "shared",
}


def tables_of(config) -> str:
  """Returns the field `tables` of our model."""
  return config.one_of("model_name", _TABLES)


def tree(params, config, both_logits: bool = False) -> dict:
  """Returns our parameters; with `both_logits` those of the last layers as they are in the file."""
  hidden = len([0 for name in params if name.startswith("main_mlp") and params[name].shape == (1,)])
  parts = {
    "embedding": _tables(params, config) | _projections(params, config),
    "head": _head(params, config, "main_mlp", hidden, both_logits),
    "auxiliary_head": _head(params, config, "auxiliary_mlp", 1, both_logits),
  }
  if config["attn_func"] == "learnable":
    name = "attention_model.main_model."
    parts["attention_unit"] = {
      "hidden_layer": _dense(params, f"{name}0"),
      "activation": {"negative_slope": params[f"{name}1.weight"][0]},
      "output": _dense(params, f"{name}2"),
    }
  return parts


def penalised(params, config) -> dict:
  """Returns our parameters for the penalty: of the maps each once, also those that several roles and sides share."""
  maps = {}
  for name in params:
    if name.startswith("mlp_for_"):
      part, _, kind = name.rpartition(".")
      maps.setdefault(part, {})[kind] = params[name]
  return tree(params, config, both_logits=True) | {"embedding": maps}


def _tables(params, config) -> dict:
  names = {
    "shared": {"shared": "attention_of_target"},
    "decoupled": {role: f"{role}_of_target" for role in _ROLES},
    "three": {f"attention_{side}": f"attention_of_{theirs}" for side, theirs in _SIDES.items()}
    | {"representation": "representation_of_target"},
    "four": {f"{role}_{side}": f"{role}_of_{theirs}" for role in _ROLES for side, theirs in _SIDES.items()},
  }[tables_of(config)]
  return {
    f"lookup_{ours}": {
      f"{field}_table": params[f"{_FIELDS[field]}_embedding_layer_for_{theirs}.weight"] for field in _fields(config)
    }
    for ours, theirs in names.items()
  }


def _projections(params, config) -> dict:
  if not config["model_name"].startswith("projection"):
    return {}
  make = _joint if config["mlp_position_after_concat"] else _per_field
  return {
    f"projections_{role}_{side}": make(params, config, f"{role}_of_", theirs)
    for role in _ROLES
    for side, theirs in _SIDES.items()
  }


def _joint(params, config, role, side):
  """The map of a side or, where there is none, the one that both sides share."""
  own = f"mlp_for_{role}{side}"
  return _dense(params, own if f"{own}.weight" in params else f"mlp_for_{role}target")


def _per_field(params, config, role, side):
  """The same for each field; a field without a map keeps its vector."""
  maps = {}
  for field in _fields(config):
    names = [f"mlp_for_{_PROJECTED[field]}_{role}{of}.weight" for of in (side, "target")]
    found = [params[name].T for name in names if name in params]
    maps[field] = {"kernel": found[0] if found else jnp.eye(_width(config, field, role))}
  return maps


def _width(config, field, role):
  given = config[f"attention_{_PROJECTED[field]}_embedding_dim"]
  return given if role.startswith("attention") and given > 0 else config[f"{_PROJECTED[field]}_embedding_dim"]


def _fields(config):
  return [field for field in _FIELDS if field != "age" or config["use_time"]]


def _head(params, config, name, num_hidden, both_logits) -> dict:
  """Its layers have numbers, of which the first is the batch norm's if there is one."""
  layers, first = {}, 0
  if config["batch_size"] != 1:
    layers["norm"], first = {"scale": params[f"{name}.0.weight"], "bias": params[f"{name}.0.bias"]}, 1
  for i in range(num_hidden):
    layers[f"hidden_{i}"] = _dense(params, f"{name}.{2 * i + first}")
    layers[f"activation_{i}"] = {"negative_slope": params[f"{name}.{2 * i + first + 1}.weight"][0]}
  last = _dense(params, f"{name}.{2 * num_hidden + first}")
  if not both_logits:
    last = {part: value[..., :1] - value[..., 1:] for part, value in last.items()}
  return layers | {"output": last}


def _dense(params, name):
  return {"kernel": params[f"{name}.weight"].T, "bias": params[f"{name}.bias"]}


def statistics(params, config) -> dict:
  """Returns running statistics: those of the file, or those of a new model."""
  if config["batch_size"] == 1:
    return {}
  if config["bn_eval"]:
    return {
      ours: {"norm": {"mean": params[f"{theirs}.0.running_mean"], "variance": params[f"{theirs}.0.running_var"]}}
      for ours, theirs in _HEADS.items()
    }
  shapes = {ours: params[f"{theirs}.0.weight"] for ours, theirs in _HEADS.items()}
  return {ours: {"norm": {"mean": jnp.zeros_like(x), "variance": jnp.ones_like(x)}} for ours, x in shapes.items()}


def statistics_results(moved) -> dict:
  """Returns the statistics after the step under their names; {} without batch norm."""
  return {
    f"out/buffer/{theirs}.0.running_{name}": moved[ours]["norm"][full]
    for ours, theirs in _HEADS.items()
    for name, full in (("mean", "mean"), ("var", "variance"))
    if ours in moved
  }
