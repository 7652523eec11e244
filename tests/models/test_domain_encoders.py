"""AutoCDSR+ with an encoder for each domain: against a plain composition, what crosses between domains, the penalty."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_checks.compile import quick_jit
from sequences import NUM_ITEMS, batch_of

from experiments.configs.autocdsr_plus import DATA, MODELS, STARTS, get_config
from jaxrec.layers.attention import MASS, SIZES, masses_by_layer
from jaxrec.layers.context import bidirectional_context
from jaxrec.layers.transformer import BERT4RecLayer
from jaxrec.models import build
from jaxrec.objectives.autocdsr import CrossDomainObjective
from jaxrec.objectives.item import ItemObjective
from jaxrec.train.config import check_config

NUM_DOMAINS, TOKENS = 2, 2
CONFIG = {
  "name": "domain_encoders", "width": 8, "num_heads": 2, "hidden": 6, "max_positions": 9, "num_layers": 0,
  "num_domain_layers": 2, "num_bottlenecks": TOKENS, "bottleneck_stride": 3, "num_domains": NUM_DOMAINS,
}  # fmt: skip
ROWS = [[[3, 1, 4, 1, 5], [2, 6]], [[5, 3, 8, 9]], []]
PLAIN = batch_of(ROWS, length=8, num_domains=NUM_DOMAINS)
HIDDEN = jnp.zeros_like(PLAIN.item_id, bool).at[0, 2].set(True).at[1, 3].set(True)
BATCH = PLAIN.replace(
  item_id=jnp.where(HIDDEN, NUM_ITEMS + 1, PLAIN.item_id), domain_id=jnp.where(HIDDEN, 0, PLAIN.domain_id),
  target_item=PLAIN.item_id, target_domain=PLAIN.domain_id, target_weight=HIDDEN.astype(jnp.float32),
)  # fmt: skip


@functools.cache
def _model_and_params(changes):
  model = build({**CONFIG, **dict(changes)}, num_items=NUM_ITEMS)
  shapes = jax.eval_shape(model.init, jax.random.key(0), BATCH)["params"]
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(1)
  return model, jax.tree.unflatten(tree, [jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype) for x in leaves])


def model_and_params(**changes):
  return _model_and_params(tuple(changes.items()))


@functools.cache
def compiled(changes):
  model, _ = _model_and_params(changes)
  return quick_jit(lambda params, batch: model.apply({"params": params}, batch))


def queries(batch, **changes):
  changes = tuple(changes.items())
  return np.asarray(compiled(changes)(_model_and_params(changes)[1], batch))


def encoded_by_hand(model, params, x, domain, has_tokens):
  """What reaches the shared encoder from one sequence `[n, M]`: domain by domain, with the tokens before the events."""
  layer = BERT4RecLayer(model.num_heads, model.hidden, model.feed_forward_activation)
  tokens = params["bottlenecks"]["table"] if has_tokens else jnp.zeros((0, 8))
  belongs = [np.flatnonzero((domain == d) | (domain == 0)) for d in (1, 2)]
  states = [x[events] for events in belongs]
  for index in range(model.num_domain_layers):
    means = []
    for d in range(NUM_DOMAINS):
      both = jnp.concatenate([tokens, states[d]])[None]
      context = bidirectional_context(batch_of([[[1] * both.shape[1]]], both.shape[1]))
      out = layer.apply({"params": params[f"domain_layers_{index * NUM_DOMAINS + d}"]}, both, context)[0]
      means.append(out[: len(tokens)])
      states[d] = out[len(tokens) :]
    tokens = sum(means) / NUM_DOMAINS
  total = x
  for events, state in zip(belongs, states, strict=True):
    total = total.at[events].add(state)
  return total


def normalised(params, x, name):
  centred = x - x.mean(-1, keepdims=True)
  return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * params[name]["scale"] + params[name]["bias"]


def test_the_encoders_are_blocks_over_the_events_of_each_domain_and_the_shared_tokens():
  model, params = model_and_params()
  found = queries(BATCH)
  spans = [(row, slice(start, start + length)) for row, start, length in ((0, 0, 5), (0, 5, 2), (1, 0, 4))]
  domains = [np.asarray(BATCH.domain_id)[span] for span in spans]

  def by_hand(params):
    embedded = model.apply({"params": params}, BATCH, method=lambda m, b: m.embedding(
      m.input_vectors(b.item_id), b.item_id, b.position, True))  # fmt: skip
    for span, domain in zip(spans, domains, strict=True):
      total = encoded_by_hand(model, params, embedded[span], domain, has_tokens=len(domain) >= 3)
      x = normalised(params, normalised(params, total, "residual_norm"), "final_norm")
      x = jax.nn.gelu(x @ params["head"]["kernel"] + params["head"]["bias"], approximate=False)
      x = normalised(params, x, "head_norm")
      yield x / jnp.linalg.norm(x, axis=-1, keepdims=True)

  for span, expected in zip(spans, quick_jit(lambda params: list(by_hand(params)))(params), strict=True):
    np.testing.assert_allclose(found[span], expected, rtol=1e-4, atol=1e-4)


def changed(**changes):
  """Which events of the second row see another item of domain 2 in its first event; the last event is masked."""
  other = BATCH.replace(item_id=BATCH.item_id.at[1, 0].set(7))
  assert BATCH.domain_id[1].tolist() == [2, 2, 1, 0, 0, 0, 0, 0] and 7 % 2 + 1 == 2
  return (np.abs(queries(other, **changes) - queries(BATCH, **changes)).max(axis=-1) > 1e-5)[1, :4].tolist()


def test_domains_exchange_something_through_tokens_only_and_from_the_second_layer_on():
  assert changed(num_bottlenecks=0) == [True, True, False, True]  # The masked event is in both domains.
  assert changed(num_domain_layers=1) == [True, True, False, True]
  assert changed() == [True] * 4
  assert changed(num_bottlenecks=0, num_layers=1) == [True] * 4  # The shared encoder reads all events.


def test_other_sequences_of_a_row_change_nothing():
  other = BATCH.replace(item_id=BATCH.item_id.at[0, 6].set(8))
  difference = np.abs(queries(other, num_layers=1) - queries(BATCH, num_layers=1)).max(axis=-1)
  assert (difference[0, :5] < 1e-6).all() and (difference[0, 5:7] > 1e-4).all() and (difference[1:] < 1e-6).all()


@pytest.mark.parametrize("score", ["all_keys", "visible"])
def test_only_the_domain_encoders_are_penalised(score):
  model, params = model_and_params(num_layers=1)
  objective = CrossDomainObjective(ItemObjective("full_softmax", temperature=0.1), score=score)

  @quick_jit
  def losses_and_gradients(params):
    found = objective.gradients(model, params, BATCH, jax.random.key(0), True)
    return found.losses, found.grads

  losses, grads = losses_and_gradients(params)
  assert 0 < losses[1] < 1
  second = {n: max(np.abs(leaf).max() for leaf in jax.tree.leaves(part)) for n, part in grads[1].items()}
  assert second["domain_layers_0"] > 1e-6 and second["bottlenecks"] > 1e-6
  for name in ("layers_0", "head", "residual_norm"):
    assert second[name] == 0


def test_the_score_is_the_attention_to_bottleneck_tokens():
  """Masses of each domain's encoder: of its own events and of tokens; events of other domains are not in it."""
  model, params = model_and_params(num_layers=1)
  collected = quick_jit(lambda params: model.apply({"params": params}, BATCH, mutable=[MASS])[1])(params)
  masses = masses_by_layer(collected[MASS])
  assert len(masses) == 4  # Two layers of two domains, none of the shared encoder.
  for index, mass in enumerate(masses):
    belongs = np.isin(np.asarray(BATCH.domain_id), (0, index % 2 + 1)) & np.asarray(BATCH.sequence_id != 0)
    total = np.asarray(mass)[:, :8].sum(axis=-1)  # [B, N, H]
    np.testing.assert_allclose(total, np.broadcast_to(belongs[..., None], total.shape), atol=1e-5)
    np.testing.assert_allclose(np.asarray(mass)[:, :8, :, 2 - index % 2], 0, atol=1e-6)
    assert (np.asarray(mass)[0, 0, :, 3] > 0).all() == bool(belongs[0, 0])
  assert SIZES not in collected


def test_it_has_no_form_within_a_domain_or_with_a_second_table():
  model, params = model_and_params()
  with pytest.raises(NotImplementedError, match="for models of all events"):
    model.apply({"params": params}, BATCH, method="within_domain")
  with pytest.raises(ValueError, match="one item table only"):
    model_and_params(attention_width=4, num_bottlenecks=0)
  with pytest.raises(ValueError, match="shortest=0 must be at least 1"):
    model_and_params(bottleneck_stride=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("start", STARTS)
def test_the_models_of_the_attribution_are_accepted_and_build(name, start):
  for data in DATA:
    config = get_config(f"{data}-{name}-{start}")
    check_config(config)
    assert (config.train.uniform_start, config.optimizer.schedule) == (
      (0.05, "constant") if start == "uniform" else (0.0, "warmup_cosine")
    )
    assert bool(config.multi_objective.objectives) == (name == "pareto")
    model = build(config.model.to_dict(), num_items=NUM_ITEMS, num_domains=NUM_DOMAINS)
    jax.eval_shape(model.init, jax.random.key(0), BATCH)
  with pytest.raises(ValueError, match="must be <data>-<model>-<start>"):
    get_config("abxi-pareto")
