"""`stu_layer_*`: the positional encoder and a stack of production layers, and the gradients of everything."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks.compile import quick_jit
from golden_checks.golden_file import Check, GoldenFile
from golden_checks.layout import Layout
from jaxrec.layers.cache import CACHE
from jaxrec.layers.stu import STU, STUPositionalEncoder, stu_position_index

_LAYER_NAMES = {
  "_input_norm_weight": "input_norm_scale",
  "_input_norm_bias": "input_norm_bias",
  "_uvqk_weight": "uvqk_kernel",
  "_uvqk_beta": "uvqk_bias",
  "_output_norm_weight": "output_norm_scale",
  "_output_norm_bias": "output_norm_bias",
  "_output_weight": "output_kernel",
}


_NOT_READ = {"min_time_bucket_boundary_distance": "how far the times of the file are from the edge of a bucket"}


def check() -> Check:
  return Check(_compute, not_read=_NOT_READ)


def _compute(golden: GoldenFile, dtype: type) -> dict:
  config, inputs, params = golden.config, golden.inputs(dtype), golden.params(dtype)
  layout = Layout.of_offsets(inputs["seq_offsets"], config["max_seq_len"])
  config.confirm(lengths=layout.lengths.tolist())
  x, cotangent = layout.pad(inputs["x"]), layout.pad(inputs["cotangent"])
  timestamps = jnp.asarray(layout.pad(inputs["timestamps"])) if config["positional"] else None
  lengths = jnp.asarray(layout.lengths)
  num_targets = jnp.asarray(inputs["num_targets"]) if "num_targets" in inputs else None

  @quick_jit
  def run(params, x, cotangent):
    of_params = functools.partial(forward, config, dtype, lengths, num_targets, timestamps)
    out, pull_back, encoded = jax.vjp(of_params, params, x, has_aux=True)
    return out, encoded, _position_index(config, lengths, num_targets, layout.width), pull_back(cotangent)

  out, encoded, index, (param_grads, x_grad) = run(params, x, cotangent)
  results = {f"grad/{name}": grad for name, grad in param_grads.items()}
  results |= {"grad/x": layout.unpad(x_grad), "out/y": layout.unpad(out), "out/after_positional": layout.unpad(encoded)}
  return results | {"out/position_index": np.ma.array(index, mask=~layout.is_real)}


def forward(config, dtype, lengths, num_targets, timestamps, params, x):
  _confirm_sizes(config, params, x)
  encoded = _encode_positions(config, lengths, num_targets, timestamps, params, x)
  targets = num_targets if config["target_aware"] else None
  return stack_forward(config, dtype, params, encoded, lengths, targets)[0], encoded


def stack_forward(config, dtype, params, x, lengths, num_targets, slot=None, cache=None):
  """The encoded tokens, and the keys and values that were kept."""
  stack = STU(
    num_layers=config["layers"],
    num_heads=config["h"],
    head_width=config["dqk"],
    value_width=config["dv"],
    normalizer=config["max_seq_len"],
    scale=config["attn_alpha"] or None,
    max_attention_length=config["max_attn_len"],
    contextual_length=config["contextual_seq_len"],
    group_norm=config["group_norm"],
    implementation="reference",
    dtype=dtype,
  )
  layers = {
    f"layer_{i}": {ours: params[f"stu._stu_layers.{i}.{theirs}"] for theirs, ours in _LAYER_NAMES.items()}
    for i in range(config["layers"])
  }
  variables = {"params": layers} | ({} if cache is None else {CACHE: cache})
  y, kept = stack.apply(variables, x, lengths, num_targets, slot=slot, mutable=[CACHE])
  return y, kept.get(CACHE)


def _confirm_sizes(config, params, x):
  config.confirm(d=x.shape[-1])
  if config["positional"]:
    config.confirm(num_position_buckets=len(params["pos._position_embeddings_weight"]))
    config.confirm(num_time_buckets=len(params["pos._timestamp_embeddings_weight"]) - 1)
  else:
    config.ignore("pos_num_targets", "num_position_buckets", "num_time_buckets")


def _encode_positions(config, lengths, num_targets, timestamps, params, x):
  if not config["positional"]:
    return x
  # The PyTorch path stops at the embedding's width, not at the table's last row: we take the rows that it can reach.
  reachable = params["pos._timestamp_embeddings_weight"][: x.shape[-1]]
  encoder = STUPositionalEncoder(
    num_positions=config["num_position_buckets"],
    num_time_buckets=len(reachable) - 1,
    contextual_length=config["contextual_seq_len"],
  )
  tables = {"position_table": params["pos._position_embeddings_weight"], "time_table": reachable}
  return encoder.apply({"params": tables}, x, timestamps, lengths, num_targets if config["pos_num_targets"] else None)


def _position_index(config, lengths, num_targets, width):
  targets = num_targets if config["pos_num_targets"] else None
  rows, prefix = config["num_position_buckets"], config["contextual_seq_len"]
  return stu_position_index(lengths, targets, width, rows, contextual_length=prefix)
