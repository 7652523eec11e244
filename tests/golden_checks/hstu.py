"""`hstu_layer_*` and `hstu_model_*`: the research HSTU layer and model, and the gradients of everything."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks.compile import quick_jit
from golden_checks.golden_file import Check, GoldenFile
from golden_checks.layout import Layout
from golden_checks.models import ITEM_TABLE, POSITION_TABLE, apply_with_intermediates, outputs_and_gradients
from golden_checks.sequences import sequence_batch
from jaxrec.layers.context import causal_context
from jaxrec.layers.hstu import HSTULayer, split_uvqk
from jaxrec.layers.item_embedding import embed_sequence
from jaxrec.layers.norm import l2_normalize, layer_norm
from jaxrec.models.hstu import HSTU
from pallas_kernels import NUM_TIME_BUCKETS, time_bucket
from pallas_kernels.bias import dense_bias

_TIME_TABLE = "_rel_attn_bias._ts_w"
_POSITION_TABLES = ("_rel_attn_bias._pos_w", "_rel_attn_bias._w")  # beside a time table, alone
_TABLES = {"time": _TIME_TABLE, "pos": _POSITION_TABLES}


NOT_READ = {"min_bucket_boundary_distance": "how far the times of the file are from the edge of a bucket"}


def layer_check() -> Check:
  return Check(_layer, not_read=NOT_READ)


def model_check() -> Check:
  return Check(_model, not_read=NOT_READ)


def layer_options(config, params, has_times: bool, dtype: type) -> dict:
  """Returns the fields of `HSTULayer` that the file asks for; without times the reference adds no bias at all."""
  config.one_of("normalization", {"rel_bias": None, "hstu_rel_bias": None})
  has_table = {name: any(key.endswith(names) for key in params) for name, names in _TABLES.items()}
  config.confirm(enable_relative_attention_bias=has_table["pos"])
  config.confirm(bias="_".join(name for name in _TABLES if has_table[name]))
  return {
    "num_heads": config["h"],
    "head_width": config["dqk"],
    "value_width": config["dv"],
    "concat_ua": config["concat_ua"],
    "linear_activation": config["linear_activation"],
    "attention_length": config["n"] if "n" in config else config["max_sequence_len"] + config["max_output_len"],
    "time_bias": has_times and has_table["time"],
    "position_bias": has_times and has_table["pos"],
    "dtype": dtype,
  }


def layer_params(params, prefix: str = "") -> dict:
  """Returns the tree of one `HSTULayer`; the reference's position table runs the other way round."""
  tree = {
    "uvqk": {"kernel": params[prefix + "_uvqk"]},
    "output": {"kernel": params[prefix + "_o.weight"].T, "bias": params[prefix + "_o.bias"]},
  }
  if prefix + _TIME_TABLE in params:
    table = params[prefix + _TIME_TABLE]  # rows beyond its last one are its last one
    tree["time_table"] = table[np.minimum(np.arange(NUM_TIME_BUCKETS), len(table) - 1)]
  for name in _POSITION_TABLES:
    if prefix + name in params:
      tree["position_table"] = params[prefix + name][::-1]
  return tree


def model_params(params, num_layers: int) -> dict:
  """Returns the tree of `HSTU`."""
  layers = {f"layers_{i}": layer_params(params, f"_hstu._attention_layers.{i}.") for i in range(num_layers)}
  return {"items": {"table": params[ITEM_TABLE]}, "embedding": {"position_table": params[POSITION_TABLE]}} | layers


def _layer(golden: GoldenFile, dtype: type) -> dict:
  config, inputs, params = golden.config, golden.inputs(dtype), golden.params(dtype)
  layout = Layout.of_offsets(inputs["x_offsets"], config["n"])
  config.confirm(d=inputs["x"].shape[-1], lengths=layout.lengths.tolist())
  timestamps, num_buckets = inputs.get("timestamps"), config["num_buckets"]
  options = layer_options(config, params, timestamps is not None, dtype)
  layer = HSTULayer(**options, implementation="xla")

  def forward(params, x):
    context = causal_context(sequence_batch(np.zeros(layout.is_real.shape, np.int32), layout.lengths, timestamps))
    variables = {"params": layer_params(params)}
    y, state = layer.apply(variables, x, context, True, capture_intermediates=_is_compared, mutable=["intermediates"])
    returned = state["intermediates"]
    v, q, k = _values_queries_keys(config, returned["uvqk"]["__call__"][0])
    more = {"out/v": v, "out/padded_q": q, "out/padded_k": k}
    if (bias := returned["relative_bias"][0]) is not None:
      more["out/rel_attn_bias"] = dense_bias(bias)[:, 0]
      bucket = time_bucket(context.query_time[:, :, None] - context.key_time[:, None])  # [B, N, N]
      more["out/time_bucket"] = jnp.minimum(bucket, num_buckets)
    return y, more

  @quick_jit
  def run(params, x, cotangent):
    y, pull_back, more = jax.vjp(forward, params, x, has_aux=True)
    return y, more, pull_back(cotangent)

  y, more, (param_grads, x_grad) = run(params, layout.pad(inputs["x"]), layout.pad(inputs["cotangent"]))
  results = more | {f"grad/{name}": grad for name, grad in param_grads.items()}
  return results | {"grad/x": layout.unpad(x_grad), "out/y": layout.unpad(y), "out/v": layout.unpad(more["out/v"])}


def _is_compared(module, method_name: str) -> bool:
  return module.name == "uvqk" or method_name == "relative_bias"


def _values_queries_keys(config, projected):
  activated = jax.nn.silu(projected) if config["linear_activation"] == "silu" else projected
  parts = split_uvqk(activated, config["h"], config["dqk"], config["dv"])[1:]
  return tuple(part.reshape(*projected.shape[:2], -1) for part in parts)


def _model(golden: GoldenFile, dtype: type) -> dict:
  config, inputs = golden.config, golden.inputs(dtype)
  forward = config.one_of("preproc", {None: _plain, "rated": _rated, "combined": _combined})
  confirm_sizes(config, golden.arrays)
  options = layer_options(config, golden.arrays, "timestamps" in inputs, dtype) | {"implementation": "reference"}
  doubled = 2 if config.get("preproc") == "combined" else 1
  results = outputs_and_gradients(golden, dtype, lambda params, shift: forward(config, options, inputs, params, shift))
  return results | {"out/preprocessed_lengths": doubled * inputs["past_lengths"]}


def confirm_sizes(config, arrays):
  """Compares the sizes among a model's options with the arrays."""
  rows, width = arrays[f"param/{ITEM_TABLE}"].shape
  config.confirm(num_items=rows - 1, item_dim=width, d_out=width, d=arrays[f"param/{POSITION_TABLE}"].shape[1])
  if "lengths" in config:
    config.confirm(lengths=arrays["in/past_lengths"].tolist())
  if "num_ratings" in config:
    config.confirm(num_ratings=len(arrays["param/_input_features_preproc._rating_emb.weight"]))


def _plain(config, options, inputs, params, shift):
  batch = sequence_batch(inputs["past_ids"], inputs["past_lengths"], inputs.get("timestamps"))
  model = HSTU(
    num_items=config["num_items"],
    width=config["d"],
    max_positions=options["attention_length"],
    num_layers=config["blocks"],
    output_norm=config["postproc"],
    **options,
  )
  out, parts = apply_with_intermediates(model, model_params(params, config["blocks"]), batch, shift)
  return out, {"out/past_embeddings": parts["items"], "out/preprocessed": parts["embedding"]}


def _rated(config, options, inputs, params, shift):
  """Item and rating vectors side by side, made of the same parts as the model."""
  items = params[ITEM_TABLE][inputs["past_ids"]] + shift  # [B, N, M]
  ratings = params["_input_features_preproc._rating_emb.weight"][inputs["ratings"]]
  vectors = jnp.concatenate([items, ratings], axis=-1)
  return _encode(config, options, inputs, params, items, vectors, inputs["past_ids"], inputs["past_lengths"])


def _combined(config, options, inputs, params, shift):
  """Item and rating vectors one after the other: each event takes two positions."""
  items = params[ITEM_TABLE][inputs["past_ids"]] + shift  # [B, N, M]
  ratings = params["_input_features_preproc._rating_emb.weight"][inputs["ratings"]]
  vectors = jnp.stack([items, ratings], axis=2).reshape(len(items), -1, config["d"])  # [B, 2N, M]
  item_id = np.repeat(inputs["past_ids"], 2, axis=1)
  return _encode(config, options, inputs, params, items, vectors, item_id, 2 * inputs["past_lengths"])


def _encode(config, options, inputs, params, items, vectors, item_id, lengths):
  batch = sequence_batch(item_id, lengths, inputs.get("timestamps"))
  context = causal_context(batch)
  preprocessed = x = embed_sequence(vectors, params[POSITION_TABLE][batch.position], batch.item_id)
  for i in range(config["blocks"]):
    variables = {"params": layer_params(params, f"_hstu._attention_layers.{i}.")}
    x = HSTULayer(**options).apply(variables, x, context, True)
  out = jnp.where((batch.sequence_id != 0)[..., None], x[..., : config["item_dim"]], 0)
  normalize = config.one_of("postproc", {"l2": l2_normalize, "layer_norm": layer_norm})
  return normalize(out), {"out/past_embeddings": items, "out/preprocessed": preprocessed}
