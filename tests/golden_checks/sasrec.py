"""`sasrec_model_*`: outputs of every block and gradients of everything."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from golden_checks.golden_file import Check, GoldenFile
from golden_checks.models import ITEM_TABLE, POSITION_TABLE, apply_with_intermediates, outputs_and_gradients
from golden_checks.sequences import sequence_batch
from jaxrec.models.sasrec import SASRec


def check() -> Check:
  return Check(_compute)


def _compute(golden: GoldenFile, dtype: type) -> dict:
  config, item_id = golden.config, golden.inputs(dtype)["past_ids"]
  config.confirm(lengths=golden.arrays["in/past_lengths"].tolist())
  # The reference encodes every id but 0, also one after `past_lengths`, and lets items read the holes before them.
  lengths = np.max(np.where(item_id != 0, np.arange(item_id.shape[1]) + 1, 0), axis=1)
  model = SASRec(
    num_items=config["num_items"],
    width=config["d"],
    max_positions=config["max_sequence_len"] + config["max_output_len"],
    num_layers=config["blocks"],
    num_heads=config["h"],
    hidden=config["ffn"],
    feed_forward_activation=config["act"],
    output_norm=config["postproc"],
    implementation="reference",
    dtype=dtype,
  )

  def forward(params, shift):
    tree = _params(params, config["blocks"])
    out, parts = apply_with_intermediates(model, tree, sequence_batch(item_id, lengths), shift)
    is_item = (item_id != 0)[..., None]
    blocks = {f"out/block{i}": parts[f"layers_{i}"] * is_item for i in range(config["blocks"])}
    return out, {"out/past_embeddings": parts["items"], "out/preprocessed": parts["embedding"]} | blocks

  return outputs_and_gradients(golden, dtype, forward)


def _params(params, num_layers: int) -> dict:
  layers = {f"layers_{i}": _layer(params, i) for i in range(num_layers)}
  return {"items": {"table": params[ITEM_TABLE]}, "embedding": {"position_table": params[POSITION_TABLE]}} | layers


def _layer(params, index: int) -> dict:
  attention, forward = f"attention_layers.{index}.", f"forward_layers.{index}._conv1d."
  names = ("query", "key", "value")
  kernels = jnp.split(params[attention + "in_proj_weight"], 3)  # each [out, in]
  biases = jnp.split(params[attention + "in_proj_bias"], 3)
  projections = {name: {"kernel": kernels[i].T, "bias": biases[i]} for i, name in enumerate(names)}
  output = {"kernel": params[attention + "out_proj.weight"].T, "bias": params[attention + "out_proj.bias"]}
  feed_forward = {
    ours: {"kernel": params[f"{forward}{theirs}.weight"][:, :, 0].T, "bias": params[f"{forward}{theirs}.bias"]}
    for ours, theirs in (("hidden", 0), ("output", 3))
  }
  return {"attention": {**projections, "output": output}, "feed_forward": feed_forward}
