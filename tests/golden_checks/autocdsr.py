"""`autocdsr_*`: attention inside domains with bottleneck tokens, what it costs, and losses over all items."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks.compile import quick_jit
from golden_checks.golden_file import Check, GoldenFile
from golden_checks.t5 import Encoder
from jaxrec.layers.norm import l2_normalize, layer_norm
from jaxrec.objectives.item_losses import full_softmax

MASK_TOKEN, FIRST_BOTTLENECK = 1, 2  # Item ids.

_IN_BATCH = (
  "not shared: the positive's own term is left out of the denominator, and each excluded label adds exp(0) = 1 to it; "
  "our sampled softmax holds the positive and nothing for what is excluded"
)
_PARETO = "not attention: the weights of two losses from their gradients, which belong to multi-objective optimisation"
# Attention without a scale has steep gradients, and the files have no float64 run. Ours in float32 is off by up to
# 3.1e-5 of the largest entry from ours in float64, as far as the reference is. Weights that are off by one rounding,
# 2^-24, already move our float64 gradients by up to 7e-6.
_FLOAT32_ERROR = 5e-5


def attention_check(implementation: str) -> Check:
  compute = functools.partial(_attention, implementation=implementation)
  return Check(compute, {"out/pareto_*": _PARETO}, float32_error=_FLOAT32_ERROR)


def loss_check() -> Check:
  return Check(_loss, {"out/inbatch_*": _IN_BATCH, "grad/inbatch_*": _IN_BATCH}, {"tau": "of the loss in_batch"})


def pure_check() -> Check:
  return Check(_pure, not_read={"vocab": "no table is looked up"})


def _attention(golden: GoldenFile, dtype: type, implementation: str) -> dict:
  """Everything from one forward pass, and the gradients of the loss and of the attention score."""
  inputs, names = golden.inputs(dtype), sorted(name[6:] for name in golden.arrays if name.startswith("param/"))
  _confirm_sizes(golden.config, golden.params(dtype))
  options = {"implementation": implementation, "max_distance": golden.config.get("rel_max_distance", 128)}

  def forward(params):
    results = _forward(params, inputs, golden.config, options)
    return (results["out/loss"], results["out/attention_score"]), results

  @quick_jit
  def run(params):
    (loss, _), pull_back, results = jax.vjp(forward, params, has_aux=True)
    one, zero = jnp.ones_like(loss), jnp.zeros_like(loss)
    return results, pull_back((one, zero))[0], pull_back((zero, one))[0]

  results, of_loss, of_score = run({name: jnp.asarray(value) for name, value in golden.params(dtype).items()})
  for kind, grads in (("loss", of_loss), ("attention_score", of_score)):
    norms = np.array([np.linalg.norm(grads[name]) for name in names])
    results |= {f"grad/{kind}/{name}": grads[name] for name in names} | {f"out/{kind}_grad_norms": norms}
  return results | {"out/attention_score_has_grad": results["out/attention_score_grad_norms"] > 0}


def _confirm_sizes(config, params):
  """Of the first layer of the first domain, as all others have the same."""
  layer = f"domain_encoders.{config['domains'][0]}.0.encoder.block.0.layer."
  table, attention = params["embedding_table.weight"], f"{layer}0.SelfAttention."
  config.confirm(vocab=len(table), d=table.shape[1], d_ff=len(params[f"{layer}1.DenseReluDense.wi.weight"]))
  config.confirm(d_kv=len(params[f"{attention}q.weight"]) // config["domain_heads"])
  config.confirm(rel_buckets=len(params[f"{attention}relative_attention_bias.weight"]))


def _forward(params, inputs, config, options):
  table, is_token = params["embedding_table.weight"], inputs["attention_mask"] == 1
  x = table[inputs["input_ids"]]  # [B, N, M]
  masks = domain_masks(inputs["input_ids"], inputs["domain_ids"], config["domains"])
  states, results = _domain_states(params, x, masks, config, options)
  merged = x + sum(masks[d][..., None] * states[d][:, config["num_ib_tokens"] :] for d in masks)  # [B, N, M]
  normed = (
    layer_norm(merged, 1e-5) * params["domain_fusion_layer_norm.weight"] + params["domain_fusion_layer_norm.bias"]
  )
  shared = Encoder(params, "encoder.encoder.", config["layers"], config["heads"], **options)
  hidden = shared(normed, is_token)[0] if config["layers"] else normed
  out = _network(params, hidden)
  last = is_token.sum(axis=1) - 1
  return results | {f"out/domain_mask/{d}": mask for d, mask in masks.items()} | {
    "out/merged_before_layernorm": merged,
    "out/merged_after_layernorm": normed,
    "out/before_postprocessor": hidden,
    "out/embeddings": out,
    "out/last_embedding": out[np.arange(len(out)), last],
    "out/loss": _reference_loss(out, table, inputs["label_location"], inputs["labels"], config["tau"]),
  }  # fmt: skip


def _domain_states(params, x, masks, config, options):
  """The states of each domain after its layers [B, K + N, M], and what the layers did."""
  num_bottleneck, results, score = config["num_ib_tokens"], {}, jnp.zeros((), x.dtype)
  bottleneck = params["embedding_table.weight"][FIRST_BOTTLENECK : FIRST_BOTTLENECK + num_bottleneck]  # [K, M]
  bottleneck = jnp.broadcast_to(bottleneck, (len(x), *bottleneck.shape))
  states = {domain: jnp.concatenate([bottleneck, x], axis=1) for domain in masks}
  for layer in range(config["domain_layers"]):
    for domain, mask in masks.items():
      prefix = f"domain_encoders.{domain}.{layer}.encoder."
      encoder = Encoder(params, prefix, 1, config["domain_heads"], num_bottleneck, **options)
      states[domain], mass, weights = encoder(states[domain], mask)
      results[f"out/domain_layer_output/{domain}/{layer}"] = states[domain]
      part = mass[:, num_bottleneck:].mean() / max(1, num_bottleneck)
      results[f"out/attention_score_part/{domain}/{layer}"], score = part, score + part
      results[f"out/attention_weights/{domain}/{layer}"] = weights.swapaxes(1, 2)  # [B, H, S, S]
    if layer in config["ib_comm_layers"]:
      states = synchronised(states, num_bottleneck)
  return states, results | {"out/attention_score": score}


def domain_masks(item_id, domain_id, domains):
  """Which tokens belong to each domain; hidden items belong to all of them."""
  return {domain: (item_id == MASK_TOKEN) | (domain_id == int(domain)) for domain in domains}


def synchronised(states, num_bottleneck):
  """The states with the bottleneck tokens of every domain replaced by their mean over the domains."""
  mean = sum(state[:, :num_bottleneck] for state in states.values()) / len(states)  # [B, K, M]
  return {name: jnp.concatenate([mean, state[:, num_bottleneck:]], axis=1) for name, state in states.items()}


def _network(params, x):
  first, last = (f"embedding_post_processor.model.{i}." for i in (0, 2))
  hidden = jax.nn.relu(x @ params[f"{first}weight"].T + params[f"{first}bias"])
  return hidden @ params[f"{last}weight"].T + params[f"{last}bias"]


def _reference_loss(out, table, location, labels, temperature):
  """The reference's contrastive loss, which none of ours is; here it only leads to the gradients of the layers."""
  query, key = (l2_normalize(a, 1e-12) for a in (out[location[:, 0], location[:, 1]], table[labels]))  # [L, M]
  scores = query @ key.T / temperature  # [L, L]
  rest = jax.nn.logsumexp(scores * (labels[:, None] != labels), axis=1)
  return (rest - jnp.diagonal(scores)).mean()


def _loss(golden: GoldenFile, dtype: type) -> dict:
  inputs = golden.inputs(dtype)
  location, labels = inputs["label_locations"], jnp.asarray(inputs["labels"])

  def loss(queries, table, normalize):
    if normalize:
      queries, table = l2_normalize(queries, 1e-12), l2_normalize(table, 1e-12)
    vectors = jnp.pad(table, ((1, 0), (0, 0)))  # Our row 0 is padding, no item.
    return full_softmax(queries[location[:, 0], location[:, 1]], vectors, labels + 1).mean()

  results, arguments = {}, (jnp.asarray(inputs["query_embeddings"]), jnp.asarray(inputs["key_embeddings"]))
  for name in ("norm", "nonorm"):
    gradient = quick_jit(jax.value_and_grad(functools.partial(loss, normalize=name == "norm"), argnums=(0, 1)))
    value, grads = gradient(*arguments)
    results[f"out/fullbatch_{name}"] = value
    results |= {f"grad/fullbatch_{name}/{of}_embeddings": g for of, g in zip(("query", "key"), grads, strict=True)}
  return results


def _pure(golden: GoldenFile, dtype: type) -> dict:
  inputs, params, domains = golden.inputs(dtype), golden.params(dtype), golden.config["domains"]
  golden.config.confirm(masking_token=MASK_TOKEN)
  masks = domain_masks(inputs["input_ids"], inputs["domain_ids"], domains)

  def merge(x, states):
    merged = x + sum(masks[d][..., None] * states[d] for d in domains)  # [B, N, M]
    return layer_norm(merged, 1e-5) * params["ln_weight"] + params["ln_bias"]

  states = {d: jnp.asarray(inputs[f"domain_embeddings/{d}"]) for d in domains}
  merged, pull_back = jax.vjp(merge, jnp.asarray(inputs["embeddings"]), states)
  grad, grads = pull_back(jnp.asarray(inputs["cotangent"]))
  synced = synchronised({d: jnp.asarray(inputs[f"with_ib/{d}"]) for d in domains}, golden.config["num_ib_tokens"])
  results = {"out/merged": merged, "grad/embeddings": grad}
  for d in domains:
    results |= {
      f"out/domain_mask/{d}": masks[d], f"out/ib_token_sync/{d}": synced[d], f"grad/domain_embeddings/{d}": grads[d],
    }  # fmt: skip
  return results
