"""`sampled_softmax_*`: the loss of given queries; `sampled_softmax_hstu_step*`: training steps of a model."""

from __future__ import annotations

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from golden_checks import hstu
from golden_checks.compile import quick_jit
from golden_checks.golden_file import Check, GoldenFile
from golden_checks.layout import Layout
from golden_checks.sequences import sequence_batch
from jaxrec.layers.norm import l2_normalize
from jaxrec.models.hstu import HSTU
from jaxrec.objectives import item_losses, negatives
from jaxrec.objectives.item import ItemObjective


def loss_check() -> Check:
  return Check(_loss, not_read={"activation_checkpoint": "what is computed again in the backward pass"})


def training_check() -> Check:
  return Check(_training)


@contextlib.contextmanager
def draws(offsets):
  """Makes `jax.random.randint` return `minval + offsets`, the draws that the reference made."""

  def randint(key, shape, minval, maxval, dtype=None):
    del key, maxval, dtype
    assert shape == offsets.shape, f"drew {shape}, the file holds {offsets.shape}"
    return minval + offsets

  with mock.patch.object(jax.random, "randint", randint):
    yield


def _loss(golden: GoldenFile, dtype: type) -> dict:
  config, inputs = golden.config, golden.inputs(dtype)
  layout = Layout(inputs["lengths"], inputs["supervision_ids"].shape[1])
  config.confirm(lengths=layout.lengths.tolist(), N=layout.width, num_negatives=inputs["sampled_offsets"].shape[1])
  offsets = layout.pad(inputs["sampled_offsets"])  # [B, N, R]
  target_id = jnp.asarray(inputs["supervision_ids"])
  negative_id = _negatives(config, target_id, offsets)
  weight = jnp.asarray(inputs["supervision_weights"] * layout.is_real)
  epsilon, normalizes = config["l2_norm_eps"], config["l2_norm"]

  def loss(query, table):
    vectors = l2_normalize(table, epsilon) if normalizes else table
    positive = (query * vectors[target_id]).sum(axis=-1)
    negative = item_losses.scores_of_rows(query, lambda index: vectors[index], negative_id, block_size=1)
    logits = item_losses.sampled_logits(positive, negative, target_id, negative_id, config["temperature"])
    return item_losses.weighted_mean(item_losses.sampled_softmax(*logits), weight), vectors[negative_id]

  table = jnp.asarray(golden.params(dtype)["item_emb"])
  (value, vectors), grads = quick_jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
    jnp.asarray(inputs["output_embeddings"]), table
  )
  results = {"grad/output_embeddings": grads[0], "grad/item_emb": grads[1], "out/loss": value}
  results["out/sampled_ids"] = layout.unpad(negative_id)
  results["out/sampled_negative_embeddings"] = layout.unpad(vectors)
  if config["sampler"] == "in_batch":
    every_offset = np.arange(len(golden.arrays["out/cached_ids"]), dtype=np.int32)
    results["out/cached_ids"] = _negatives(config, target_id, every_offset)
  return results


def _negatives(config, target_id, offsets):
  """Draws as our samplers do; the reference's in-batch pool holds every id of the padded batch but 0."""
  catalogue, dedup = jnp.asarray(config["all_item_ids"]), config["dedup"]
  in_batch = config.one_of("sampler", {"local": None, "in_batch": "in_batch" if dedup else "in_batch_frequency"})

  @quick_jit
  def draw(key, target_id, offsets):
    with draws(offsets):
      if in_batch:
        is_drawn = (target_id != 0).astype(jnp.float32)
        return negatives.sample_in_batch(key, offsets.shape, target_id, is_drawn, in_batch)
      return catalogue[negatives.sample_items(key, "uniform", offsets.shape, len(catalogue)) - 1]

  return draw(jax.random.key(0), target_id, offsets)


def _training(golden: GoldenFile, dtype: type) -> dict:
  """The reference's optimizer steps, made with our model, our objective and its sampler, and Optax's AdamW."""
  config, inputs, params = golden.config, golden.inputs(dtype), golden.params(dtype)
  model_config = config["model"]
  hstu.confirm_sizes(model_config, golden.arrays)
  options = hstu.layer_options(model_config, params, "step0_timestamps" in inputs, dtype)
  model = HSTU(
    num_items=model_config["num_items"],
    width=model_config["d"],
    max_positions=options["attention_length"],
    num_layers=model_config["blocks"],
    output_norm=model_config["postproc"],
    implementation="reference",
    **options,
  )
  objective = ItemObjective(num_negatives=config["num_negatives"], temperature=config["temperature"])
  optimizer = optax.adamw(config["lr"], b1=0.9, b2=0.98, eps=1e-8, weight_decay=config["weight_decay"])

  def loss(params, batch, offsets):
    with draws(offsets):
      tree = hstu.model_params(params, model_config["blocks"])
      return objective(model, tree, batch, jax.random.key(0), deterministic=True)[0]

  @quick_jit
  def step(params, state, batch, offsets):
    value, grads = jax.value_and_grad(loss)(params, batch, offsets)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value, grads

  params = {name: jnp.asarray(value) for name, value in params.items()}
  state, values, gradients = optimizer.init(params), [], []
  for i in range(config["steps"]):
    batch, offsets = _step_inputs({name.removeprefix(f"step{i}_"): value for name, value in inputs.items()})
    params, state, value, grads = step(params, state, batch, offsets)
    values.append(value)
    gradients.append(grads)
  results = {"out/losses": np.asarray(values)} | {f"out/final/{name}": value for name, value in params.items()}
  return results | {f"grad/{name}": grad for name, grad in gradients[0].items()}


def _step_inputs(inputs):
  """Returns the batch, whose last target is the file's target item, and the draws [B, N, R]."""
  layout = Layout(inputs["past_lengths"], inputs["past_ids"].shape[1])
  item_id = inputs["past_ids"].copy()
  item_id[np.arange(len(item_id)), layout.lengths] = inputs["target_ids"]
  target_item = np.pad(item_id[:, 1:], ((0, 0), (0, 1)))
  weight = (layout.is_real & (target_item != 0)).astype(np.float32)
  batch = sequence_batch(item_id, layout.lengths, inputs.get("timestamps"))
  batch = batch.replace(target_item=jnp.asarray(target_item), target_weight=jnp.asarray(weight))
  return batch, jnp.asarray(layout.pad(inputs["sampled_offsets"]))
