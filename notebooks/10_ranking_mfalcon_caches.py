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
# # Ranking with actions, M-FALCON and caches
#
# A *ranking* model predicts what a user will do with an item: like it, watch it for a minute. It reads the history with
# the actions in it (generative ranking, Zhai et al. 2024, arXiv 2402.17152, section 2.2). Three questions:
#
# 1. Are its probabilities right? On generated events we know the true ones.
# 2. What does it cost to score hundreds of candidates of one user? M-FALCON encodes the history once.
# 3. What does a new event of a returning user cost? With kept keys and values, one event instead of the whole history.

# %%
import contextlib
import io
import tempfile
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxrec
from jaxrec import parallel
from jaxrec.batches import CANDIDATE, EVENT, ActionType, RankingBatch
from jaxrec.cli.ranking_runs import ranker_of
from jaxrec.data.generators.planted_actions import planted_action_truth
from jaxrec.models.ranking import RankingModel, interval_mask
from jaxrec.serving.incremental import IncrementalModel
from jaxrec.serving.mfalcon import MFalcon
from jaxrec.train import ranking_task
from jaxrec.train.loop import run
from jaxrec.train.runs import load_run

plt.rcParams.update({
  "figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
})  # fmt: skip

# %% [markdown]
# ## 1. Are the probabilities right?
#
# In `planted_actions` a user likes an item with a probability that depends on the item and on which items of its genre
# the user liked lately. We train a model that reads the history, and compare it with how often each item was liked.

# %%
config = ranking_task.default_config()
config.data.source = "planted_actions"
config.data.options = {"num_users": 700, "mean_events": 50.0, "strength": 3.0}
config.data.max_length = 80
config.data.heads = ("like", "seconds")
config.model = {
  "name": "ranking", "width": 32, "num_layers": 2, "num_heads": 2, "head_width": 16, "value_width": 16,
  "head_hidden": 32,
}  # fmt: skip
config.optimizer.learning_rate = 5e-3
config.train.batch_size, config.train.num_epochs, config.train.evaluate_every_epochs = 16, 8, 4
workdir = tempfile.mkdtemp()
with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
  run(config, workdir)

# %%
loaded = load_run(workdir)
data = loaded.task.data
split, liked = np.asarray(data.split), np.asarray(data.actions["like"])
truth = planted_action_truth(data).like[split > 0]  # of the held-out events: the last two of each user
shown = np.bincount(data.item_id[split == 0], minlength=data.num_items + 1)
rate = (np.bincount(data.item_id[split == 0], liked[split == 0], data.num_items + 1) + 1) / (shown + 2)
probability = np.zeros(len(split))
for held_out in (1, 2):
  logits, _, users = loaded.task.predictions(loaded.params, held_out, parallel.make_mesh())
  probability[split == held_out] = 1 / (1 + np.exp(-logits["like"][np.argsort(users, kind="stable")]))
predicted = {"with history": probability[split > 0], "how often liked": rate[data.item_id[split > 0]]}


def expected_log_loss(probability):
  return -(truth * np.log(probability) + (1 - truth) * np.log(1 - probability)).mean()


floor = expected_log_loss(truth)
losses = {name: expected_log_loss(p) for name, p in predicted.items()}
print(
  f"expected log loss: floor (the truth) {floor:.3f}",
  *(f"{name} {loss:.3f}" for name, loss in losses.items()),
  sep="; ",
)

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained", sharey=True)
for axis, (name, probability) in zip(axes, predicted.items(), strict=True):
  axis.plot([0, 1], [0, 1], color="0.3", linestyle="--", label="exactly right")
  axis.scatter(truth, probability, s=10, alpha=0.5, color="tab:blue", label="a held-out event")
  axis.set(title=f"{name}: {losses[name] - floor:.3f} above the floor", xlabel="true probability of a like")
axes[0].set(ylabel="predicted probability of a like", xlim=(0, 1), ylim=(0, 1))
axes[0].legend(loc="upper left");

# %% [markdown]
# ### A stranger
#
# The model read events, not users, so it predicts for anyone with a history. Here somebody who is not in the data is
# shown ten items of the first genre and likes all of them, or none. (The truth after ten likes, at an item of average
# quality, is `sigmoid(3 tanh(mood / 2))`; see `planted_actions`.)

# %%
ranker = ranker_of(loaded)
first = data.items["raw_id"].to_numpy()[data.item_domain()[1:] == 1]  # domains count from 1
START = 1_700_000_000


def likes_by_genre(liked):
  """The mean predicted probability of a like in each genre after ten events of the first one."""
  did = {"like": liked, "reaction": 1 if liked else 2, "seconds": 50.0 if liked else 10.0}
  history = ranker.histories([[(first[i], START + 60 * i, did) for i in range(10)]])
  found = ranker.rank_history(history, weights={"like": 1.0}, k=data.num_items, exclude_seen=False)
  return [np.mean([item.actions["like"] for item in found if item.domain == genre]) for genre in data.domain_names]


after = {"likes all ten": likes_by_genre(1), "likes none": likes_by_genre(0)}

# %%
figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
for shift, (name, values) in zip((-0.2, 0.2), after.items(), strict=True):
  axis.bar(np.arange(len(values)) + shift, values, 0.38, label=name)
axis.set_xticks(range(len(values)), data.domain_names)
axis.set(title="After ten items of the first genre", ylabel="probability of a like", ylim=(0, 1))
axis.legend();

# %% [markdown]
# ## 2. M-FALCON: many candidates, one encoding
#
# A candidate reads the history and itself, never another candidate. So hundreds of them can stand behind one history in
# the same row, and each prediction is the one it would get alone. Below, the mask of 10 events and 6 candidates.

# %%
like = ActionType("like", "binary")
HISTORY, CANDIDATES = 1024, 256


def tokens(item, liked, candidates):
  """One row: the events of a history, then candidates that read it."""
  count, more = len(item), len(candidates)
  place = np.concatenate([np.arange(count), np.full(more, count)])[None]
  none = np.zeros_like(place)
  return RankingBatch(
    kind=np.where(np.arange(count + more) < count, EVENT, CANDIDATE)[None], sequence_id=none + 1, position=place,
    item_id=np.concatenate([item, candidates]).astype(int)[None], features={}, context_id=none, timestamp=60 * place,
    actions={"like": np.concatenate([liked, np.zeros(more, int)])[None]}, start=none, end=place,
    weight=none.astype(np.float32), user_id=none,
  )  # fmt: skip


small = tokens(np.arange(1, 11), np.zeros(10, int), np.arange(11, 17))
mask = interval_mask(small.start, small.end, small.kind != 0).to_dense(16)[0]
figure, axis = plt.subplots(figsize=(5, 4.4), layout="constrained")
axis.pcolormesh(np.asarray(mask), cmap="Blues", vmin=0, vmax=1.4, edgecolors="white", linewidth=1.5)
axis.axhline(10, color="tab:red", linewidth=2)
axis.axvline(10, color="tab:red", linewidth=2)
box = {"facecolor": "white", "edgecolor": "none", "pad": 3}
axis.text(5, 13, "candidates read the history", ha="center", va="center", fontsize=11, bbox=box)
axis.text(3, 8, "history", ha="center", va="center", fontsize=11, bbox=box)
axis.set(title="Who reads whom (blue: reads)", xlabel="token that is read", ylabel="token that reads", aspect="equal")
axis.invert_yaxis();

# %% [markdown]
# A history of 1,024 events and 256 candidates, scored in three ways: history and one candidate anew for each; history
# and 64 candidates anew; `MFalcon`, which encodes the history once and scores 64 at a time against its keys and values.

# %%
rng = np.random.default_rng(0)
model = RankingModel(
  num_items=5000, actions=(like,), heads=(like,), width=64, max_positions=HISTORY + 1, num_layers=2, num_heads=2,
  head_width=32, value_width=32, attention_length=HISTORY + 1,
)  # fmt: skip
watched, likes = rng.integers(1, 5001, HISTORY), rng.integers(0, 2, HISTORY)
candidates = rng.permutation(5000)[:CANDIDATES] + 1
params = jax.jit(model.init)(jax.random.key(0), tokens(watched[:4], likes[:4], []))["params"]
params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), params)  # as if trained
whole = jax.jit(lambda batch: model.apply({"params": params}, batch)["like"][0, HISTORY:])
scorer = MFalcon(model, params, capacity=HISTORY, microbatch=64)
past = tokens(watched, likes, [])


def anew(size, count):
  """Scores of the first `count` candidates, history and `size` candidates at a time."""
  parts = [whole(tokens(watched, likes, candidates[k : k + size])) for k in range(0, count, size)]
  return np.concatenate(jax.device_get(parts))


def mfalcon():
  return scorer.score(scorer.encode(past), candidates[None], np.array([60 * HISTORY]))["like"][0]


def seconds(function, repetitions=3):
  """The shortest of a few runs, after one that compiles, and the result."""
  result, times = function(), []
  for _ in range(repetitions):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return min(times), result


one_time, one = seconds(lambda: anew(1, 8))
some_time, some = seconds(lambda: anew(64, CANDIDATES))
cached_time, cached = seconds(mfalcon)
times = {
  "one candidate\nat a time": one_time * CANDIDATES / 8,
  "64 at a time": some_time,
  "MFalcon,\n64 at a time": cached_time,
}

# %%
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
bars = axis.barh(list(times), list(times.values()), color=["0.6", "tab:orange", "tab:blue"])
axis.bar_label(bars, [f" {1000 * value:,.0f} ms" for value in times.values()])
axis.invert_yaxis()
axis.set(title=f"{CANDIDATES} candidates after {HISTORY:,} events", xlabel="seconds (logarithmic)", xscale="log")
axis.margins(x=0.15)
print(f"largest difference of a log-odds: {max(np.abs(cached - some).max(), np.abs(cached[:8] - one).max()):.1e}")

# %% [markdown]
# ## 3. A returning user costs one event
#
# Models that recommend the next item keep keys and values too: `IncrementalModel.observe` adds an event, `query`
# returns the same vector as the whole history would. In front of a server that is `with_states(recommender,
# capacity_bytes)`.

# %%
CHUNK, LENGTHS = 256, (256, 1024, 2048)
many = LENGTHS[-1] + 1
hstu = jaxrec.HSTU(num_items=5000, width=64, max_positions=many, attention_length=many)
batch = jaxrec.next_item_batch(rng.integers(1, 5001, (1, many)), timestamp=60 * np.arange(many)[None])
hstu_params = jax.jit(hstu.init)(jax.random.key(0), jax.tree.map(lambda x: x[:, :4], batch))["params"]
serving = IncrementalModel(hstu, hstu_params)
apply = jax.jit(lambda batch: hstu.apply({"params": hstu_params}, batch)[0])


def events(start, end):
  return [column[:, start:end] for column in (batch.item_id, batch.domain_id, batch.timestamp)]


def time_of_new_event(state, end):
  """Seconds for the event at index `end`, by the whole history and by the cache, and the difference of the vectors."""
  history = jax.tree.map(lambda x: x[:, : end + 1], batch)
  new = [x[:, 0] for x in events(end, end + 1)]
  ask = batch.domain_id[:, end], batch.target_time[:, end]
  all_time, vectors = seconds(lambda: apply(history).block_until_ready())
  new_time, vector = seconds(lambda: serving.query(serving.observe(state, *new), *ask).block_until_ready())
  return all_time, new_time, np.abs(vectors[-1] - vector[0]).max()


state, measured = serving.start(1, many), []
for start in range(0, LENGTHS[-1], CHUNK):
  state = serving.observe_all(state, *events(start, start + CHUNK))
  if start + CHUNK in LENGTHS:
    measured.append(time_of_new_event(state, start + CHUNK))
measured = np.array(measured)

# %%
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
axis.plot(LENGTHS, 1000 * measured[:, 0], "o-", linewidth=3, label="the whole history again")
axis.plot(LENGTHS, 1000 * measured[:, 1], "o-", linewidth=3, label="one event, rest from the cache")
axis.set(
  title="A new event of a returning user", xlabel="events before", ylabel="milliseconds", xscale="log", ylim=(0, None)
)
axis.set_xticks(LENGTHS, LENGTHS)
axis.minorticks_off()
axis.legend();

# %% [markdown]
# ## What this notebook claims

# %%
above = {name: loss - floor for name, loss in losses.items()}
assert above["with history"] < 0.5 * above["how often liked"]  # most of what can be known is learned
assert np.corrcoef(truth, predicted["with history"])[0, 1] > 0.85
assert after["likes all ten"][0] > after["likes none"][0] + 0.3  # what the stranger liked moves that genre
assert np.abs(cached - some).max() < 1e-3 and np.abs(cached[:8] - one).max() < 1e-3  # the same predictions
assert cached_time < some_time and 5 * cached_time < times["one candidate\nat a time"]
assert measured[:, 2].max() < 1e-3  # the same query vectors
assert measured[-1, 1] < measured[-1, 0] / 2
