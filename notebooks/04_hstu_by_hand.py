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
# # HSTU by hand, as a module, as a kernel
#
# The layer of Zhai et al. 2024 (arXiv 2402.17152) in fifteen lines of NumPy; the same from the library; what its
# masks cost; and, on data where time decides, what each part of it is worth.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.colors import ListedColormap

import jaxrec
from jaxrec.evaluation.model import evaluate
from jaxrec.layers.context import AttentionContext
from jaxrec.train.state import create_state
from jaxrec.train.step import make_train_step
from pallas_kernels import IntervalMask, RelativeBias, count_live_tiles, segment_attention
from pallas_kernels.schedule import live_tiles

plt.rcParams.update(
  {"figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
)
DAY = 86_400

# %% [markdown]
# ## By hand
#
# A row of 12 positions that holds two users, of 6 and 4 events, and padding. One head of width 8.
#
# 1. $U, V, Q, K = \mathrm{split}(\mathrm{SiLU}(\mathrm{LN}(X) W_1))$
# 2. $A = \mathrm{SiLU}(Q K^\top + \mathrm{rab}^{p,t}) / N$, zero where a query may not read
# 3. $Y = X + (\mathrm{LN}(A V) \odot U) W_2 + b_2$


# %%
def silu(x):
  return x / (1 + np.exp(-x))


def norm(x):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def hstu_by_hand(x, params, sequence, position, time, length):
  u, v, q, k = np.split(silu(norm(x) @ params["uvqk"]["kernel"]), 4, axis=-1)  # equation 1
  seconds = np.abs(time[:, None] - time[None, :])
  bucket = np.floor(np.log(np.maximum(seconds, 1)) / 0.301).astype(int)
  rab = params["time_table"][bucket] + params["position_table"][position[:, None] - position[None, :] + length - 1]
  may_attend = np.tril(sequence[:, None] == sequence[None, :]) & (sequence[:, None] > 0)
  weights = np.where(may_attend, silu(q @ k.T + rab), 0) / length  # equation 2
  return x + (norm(weights @ v) * u) @ params["output"]["kernel"] + params["output"]["bias"]  # equation 3


# %% [markdown]
# ## As a module
#
# `HSTULayer` is a Flax module. What it needs besides the vectors, an `AttentionContext`, is of size N: no mask and no
# bias of size N x N is ever formed.

# %%
sequence = np.array([1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0], np.int32)
position = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 0], np.int32)
time = np.cumsum(np.random.default_rng(0).integers(1, 2 * DAY, 12)).astype(np.int32)
x = np.random.default_rng(1).normal(size=(12, 8)).astype(np.float32) * (sequence > 0)[:, None]

layer = jaxrec.HSTULayer(num_heads=1, head_width=8, value_width=8, attention_length=12)
context = AttentionContext.causal(sequence[None], time[None], position[None])
y, variables = layer.init_with_output(jax.random.key(0), x[None], context)
params = jax.tree.map(np.asarray, variables["params"])
by_hand = hstu_by_hand(x, params, sequence, position, time, length=12)
difference_of_layers = np.abs(np.asarray(y[0]) - by_hand)[sequence > 0].max()
print(f"largest difference between module and hand: {difference_of_layers:.1e}")

# %% [markdown]
# ## As a kernel
#
# Below the module is `segment_attention`: dense for reference, tiles in XLA loops for CPUs, Pallas kernels for TPUs
# and Hopper GPUs. The TPU kernel runs here too, interpreted.

# %%
N, H, D = 96, 1, 16
q, k, v = jax.random.normal(jax.random.key(2), (3, 1, N, H, D))
packed = jnp.repeat(jnp.array([[1, 2, 3, 0]], jnp.int32), 24, axis=1)
clock = jnp.cumsum(jax.random.randint(jax.random.key(3), (1, N), 0, DAY), axis=1)
places = jnp.arange(N, dtype=jnp.int32)[None]
bias = RelativeBias(
  time_table=jax.random.normal(jax.random.key(4), (129,)), query_time=clock, key_time=clock,
  position_table=jax.random.normal(jax.random.key(5), (2 * N - 1,)), query_position=places, key_position=places,
)  # fmt: skip
mask = IntervalMask.causal(packed)
outputs = {
  name: segment_attention(q, k, v, mask, bias=bias, normalizer=N, implementation=name, interpret=name == "tpu")
  for name in ("reference", "xla", "tpu")
}
difference_of_kernels = {
  name: float(jnp.abs(out - outputs["reference"]).max()) for name, out in outputs.items() if name != "reference"
}
print("largest difference from the reference:", {name: f"{x:.1e}" for name, x in difference_of_kernels.items()})

# %% [markdown]
# ## Masks and live tiles
#
# A query reads at most two intervals of keys, so a mask is four integers a query. From them a kernel tells which
# tiles of the attention matrix are empty, and leaves those out: it computes the coloured ones.

# %%
two_users = jnp.array([[1] * 22 + [2] * 18 + [0] * 8], jnp.int32)
by_domain = jnp.array([[1] * 14 + [2] * 8 + [1] * 6 + [2] * 12 + [0] * 8], jnp.int32)
one_row = jnp.array([44], jnp.int32)
masks = {
  "causal, two users packed": IntervalMask.causal(two_users),
  "the latest 8 events": IntervalMask.causal(two_users).limited(8),
  "both directions (BERT4Rec)": IntervalMask.full(two_users),
  "inside each domain (sorted)": IntervalMask.intra_domain(two_users, by_domain),
  "12 candidates after a history": IntervalMask.hstu(one_row, 48, num_targets=jnp.array([12], jnp.int32)),
  "prefix of 4, window of 12": IntervalMask.hstu(one_row, 48, contextual_length=4, max_attention_length=12),
}
tiles = {name: count_live_tiles(shown, 48, 8, 8) for name, shown in masks.items()}
figure, axes = plt.subplots(2, 3, figsize=(11, 7.6), layout="constrained")
for axis, (name, shown) in zip(axes.flat, masks.items(), strict=True):
  live = np.kron(np.asarray(live_tiles(shown, 48, 8, 8)[0]), np.ones((8, 8)))
  image = live + np.asarray(shown.to_dense(48)[0])
  axis.imshow(image, cmap=ListedColormap(["white", "navajowhite", "tab:blue"]), vmin=0, vmax=2, extent=(0, 48, 48, 0))
  axis.set(title=f"{name}\n{tiles[name]} of 36 tiles", xticks=range(0, 49, 8), yticks=range(0, 49, 8))
  axis.tick_params(labelsize=10)
  axis.grid(color="0.6", linewidth=0.6)
  axis.set_axisbelow(False)
for axis in axes[1]:
  axis.set_xlabel("key")
for axis in axes[:, 0]:
  axis.set_ylabel("query")
for colour, label in (("tab:blue", "the query reads the key"), ("navajowhite", "computed, but masked")):
  axes[0, 0].scatter([], [], marker="s", s=120, color=colour, label=label)
figure.legend(loc="outside lower center", ncols=2);

# %% [markdown]
# ## Data where time decides
#
# Each viewer follows four of twelve serials, each at its own time of day, and skips two days in five. So the next event
# continues the serial that was on *24 or 48 hours ago*. The order of the events alone says less, as skipping shifts
# it.

# %%
rng = np.random.default_rng(0)
SERIALS, EPISODES, VIEWERS, DAYS = 12, 16, 700, 12
rows = []
for viewer in range(VIEWERS):
  serials, episodes = rng.choice(SERIALS, 4, replace=False), rng.integers(0, 4, 4)
  first_hour = rng.uniform(0, 6)
  for day in range(DAYS):
    for slot in np.flatnonzero(rng.random(4) < 0.6):
      at = day * DAY + int(3600 * (first_hour + 6 * slot + rng.normal(0, 0.25)))
      rows.append((viewer, 1_700_000_000 + at, 1 + serials[slot] * EPISODES + episodes[slot]))
      episodes[slot] += 1
events = np.array(sorted(rows))
data = jaxrec.PreparedData.from_columns(
  user=events[:, 0], timestamp=events[:, 1], item_id=events[:, 2], num_items=SERIALS * EPISODES
)
print(f"{data.num_users:,} users, {data.num_items} items, {data.num_events:,} events")

# %% [markdown]
# ## Ablations
#
# All models have width 32, two layers and two heads, and the same training data; BERT4Rec, which learns from masked
# events only, gets twice the epochs. HR@1: is the very first item of the list the next episode of the right serial?

# %%
sizes = dict(num_items=data.num_items, width=32, max_positions=64, num_layers=2, num_heads=2)
hstu = dict(head_width=16, value_width=16, attention_length=64)
models = {
  "HSTU": jaxrec.HSTU(**sizes, **hstu),
  "softmax in place of SiLU": jaxrec.HSTU(**sizes, **hstu, activation="softmax"),
  "without position bias": jaxrec.HSTU(**sizes, **hstu, position_bias=False),
  "without time bias": jaxrec.HSTU(**sizes, **hstu, time_bias=False),
  "SASRec": jaxrec.SASRec(**sizes, hidden=64),
  "BERT4Rec": jaxrec.BERT4Rec(**sizes, hidden=64),
}
EPOCHS = 11


def train(model, task="next_item", epochs=EPOCHS):
  """The parameters after some epochs."""
  how = {"mask_probability": 0.3, "mask_last_probability": 0.2} if task == "masked_item" else {}
  options = jaxrec.TrainingOptions(
    max_length=64, row_length=128, rows_per_batch=8, task=task, num_epochs=epochs, last_split=1, **how
  )
  batches = jaxrec.training_batches(data, options)
  optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, 6e-3, 30, epochs * 22))
  state = create_state(model, optimizer, next(iter(batches)), seed=0)
  step = make_train_step(model, jaxrec.ItemObjective("full_softmax"), optimizer, seed=0)
  for batch in batches:
    state, _ = step(state, batch)
  return state.params


config = jaxrec.default_config()
config.data.max_length = 64
trained, hit_rate = {}, {}
for name, model in models.items():
  config.data.task = "masked_item" if name == "BERT4Rec" else "next_item"
  trained[name] = train(model, config.data.task, 2 * EPOCHS if name == "BERT4Rec" else EPOCHS)
  hit_rate[name] = evaluate(model, trained[name], data, config, split=2)["HR@1"]

# %%
figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
colours = ["tab:blue"] * 3 + ["tab:orange"] + ["0.6"] * 2
axes.barh([*hit_rate], [*hit_rate.values()], color=colours)
axes.invert_yaxis()
axes.bar_label(axes.containers[0], fmt="%.2f", padding=4)
axes.axvline(0.25, color="black", linestyle=":", linewidth=1)
axes.set(title="Blue reads times, the others do not", xlim=(0, 1.05))
axes.set(xlabel="HR@1 of the last event (dotted: one of the four serials at random)");

# %% [markdown]
# ## What the bias tables learned
#
# The time table has an entry for each bucket of gaps between a key and the *target*. Entries that no pair of events
# of this data reads stay near their start, and are not drawn. The entry of one day stands out. It may well be negative:
# SiLU weights have either sign, and the values that they multiply are learned with them.

# %%
times = np.split(data.timestamp, data.offsets[1:-1])[:200]
gaps = [np.abs(t[:, None] - t[None, :])[np.tril_indices(len(t), -1)] for t in times]
reads = np.bincount((np.log(np.maximum(np.concatenate(gaps), 1)) / 0.301).astype(int), minlength=129)
known = np.flatnonzero(reads > 200)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
tables = [np.asarray(trained["HSTU"][f"layers_{i}"]["time_table"]) for i in range(2)]
for index, values in enumerate(tables):
  left.plot(known, values[known], marker="o", label=f"layer {index + 1}")
  places = np.asarray(trained["HSTU"][f"layers_{index}"]["position_table"])[63 : 63 + 24]
  right.plot(range(24), places, marker="o", label=f"layer {index + 1}")
hours = np.array([6, 12, 18, 24, 48, 96, 192])
left.set(title="Time bias", xticks=np.log(3600 * hours) / 0.301 - 0.5, xticklabels=hours)
left.set(xlabel="hours from the key to the target (logarithmic)", ylabel="added to the attention score")
right.set(title="Position bias", xlabel="events from the key to the query")
right.legend();

# %%
one_day = int(np.log(DAY) / 0.301)
strongest = known[np.argmax(np.max([np.abs(values[known]) for values in tables], axis=0))]
best_without_times = max(hit_rate[name] for name in ("without time bias", "SASRec", "BERT4Rec"))
print(f"HR@1 {hit_rate['HSTU']:.2f}, without times {best_without_times:.2f}; bucket {strongest}, a day is {one_day}")
assert difference_of_layers < 1e-5 and max(difference_of_kernels.values()) < 1e-5
assert tiles["the latest 8 events"] < tiles["causal, two users packed"] < tiles["both directions (BERT4Rec)"] < 36
assert hit_rate["HSTU"] > best_without_times + 0.15 and hit_rate["softmax in place of SiLU"] > best_without_times + 0.15
assert hit_rate["without position bias"] > best_without_times + 0.15
assert strongest == one_day
