"""`dare_*`: a training step's outputs and gradients of every variant of the ranker.

Where the reference's search does what ours does not, its choice of events is put in the place of ours, and all the rest
is compared as everywhere: `_Quirks` says what is put in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from golden_checks.compile import quick_jit
from golden_checks.golden_file import Check, GoldenFile
from jaxrec.batches import CandidateBatch
from jaxrec.layers.ctr import target_attention
from jaxrec.models.ctr import ClickThroughRanker
from jaxrec.objectives.click import l2_penalty

_MASKED = -(2.0**32)
_FIELDS = {"item": "item_id", "category": "category_id", "age": "time_id"}
_PROJECTED = {"item": "item", "category": "category", "age": "time"}
_SIDES = {"target": "target", "history": "behavior"}
_TABLES = {"twin": "shared", "DIN": "shared", "projection": "shared", "DARE": "decoupled", "four_embedding": "four"}
_LOGITS = {"out/main_logits": "two logits, of which the difference alone means anything; ours is that difference"}

# All targets have the age 0. Batch norm, before either head, takes out what a batch has in common: the gradient of that
# row is what is left of terms that add up to 58 by size and cancel. Their rounding to float32 alone is 3.5e-6.
_CANCELLING = {"grad/time_id_embedding_layer_for_representation_of_target.weight": 4e-6}


@dataclasses.dataclass(frozen=True)
class _Quirks:
  """What the reference does that our model doesn't, put into the model while it is compared.

  events: (golden file) -> which events exist [B, N], in place of all.
  score: (q, k, age width) -> scores, in place of ours.
  kept: (golden file) -> which events the search kept [B, N], in place of ours.
  """

  events: Callable | None = None
  score: Callable | None = None
  kept: Callable | None = None


def check() -> Check:
  return _check(_Quirks())


def padding_check() -> Check:
  """With too few events the reference keeps padding, and its score."""
  return _check(_Quirks(kept=_kept_by_reference))


def category_check() -> Check:
  """The reference fills up with events of other categories, and counts the age twice."""
  return _check(_Quirks(events=lambda golden: golden.arrays["out/mask_used"] == 1, score=_age_twice))


def _check(quirks):
  return Check(lambda golden, dtype: _compute(golden, dtype, quirks), _LOGITS, cancelling=_CANCELLING)


def _kept_by_reference(golden):
  kept = np.zeros(golden.arrays["in/mask"].shape, bool)
  np.put_along_axis(kept, golden.arrays["out/topk_indices"], True, axis=1)
  return kept


def _age_twice(q, k, age_width):
  age = jnp.einsum("bm,bnm->bn", q[:, -age_width:], k[..., -age_width:])
  return jnp.einsum("bm,bnm->bn", q, k) / math.sqrt(q.shape[-1]) + age / math.sqrt(age_width)


def _compute(golden: GoldenFile, dtype: type, quirks: _Quirks) -> dict:
  config, model = golden.config, _model(golden.config)
  batch = _batch(golden, dtype, quirks)
  put_in = _interceptor(golden, quirks)

  def forward(params):
    tree = _tree(params, config)
    variables = {"params": tree, "batch_stats": _statistics(params, config)}
    with nn.intercept_methods(put_in):
      output, state = model.apply(variables, batch, deterministic=config["bn_eval"], mutable=["batch_stats"])
    click = batch.label == 1
    auxiliary = _reference_loss(output.auxiliary_logit, click)
    return _reference_loss(output.logit, click) + auxiliary, (output, auxiliary, state["batch_stats"])

  @quick_jit
  def run(params):
    return jax.value_and_grad(forward, has_aux=True)(params)

  params = {name: jnp.asarray(value) for name, value in golden.params(dtype).items()}
  (loss, (output, auxiliary, statistics)), grads = run(params)
  probability = jax.nn.sigmoid(jnp.stack([output.logit, -output.logit], axis=1)) + 1e-8
  results = {"out/loss": loss, "out/aux_loss": auxiliary, "out/probability": probability}
  results |= {f"grad/{name}": grad for name, grad in grads.items()}
  results |= {"out/main_mlp_input": output.features, "out/l2_penalty": l2_penalty(_tree(params, config, True))}
  results |= _attention_results(golden, output, batch)
  return results | _statistics_results(statistics)


def _model(config) -> ClickThroughRanker:
  own = [config[f"{field}_embedding_dim"] for field in ("item", "category", "time")]
  given = [config[f"attention_{field}_embedding_dim"] for field in ("item", "category", "time")]
  return ClickThroughRanker(
    num_items=config["item_n"] - 1,
    num_categories=config["cate_n"] - 1,
    width=tuple(own),
    attention_width=tuple(w if w > 0 else o for w, o in zip(given, own, strict=True)),
    max_age=1999,
    use_age=config["use_time"],
    tables=_TABLES[config["model_name"]],
    projection=_projection(config),
    score="network" if config["model_name"] == "DIN" else "dot",
    top_k=config["top_k"],
    features="product" if config["only_odot"] else "all" if config["use_cross_feature"] else "pair",
    hidden=(config["main_mlp_hidden_1"], config["main_mlp_hidden_2"]),
  )


def _projection(config):
  if config["model_name"] != "projection":
    return "none"
  return "joint" if config["mlp_position_after_concat"] else "per_field"


def _batch(golden, dtype, quirks):
  inputs = golden.inputs(dtype)
  exists = quirks.events(golden) if quirks.events else inputs["hist_iid"] != 0
  return CandidateBatch(
    history_item=inputs["hist_iid"] * exists,
    history_category=inputs["hist_cid"],
    history_age=inputs["hist_tid"],
    item=inputs["iid"],
    category=inputs["cid"],
    label=inputs["target"][:, 0].astype(dtype),
    user_id=inputs["uid"],
  )


def _interceptor(golden, quirks):
  def put_in(function, args, kwargs, context):
    if context.method_name == "scores" and quirks.score:
      return quirks.score(*args, golden.config["time_embedding_dim"])
    if context.method_name == "find" and quirks.kept:
      return jnp.asarray(quirks.kept(golden))
    return function(*args, **kwargs)

  return put_in


def _reference_loss(logit, click):
  """Cross-entropy of a softmax plus 1e-8; ours is that of log-odds, see `jaxrec.objectives.click.click_loss`."""
  return -jnp.log(jax.nn.sigmoid(jnp.where(click, logit, -logit)) + 1e-8).mean()


def _tree(params, config, both_logits=False) -> dict:
  """Our parameters; with `both_logits` those of the last layers as they are in the file."""
  hidden = len([0 for name in params if name.startswith("main_mlp") and params[name].shape == (1,)])
  tree = {
    "embedding": _embedding(params, config),
    "head": _head(params, "main_mlp", hidden, both_logits),
    "auxiliary_head": _head(params, "auxiliary_mlp", 1, both_logits),
  }
  if config["model_name"] == "DIN":
    name = "attention_model.main_model."
    tree["attention_unit"] = {
      "hidden_layer": _dense(params, f"{name}0"),
      "activation": {"negative_slope": params[f"{name}1.weight"][0]},
      "output": _dense(params, f"{name}2"),
    }
  return tree


def _embedding(params, config) -> dict:
  roles = ("attention", "representation")
  names = {
    "shared": {"shared": "attention_of_target"},
    "decoupled": {role: f"{role}_of_target" for role in roles},
    "four": {f"{role}_{side}": f"{role}_of_{theirs}" for role in roles for side, theirs in _SIDES.items()},
  }[_TABLES[config["model_name"]]]
  fields = [field for field in _FIELDS if field != "age" or config["use_time"]]
  tree = {
    f"lookup_{ours}": {
      f"{field}_table": params[f"{_FIELDS[field]}_embedding_layer_for_{theirs}.weight"] for field in fields
    }
    for ours, theirs in names.items()
  }
  if kind := {"joint": _joint, "per_field": _per_field}.get(_projection(config)):
    tree |= {
      f"projections_{role}_{side}": kind(params, f"{role}_of_{theirs}")
      for role in roles
      for side, theirs in _SIDES.items()
    }
  return tree


def _joint(params, name):
  return _dense(params, f"mlp_for_{name}")


def _per_field(params, name):
  return {ours: {"kernel": params[f"mlp_for_{theirs}_{name}.weight"].T} for ours, theirs in _PROJECTED.items()}


def _head(params, name, num_hidden, both_logits) -> dict:
  tree = {"norm": {"scale": params[f"{name}.0.weight"], "bias": params[f"{name}.0.bias"]}}
  for i in range(num_hidden):
    tree[f"hidden_{i}"] = _dense(params, f"{name}.{2 * i + 1}")
    tree[f"activation_{i}"] = {"negative_slope": params[f"{name}.{2 * i + 2}.weight"][0]}
  last = _dense(params, f"{name}.{2 * num_hidden + 1}")
  if not both_logits:
    last = {part: value[..., :1] - value[..., 1:] for part, value in last.items()}
  return tree | {"output": last}


def _dense(params, name):
  return {"kernel": params[f"{name}.weight"].T, "bias": params[f"{name}.bias"]}


def _statistics(params, config):
  """Running statistics: those of the file, or those of a new model."""
  heads = {"head": "main_mlp", "auxiliary_head": "auxiliary_mlp"}
  if config["bn_eval"]:
    return {
      ours: {"norm": {"mean": params[f"{theirs}.0.running_mean"], "variance": params[f"{theirs}.0.running_var"]}}
      for ours, theirs in heads.items()
    }
  shapes = {ours: params[f"{theirs}.0.weight"] for ours, theirs in heads.items()}
  return {ours: {"norm": {"mean": jnp.zeros_like(x), "variance": jnp.ones_like(x)}} for ours, x in shapes.items()}


def _statistics_results(statistics):
  return {
    f"out/buffer/{theirs}.0.running_{name}": statistics[ours]["norm"][full]
    for ours, theirs in (("head", "main_mlp"), ("auxiliary_head", "auxiliary_mlp"))
    for name, full in (("mean", "mean"), ("var", "variance"))
  }


def _attention_results(golden, output, batch):
  """Of the events. Nothing is compared with padding that the reference keeps, nor the order of equal scores."""
  exists = batch.history_item != 0
  weights = target_attention.masked_softmax(output.score, jnp.asarray(exists))
  index, filled = target_attention.top_k(output.score, jnp.asarray(exists), golden.config["top_k"])
  found = np.take_along_axis(np.asarray(output.score), np.asarray(index), axis=1)  # [B, K]
  tied = (found[:, :, None] == found[:, None, :]).sum(axis=-1) > 1
  return {
    "out/mask_used": exists.astype(np.float32),
    "out/attention_scores": np.where(exists, output.score, _MASKED),
    "out/attention_distribution_full": weights,
    "out/topk_indices": np.ma.array(index, mask=tied | ~np.asarray(filled)),
  }
