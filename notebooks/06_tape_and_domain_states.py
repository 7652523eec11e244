# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # TAPE and domain states: cheap attention that still crosses domains
#
# Attention inside each domain costs the sum of the squares of the domains' lengths instead of the square of the sum,
# and loses what one domain says about another. Two small additions bring it back (DDSR, arXiv 2508.20945):
# transition-aware positional embeddings (TAPE), which tell a token the domain of the next event, and domain states,
# through which a token reads the latest event of each other domain.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxrec
from jaxrec.data.generators.planted_transfer import planted_transfer
from jaxrec.evaluation.model import evaluate
from jaxrec.layers.transitions import TransitionAwarePositionalEmbedding
from jaxrec.train.state import create_state
from jaxrec.train.step import make_train_step

plt.rcParams.update(
  {"figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
)
COLOURS = ("white", "tab:blue", "tab:orange", "0.6")

# %% [markdown]
# ## Data whose truth is known
#
# A target event usually repeats the number and genre of an earlier *informative* event that has not been followed
# yet; noise depends on nothing. Whoever predicts the target domain must look into another domain.

# %%
data = planted_transfer(num_users=800, items_per_domain=48, noise_share=0.4, gap=8, mean_events=32, seed=0)
titles = data.item_titles()
for event in range(*data.user_slice(1).indices(data.num_events)[:2])[-6:]:
  print(f"{data.domain_names[data.domain_id[event] - 1]:12} {titles[data.item_id[event]]}")

# %% [markdown]
# ## What a token can read
#
# One layer, one row of 24 events in three domains. How much does the output at each event change with the vector of
# each other event? Grey: not at all. The strip at the left has the colours of the domains.

# %%
rng = np.random.default_rng(3)
N, C = 24, 3
domain = rng.integers(1, C + 1, (1, N)).astype(np.int32)
row = jaxrec.next_item_batch(jnp.arange(1, N + 1, dtype=jnp.int32)[None], jnp.asarray(domain))
sizes = dict(num_items=50, width=16, max_positions=N, num_layers=1, num_heads=1, head_width=16, value_width=16)
small = dict(sizes, attention_length=N, num_domains=C)
encoders = {
  "all events": jaxrec.HSTU(**small),
  "own domain": jaxrec.MultiDomainHSTU(**small, tape=False, states="none"),
  "own domain and\nlatest keys of others": jaxrec.MultiDomainHSTU(**small, tape=False, read="key_value"),
  "own domain and\nstates of others": jaxrec.MultiDomainHSTU(**small, tape=False, read="all"),
}


def sensitivity(model):
  """How far each output moves (row) when the vector of each event is changed (column), `[N, N]`."""
  variables = jax.jit(model.init)(jax.random.key(0), row)
  variables = jax.tree.map(lambda p: p * 4 if p.ndim == 2 else p, variables)
  many = jax.tree.map(lambda x: jnp.repeat(x, N + 1, axis=0), row)
  item = model.apply(variables, many.item_id, method="input_vectors")  # [N + 1, N, M], of which N will change
  one_each = jnp.eye(N + 1, N)[..., None] * 0.3 * jax.random.normal(jax.random.key(1), item.shape[1:])
  output = jax.jit(lambda item: model.apply(variables, many, item=item))(item + one_each)
  return np.asarray(jnp.linalg.norm(output[:N] - output[N], axis=-1)).T


read = {name: sensitivity(model) for name, model in encoders.items()}
figure, axes = plt.subplots(1, 4, figsize=(13, 4.4), layout="constrained", sharey=True)
for axis, (name, values) in zip(axes, read.items(), strict=True):
  shown = np.where(values > 1e-5, np.log10(np.maximum(values / values.max(), 1e-5)), np.nan)
  image = axis.imshow(shown, cmap=plt.get_cmap("viridis").with_extremes(bad="0.92"), vmin=-4, vmax=0)
  axis.scatter(np.full(N, -1.5), np.arange(N), c=[COLOURS[d] for d in domain[0]], marker="s", s=30, clip_on=False)
  axis.set(title=name, xlabel="event that changes", xlim=(-2.5, N - 0.5))
axes[0].set_ylabel("event at which we look")
figure.colorbar(image, ax=axes, label="log10 of the effect", shrink=0.8);

# %% [markdown]
# The third panel reads exactly one event of each other domain more than the second. In the fourth, the default, that
# event passes on what it has itself read in its domain, so that all earlier events are within reach after one layer.

# %%
earlier = np.tril(np.ones((N, N), bool))
same = earlier & (domain[0][:, None] == domain[0][None])
last_of_others = np.zeros((N, N), bool)
for i in range(N):
  for d in set(range(1, C + 1)) - {int(domain[0, i])}:
    if (before := np.flatnonzero(domain[0, : i + 1] == d)).size:
      last_of_others[i, before[-1]] = True
reads = [values > 1e-5 for values in read.values()]
print("events read by the last event:", [int(found[-1].sum()) for found in reads])

# %% [markdown]
# ## What TAPE adds
#
# A vector for each pair of domains, added to an event that precedes a change of domain. Where the domain stays the
# same it is exactly zero, so that a user of one domain is served as before.

# %%
tape = TransitionAwarePositionalEmbedding(num_domains=C, width=16)
added, tape_parameters = tape.init_with_output(jax.random.key(1), row.domain_id, row.target_domain)
size = np.asarray(jnp.linalg.norm(added[0], axis=-1))
figure, axes = plt.subplots(figsize=(10, 2.8), layout="constrained")
axes.bar(range(N), size, color="tab:green")
axes.scatter(range(N), np.full(N, -0.06 * size.max()), c=[COLOURS[d] for d in domain[0]], marker="s", s=90)
axes.set(title="Size of the vector that TAPE adds", xlabel="event (colour: its domain)", ylabel="norm", xlim=(-1, N));

# %% [markdown]
# ## What it is worth
#
# Each model is trained in the same way. The target is ranked among all items, which rewards a model that knows the
# domain of the target, and among the items of that domain, which does not.

# %%
heads = dict(num_layers=2, num_heads=2, head_width=16, value_width=16)
big = dict(heads, num_items=data.num_items, num_domains=3, width=32, max_positions=64, attention_length=64)
models = {
  "all events": jaxrec.HSTU(**big),
  "all events, given the target domain": jaxrec.HSTU(**big, target_domain=True),
  "own domain": jaxrec.MultiDomainHSTU(**big, tape=False, states="none"),
  "own domain, TAPE": jaxrec.MultiDomainHSTU(**big, states="none"),
  "own domain, states": jaxrec.MultiDomainHSTU(**big, tape=False),
  "own domain, TAPE and states": jaxrec.MultiDomainHSTU(**big),
}
EPOCHS = 6
options = jaxrec.TrainingOptions(
  max_length=64, row_length=128, rows_per_batch=16, num_epochs=EPOCHS, request_time="last_event"
)
config = jaxrec.default_config()
config.data.max_length, config.data.request_time, config.eval.protocol = 64, "last_event", "both"
quality = {}
for name, model in models.items():
  batches = jaxrec.training_batches(data, options)
  optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, 8e-3, 20, EPOCHS * 15))
  state = create_state(model, optimizer, next(iter(batches)), seed=0)
  step = make_train_step(model, jaxrec.ItemObjective("full_softmax", temperature=0.1), optimizer, seed=0)
  for batch in batches:
    state, _ = step(state, batch)
  quality[name] = evaluate(model, state.params, data, config, split=2)
among, within = ({name: values[key] for name, values in quality.items()} for key in ("HR@10", "within_domain/HR@10"))

# %%
figure, axes = plt.subplots(figsize=(10, 4.6), layout="constrained")
place = np.arange(len(models))
for offset, values, colour, name in (
  (-0.2, among, "tab:orange", "among all items"), (0.2, within, "tab:blue", "among items of the target domain")
):  # fmt: skip
  axes.bar_label(axes.barh(place + offset, [*values.values()], 0.38, color=colour, label=name), fmt="%.2f", padding=4)
axes.set(title="Next event of the target domain", xlabel="HR@10", xlim=(0, 1.02), yticks=place, yticklabels=[*models])
axes.invert_yaxis()
figure.legend(loc="outside lower center", ncols=2);

# %% [markdown]
# Attention inside the domain loses what the informative domain says; states, which a token reads with the domain of the
# target in mind, bring it back. TAPE brings the domain of the target where there are no states. With both, attention
# inside domains is as good as attention among all events that is given the target domain.

# %% [markdown]
# ## What it costs
#
# Left: how many pairs of query and key a layer reads, counted. Right: the time of one forward pass of one layer on
# this machine, with eight domains.

# %%
lengths = 2 ** np.arange(7, 15)
pairs = {"all events": lengths * (lengths + 1) / 2}
for domains in (2, 8, 32):
  each = lengths / domains
  pairs[f"own domain, {domains} domains"] = domains * each * (each + 1) / 2
states_read = lengths * 31.0  # One state of each of 31 other domains.


def seconds(run, params, batch, repetitions=4):
  """The shortest time of a forward pass."""
  times = []
  for _ in range(repetitions + 1):
    start = time.perf_counter()
    jax.block_until_ready(run(params, batch))
    times.append(time.perf_counter() - start)
  return min(times[1:])


measured_lengths = (256, 1024, 4096)
long = dict(sizes, max_positions=4096, attention_length=4096, num_domains=8)
built = {
  "all events": jaxrec.HSTU(**long),
  "own domain": jaxrec.MultiDomainHSTU(**long, tape=False, states="none"),
  "own domain, TAPE and states": jaxrec.MultiDomainHSTU(**long),
}
item, row_domain = (jnp.asarray(rng.integers(1, high, (1, 4096)), jnp.int32) for high in (50, 9))
long_row = jaxrec.next_item_batch(item, row_domain, jnp.arange(4096, dtype=jnp.int32)[None] * 3600)
cost = {}
for name, model in built.items():
  params, run = jax.jit(model.init)(jax.random.key(0), row), jax.jit(model.apply)
  cost[name] = [seconds(run, params, jax.tree.map(lambda x, n=n: x[:, :n], long_row)) for n in measured_lengths]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
for (name, values), colour in zip(pairs.items(), ("0.4", "tab:blue", "tab:cyan", "tab:green"), strict=True):
  left.plot(lengths, values, marker="o", color=colour, label=name)
left.plot(lengths, states_read, color="tab:red", linestyle="--", label="states of 31 other domains")
left.set(title="Work of attention", xscale="log", yscale="log", xlabel="events in a history", ylabel="pairs of a layer")
left.legend(fontsize=11)
for (name, values), colour in zip(cost.items(), ("0.4", "tab:blue", "tab:green"), strict=True):
  right.plot(measured_lengths, np.array(values) * 1e3, marker="o", color=colour, label=name)
right.set(title="Time with 8 domains", xscale="log", yscale="log", xlabel="events in a history", ylabel="ms, forward")
right.set(xticks=measured_lengths, xticklabels=measured_lengths, yticks=(1, 10, 100), yticklabels=(1, 10, 100))
right.minorticks_off()
right.legend(fontsize=11);

# %%
assert np.array_equal(reads[0], earlier) and np.array_equal(reads[1], same)
assert np.array_equal(reads[2], same | last_of_others) and reads[3].sum() > reads[2].sum()
changes = np.asarray(row.target_domain[0] != row.domain_id[0]) & np.asarray(row.target_domain[0] != 0)
assert np.array_equal(size > 0, changes)
assert within["own domain, TAPE and states"] > within["own domain, TAPE"] + 0.1
assert within["own domain, states"] > within["own domain"] + 0.1
assert among["own domain, TAPE"] > among["own domain"] + 0.1
assert among["own domain, TAPE and states"] > among["all events"] + 0.05
assert among["own domain, TAPE and states"] > among["all events, given the target domain"] - 0.05
assert np.allclose(pairs["all events"][-1] / pairs["own domain, 8 domains"][-1], 8, rtol=0.01)
assert cost["own domain"][-1] < cost["all events"][-1]
