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
# # Train a recommender, and look inside
#
# Synthetic users read books and watch films. A user's latest genre of books usually determines the next genre of
# films. We train an HSTU (Zhai et al. 2024, arXiv 2402.17152), compare it with popularity, read its recommendations,
# and look at its attention.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxrec
from jaxrec.evaluation import baselines
from jaxrec.evaluation.model import evaluate
from jaxrec.layers.context import causal_context
from jaxrec.layers.hstu import split_uvqk
from jaxrec.serving.recommendation import describe
from jaxrec.train.state import create_state
from jaxrec.train.step import make_train_step
from pallas_kernels import RelativeBias, attention_weights

plt.rcParams.update(
  {"figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
)

# %% [markdown]
# ## Train
#
# A batch is a `SequenceBatch` of `[B, N]` arrays: 16 rows of 128 positions, with several users packed into each row.

# %%
data = jaxrec.synthetic_data(num_users=800, num_items=240)
options = jaxrec.TrainingOptions(max_length=64, row_length=128, rows_per_batch=16, num_epochs=8)
batches = jaxrec.training_batches(data, options)
model = jaxrec.HSTU(num_items=data.num_items, width=50, max_positions=64, attention_length=64)
optimizer = optax.adamw(3e-3)
state = create_state(model, optimizer, next(iter(batches)), seed=0)
train_step = make_train_step(model, jaxrec.ItemObjective("full_softmax"), optimizer, seed=1)
losses = []
for batch in batches:
  state, scalars = train_step(state, batch)
  losses.append(scalars["loss"])

# %%
losses = np.asarray(losses)
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
axes.plot(losses, color="tab:blue", label="softmax over all items")
axes.axhline(np.log(data.num_items), color="0.5", linestyle=":", label="an item at random")
axes.set(title="Training loss", xlabel="step", ylabel="nats an event", ylim=(2, 7))
axes.legend();

# %% [markdown]
# ## Is it any good?
#
# The last event of each user was held out. We rank it among all items that the user has not seen, and compare with
# popularity.

# %%
config = jaxrec.default_config()
config.data.max_length = 64
popularity = baselines.popularity(data, last_split=1)
batches = jaxrec.evaluation_batches(data, split=2, batch_size=256, max_length=64)
scores = {
  "HSTU": evaluate(model, state.params, data, config, split=2),
  "popularity": baselines.evaluate_baseline(popularity, data, batches),
}
for name, values in scores.items():
  by_domain = "  ".join(f"{domain} {values[f'domain/{domain}/HR@10']:.3f}" for domain in data.domain_names)
  print(f"{name:10}  HR@10 {values['HR@10']:.3f}  NDCG@10 {values['NDCG@10']:.3f}   HR@10 in {by_domain}")

# %%
recommender = jaxrec.Recommender(model, state.params, data, config)
for shown in recommender.recommend(users=[1, 2], k=8, hold_out=True):
  print(describe(data, shown, history=8), end="\n\n")

# %% [markdown]
# ## Does it carry taste from books to films?
#
# We recommend films only and look up their genres: how many share the genre of the user's latest book, how many that
# of the latest film?

# %%
def genre(title):
  return title[title.find("(") + 1 : -1]


genres = np.array([genre(title) for title in data.item_titles()])
agreement = {"latest book": [], "latest film": []}
for shown in recommender.recommend(users=range(400), k=10, domain="film", hold_out=True):
  for number, share in enumerate(agreement.values(), start=1):
    latest = shown.history.item_id[shown.history.domain_id == number][-1:]
    share.extend(np.mean([genre(film.title) == genres[item] for film in shown.items]) for item in latest)

shares = {name: np.mean(share) for name, share in agreement.items()} | {"chance": 1 / 12}
figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
axes.barh([*shares], [*shares.values()], color=["tab:blue", "tab:orange", "0.7"])
axes.bar_label(axes.containers[0], fmt="%.2f", padding=4)
axes.invert_yaxis()
axes.set(title="Genre of the recommended films", xlabel="share that has the genre of ...", xlim=(0, 1));

# %% [markdown]
# ## What it attends to
#
# The model never forms the attention matrix. For a picture we compute it for one user from the queries and keys of a
# layer. Weights are SiLU of the scores: they need not be positive, and need not sum to one.

# %%
user = jaxrec.evaluation_batches(data, split=2, batch_size=1, max_length=64, users=[1])[0]
variables = {"params": state.params}
_, kept = model.apply(
  variables, user.batch, capture_intermediates=lambda module, _: module.name == "uvqk", mutable="intermediates"
)


def weights_of(name: str):
  """The attention matrix of a layer, `[N, S]`."""
  projected = jax.nn.silu(kept["intermediates"][name]["uvqk"]["__call__"][0])  # [1, N, H * (2E + 2D)]
  u, v, q, k = split_uvqk(projected, model.num_heads, model.head_width, model.value_width)
  context = causal_context(user.batch)
  bias = RelativeBias(
    time_table=state.params[name]["time_table"], query_time=context.query_time, key_time=context.key_time,
    position_table=state.params[name]["position_table"], query_position=context.query_position,
    key_position=context.key_position,
  )  # fmt: skip
  return attention_weights(q, k, context.mask, bias)[0, 0]  # [N, S]


# %%
length = int((user.batch.sequence_id > 0).sum())
shown = slice(max(0, length - 30), length)  # the 30 latest events
domains = user.batch.domain_id[0, shown]
matrices = [np.asarray(weights_of(name))[shown, shown] for name in ("layers_0", "layers_1")]
figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
for number, (axis, weights) in enumerate(zip(axes, matrices, strict=True), start=1):
  largest = np.abs(weights).max()
  image = axis.imshow(weights, cmap="RdBu_r", vmin=-largest, vmax=largest)
  for domain, name, colour in ((1, "book", "tab:blue"), (2, "film", "tab:orange")):
    (events,) = np.nonzero(domains == domain)
    axis.scatter(events, np.full(len(events), len(domains)), c=colour, s=30, clip_on=False, label=name)
  axis.set(title=f"Layer {number}", xlabel="event that is read", ylabel="event at which we ask")
  figure.colorbar(image, ax=axis, label="weight, before it is divided by N", shrink=0.85)
axes[1].legend(loc="upper right", title="event");

# %%
assert losses[-20:].mean() < losses[:5].mean() - 1 and losses[-20:].mean() < np.log(data.num_items) - 1
assert scores["HSTU"]["HR@10"] > 3 * scores["popularity"]["HR@10"]
assert shares["latest book"] > 3 * shares["chance"] and shares["latest book"] > shares["latest film"]
assert all(np.triu(weights, 1).max() == 0 for weights in matrices)  # No event reads a later one.
