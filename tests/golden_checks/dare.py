"""`dare_*`: a training step's outputs and gradients of every variant of the ranker.

Where the reference's search does what ours does not, its choice of events is put in the place of ours, and all the rest
is compared as everywhere: `_Quirks` says what is put in. `golden_checks.dare_params` names the parameters.
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
from golden_checks.dare_params import penalised, statistics, statistics_results, tables_of, tree
from golden_checks.golden_file import Check, GoldenFile
from jaxrec.batches import CandidateBatch
from jaxrec.layers.ctr import target_attention
from jaxrec.models.ctr import ClickThroughRanker
from jaxrec.objectives.click import l2_penalty

_LOGITS = {"out/main_logits": "two logits, of which the difference alone means anything; ours is that difference"}
_NOT_READ = {"mlp_hidden_layer": "of the maps of model_name=projection_with_mlp, which is an exception"}

# All targets have the age 0. Batch norm, before either head, takes out what a batch has in common: the gradient of that
# row is what is left of terms that add up to 58 by size and cancel. Their rounding to float32 alone is 3.5e-6.
_CANCELLING = {"grad/time_id_embedding_layer_for_representation_of_target.weight": 4e-6}


@dataclasses.dataclass(frozen=True)
class _Quirks:
  """What the reference does that our model doesn't, put into the model while it is compared.

  score: (q, k) -> scores, in place of ours.
  kept: which events the search kept [B, N], in place of ours.
  """

  score: Callable | None = None
  kept: np.ndarray | None = None


def check() -> Check:
  return Check(_compute, _LOGITS, _NOT_READ, cancelling=_CANCELLING)


def _compute(golden: GoldenFile, dtype: type) -> dict:
  config, model = golden.config, _model(golden.config)
  batch, span = _batch(golden, dtype)
  put_in = _interceptor(_quirks(golden, batch, span))

  def forward(params):
    variables = {"params": tree(params, config), "batch_stats": statistics(params, config)}
    with nn.intercept_methods(put_in):
      output, state = model.apply(variables, batch, deterministic=config["bn_eval"], mutable=["batch_stats"])
    click = batch.label == 1
    auxiliary = _reference_loss(output.auxiliary_logit, click)
    loss = _reference_loss(output.logit, click) + (auxiliary if config["use_aux_loss"] else 0)
    return loss, (output, auxiliary, state.get("batch_stats", {}))

  @quick_jit
  def run(params):
    return jax.value_and_grad(forward, has_aux=True)(params)

  params = {name: jnp.asarray(value) for name, value in golden.params(dtype).items()}
  (loss, (output, auxiliary, moved)), grads = run(params)
  probability = jax.nn.sigmoid(jnp.stack([output.logit, -output.logit], axis=1)) + 1e-8
  results = {"out/loss": loss, "out/aux_loss": auxiliary, "out/probability": probability}
  results |= {f"grad/{name}": grad for name, grad in grads.items()}
  results |= {"out/main_mlp_input": output.features, "out/l2_penalty": l2_penalty(penalised(params, config))}
  return results | _attention_results(golden, output, batch, span) | statistics_results(moved)


def _model(config) -> ClickThroughRanker:
  """The model of a file; its auxiliary head always, whose loss only some files add to the loss."""
  own = [config[f"{field}_embedding_dim"] for field in ("item", "category", "time")]
  given = [config[f"attention_{field}_embedding_dim"] for field in ("item", "category", "time")]
  projection = config.one_of("mlp_position_after_concat", {True: "joint", False: "per_field"})
  return ClickThroughRanker(
    num_items=config["item_n"] - 1,
    num_categories=config["cate_n"] - 1,
    width=tuple(own),
    attention_width=tuple(w if w > 0 else o for w, o in zip(given, own, strict=True)),
    max_age=1999,
    use_age=config["use_time"],
    age_mode=config.one_of("use_time_mode", {"concat": "concat", "add": "add"}),
    tables=tables_of(config),
    projection=projection if config["model_name"].startswith("projection") else "none",
    score=config.one_of("attn_func", {"learnable": "network", "scaled_dot_product": "dot"}),
    search=config.one_of("soft_search", {True: "top_k", False: "category"}),
    top_k=config["top_k"],
    features=config.one_of("only_odot", {True: "product", False: "all" if config["use_cross_feature"] else "pair"}),
    hidden=(config["main_mlp_hidden_1"], config["main_mlp_hidden_2"]),
    batch_norm=config["batch_size"] != 1,
  )


def _batch(golden, dtype) -> tuple[CandidateBatch, slice]:
  """Returns the batch of the slots that take part, and which these are."""
  inputs, config = golden.inputs(dtype), golden.config
  config.confirm(max_length=inputs["hist_iid"].shape[1], use_long_seq_average=False)
  config.confirm(valid_lengths=(inputs["hist_iid"] != 0).sum(axis=1).tolist())
  span = slice(*map(int, config["long_seq_split"].split(":")))
  assert not inputs["tid"].any(), "the age of a candidate is 0"
  batch = CandidateBatch(
    history_item=inputs["hist_iid"][:, span],
    history_category=inputs["hist_cid"][:, span],
    history_age=inputs["hist_tid"][:, span],
    item=inputs["iid"],
    category=inputs["cid"],
    label=inputs["target"][:, 0].astype(dtype),
    user_id=inputs["uid"],
  )
  return batch, span


def _quirks(golden, batch, span) -> _Quirks:
  """With too few events the reference keeps padding; its hard search also looks outside of the slots that take part."""
  config, num_events = golden.config, batch.history_item.shape[1]
  too_few = ((batch.history_item != 0).sum(axis=1) < config["top_k"]).any()
  score, kept = None, None
  if not config["soft_search"] and (too_few or num_events < config["max_length"]):
    kept = golden.arrays["out/mask_used"][:, span] == 1
  elif too_few:
    kept = np.zeros(batch.history_item.shape, bool)
    np.put_along_axis(kept, golden.arrays["out/topk_indices"], True, axis=1)
  if config["attn_func"] == "scaled_dot_product" and config["use_time_mode"] == "concat":
    given, own = config["attention_time_embedding_dim"], config["time_embedding_dim"]
    score = _two_products(given if given > 0 else own, config["soft_search"], config["use_time"])
  return _Quirks(score, kept)


def _two_products(last: int, soft: bool, use_time: bool):
  """The last entries are taken for the age's where there is none, and hard search has them in both products."""
  if soft and use_time:
    return None

  def score(q, k):
    first = q.shape[-1] - last if soft else q.shape[-1]
    semantics = jnp.einsum("bm,bnm->bn", q[:, :first], k[..., :first]) / math.sqrt(first)
    return semantics + jnp.einsum("bm,bnm->bn", q[:, -last:], k[..., -last:]) / math.sqrt(last)

  return score


def _interceptor(quirks):
  def put_in(function, args, kwargs, context):
    if context.method_name == "scores" and quirks.score:
      return quirks.score(*args)
    if context.method_name == "has_vectors" and quirks.kept is not None:
      return jnp.ones(quirks.kept.shape, bool)
    if context.method_name == "find" and quirks.kept is not None:
      return jnp.asarray(quirks.kept)
    return function(*args, **kwargs)

  return put_in


def _reference_loss(logit, click):
  """Cross-entropy of a softmax plus 1e-8; ours is that of log-odds, see `jaxrec.objectives.click.click_loss`."""
  return -jnp.log(jax.nn.sigmoid(jnp.where(click, logit, -logit)) + 1e-8).mean()


def _attention_results(golden, output, batch, span):
  """Of what the first softmax covers. Nothing is compared outside of it, nor the order of equal scores."""
  exists = batch.history_item != 0
  seen = exists if golden.config["soft_search"] else np.asarray(output.kept)
  mask_used = np.ma.masked_all(golden.arrays["in/mask"].shape, np.float32)
  mask_used[:, span] = seen
  index, filled = target_attention.top_k(output.score, jnp.asarray(exists), golden.config["top_k"])
  found = np.take_along_axis(np.asarray(output.score), np.asarray(index), axis=1)  # [B, K]
  tied = (found[:, :, None] == found[:, None, :]).sum(axis=-1) > 1
  return {
    "out/mask_used": mask_used,
    "out/attention_scores": np.ma.array(output.score, mask=~seen),
    "out/attention_distribution_full": target_attention.masked_softmax(output.score, jnp.asarray(seen)),
    "out/topk_indices": np.ma.array(index, mask=tied | ~np.asarray(filled)),
  }
