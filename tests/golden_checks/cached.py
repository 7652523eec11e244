"""`hstu_cache_*`: the research model fed event by event. `stu_cached_*`: the production layers fed in two parts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks.compile import quick_jit
from golden_checks.golden_file import Check, GoldenFile
from golden_checks.hstu import NOT_READ, confirm_sizes, layer_options, model_params
from golden_checks.layout import Layout
from golden_checks.stu import forward, stack_forward
from jaxrec.layers.cache import CachedRows, Prefill
from jaxrec.models.hstu import HSTU
from jaxrec.serving.incremental import IncrementalModel


def model_check() -> Check:
  stale = "of what is not an event yet"
  return Check(
    _fed,
    {
      "out/prefill_*": f"the rows {stale}; every event but the open one is compared after the last step",
      "out/*_padded_q": "queries are not kept",
      "out/*_layer_output": "outputs of layers are not kept",
      "out/*_delta_x_offsets_flat": "where the reference's jagged rows have the event",
      "out/*_max_abs_diff_*": "between two ways of the reference",
    },
    NOT_READ,
  )


def stack_check() -> Check:
  return Check(
    _two_parts,
    {
      "out/delta_y": "as full_y_rows; but where all rows are shorter than the batch is wide, divided by another length",
      "out/prefill_max_kv_len*": "the padded length of the reference's cache",
      "out/max_abs_diff": "between two ways of the reference",
    },
    {"prefill_max_seq_len": "the padded length of the cached prefix"},
  )


def _fed(golden: GoldenFile, dtype: type) -> dict:
  """Up to each step's position `encoded`, and keys and values of all but the open event, which is not kept."""
  config, inputs, params = golden.config, golden.inputs(dtype), golden.params(dtype)
  confirm_sizes(config, golden.arrays)
  options = layer_options(config, golden.arrays, "timestamps" in inputs, dtype) | {"implementation": "reference"}
  model = HSTU(
    num_items=config["num_items"], width=config["d"], max_positions=options["attention_length"],
    num_layers=config["blocks"], output_norm=config["postproc"], **options,
  )  # fmt: skip
  items, step_position = inputs["past_ids"].copy(), [inputs[f"step{i}_pos"] for i in range(config["steps"])]
  row, width = np.arange(len(items)), items.shape[1]
  for i, position in enumerate(step_position):
    items[row, position] = inputs[f"step{i}_ids"]
  times = inputs.get("timestamps", np.zeros_like(items))
  asked = np.concatenate([times[:, 1:], times[:, -1:]], axis=1)

  serving = IncrementalModel(model, jax.tree.map(jnp.asarray, model_params(params, config["blocks"])))
  state, domain, encoded = serving.start(len(items), width), np.ones_like(row), []
  for t in range(width):
    state = serving.observe(state, np.where(t <= step_position[-1], items[:, t], 0), domain, times[:, t])
    encoded.append(np.asarray(serving.query(state, domain, asked[:, t])))
  encoded, position = np.stack(encoded, axis=1), np.arange(width)
  results = {}
  for i, last in enumerate(step_position):
    until = np.ma.array(encoded, mask=np.broadcast_to((position > last[:, None])[..., None], encoded.shape))
    results |= {f"out/step{i}_{kind}_encoded": until for kind in ("cached", "full")}
    results |= {f"out/step{i}_{kind}_at_pos": encoded[row, last] for kind in ("cached", "full")}
  layout, is_open = Layout(inputs["past_lengths"], width), position >= step_position[-1][:, None]
  for i in range(config["blocks"]):
    keys, values = (_kept(state.cache[f"layers_{i}"][name], is_open) for name in ("cached_key", "cached_value"))
    flat = np.ma.array(layout.unpad(values.data), mask=layout.unpad(values.mask))
    results |= {f"out/final_cache{i}_padded_k": keys, f"out/final_cache{i}_v": flat}
  return results


def _kept(cached, is_open):
  """`[B, 1, L, H, D]` as `[B, L, H * D]`."""
  flat = np.asarray(cached).reshape(*is_open.shape, -1)
  return np.ma.array(flat, mask=np.broadcast_to(is_open[..., None], flat.shape))


def _two_parts(golden: GoldenFile, dtype: type) -> dict:
  """Rows without their last tokens, whose keys and values are kept; the last tokens against those; all at once."""
  config, inputs, params = golden.config, golden.inputs(dtype), golden.params(dtype)
  layout = Layout.of_offsets(inputs["seq_offsets"], config["max_seq_len"])
  config.confirm(lengths=layout.lengths.tolist())
  delta, lengths, targets = config["delta_size"], jnp.asarray(layout.lengths), jnp.asarray(inputs["num_targets"])
  x, index = layout.pad(inputs["x"]), layout.lengths[:, None] - delta + np.arange(delta)  # [B, delta]
  first = Layout(layout.lengths - delta, layout.width)
  row, slot = np.arange(len(x))[:, None], CachedRows(jnp.asarray(index), layout.width)
  run = quick_jit(functools.partial(stack_forward, config, dtype))
  full, _ = quick_jit(functools.partial(forward, config, dtype, lengths, targets, None))(params, x)
  y, kept = run(params, x, lengths - delta, targets - delta, slot=Prefill(layout.width))
  last, _ = run(params, x[row, index], lengths, targets, slot=slot, cache=kept)
  results = {"out/full_y": layout.unpad(full), "out/full_y_rows": np.asarray(last).reshape(-1, x.shape[2])}
  results |= {"out/prefill_y": first.unpad(y)}
  for i in range(config["layers"]):
    results[f"out/prefill_kv_offsets{i}"] = np.concatenate([[0], np.cumsum(first.lengths)])
    for name, kind in (("k", "cached_key"), ("v", "cached_value")):
      cached = np.asarray(kept[f"layer_{i}"][kind])
      results[f"out/prefill_{name}_cache{i}"] = first.unpad(cached.reshape(*cached.shape[:2], -1))
  return results
