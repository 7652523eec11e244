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
# # Embedding tables over eight devices
#
# A catalogue of a hundred million items does not fit one device. `jaxrec.embedding` shards its rows, with their
# optimizer state, over all devices of a mesh, and a step touches only the rows of its batch. We look at it on eight
# simulated devices (one CPU that pretends to be eight): where rows are, what is exchanged, what a device stores, what
# overflows, and that the result is that of a single device. The manual:
# [jaxrec/embedding](../jaxrec/embedding/README.md).

# %%
import functools
import os
import tempfile
import time

import jax

jax.config.update("jax_num_cpu_devices", 8)  # before anything else of JAX; on GPUs and TPUs leave it out

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from jaxrec.embedding import RowAdamW, Table, Tables

plt.rcParams.update({
  "figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
})  # fmt: skip
devices = np.array(jax.devices())
mesh = Mesh(devices, ("data",))
print(f"{len(devices)} devices: {devices[0].platform} {[device.id for device in devices]}")

# %% [markdown]
# ## Where the rows are
#
# Row r is on device r mod 8. Ids are usually sorted by popularity, so each device gets its share of the popular rows;
# blocks of neighbouring rows would give nearly all requests to the first device.

# %%
ROWS, WIDTH, BATCH, LENGTH = 40_000, 16, 64, 20
tables = Tables(
  {"item": Table(ROWS, WIDTH, optimizer=RowAdamW(1e-2), placement="sharded"), "shop": Table(100, WIDTH)}, mesh
)
print(tables.describe())
state = tables.init(jax.random.key(0))
rows = state.stacks["stack0_16"]["rows"]
print("a device holds", rows.addressable_shards[0].data.shape, "of", rows.shape)

rng = np.random.default_rng(0)
popularity = 1 / np.arange(1, ROWS) ** 1.0
popularity /= popularity.sum()


def draw(shape):
  """Ids from 1, the small ones popular (Zipf's law); 0 is padding."""
  return rng.choice(np.arange(1, ROWS), size=shape, p=popularity)


ids = draw((BATCH, LENGTH))
owners = {"row mod 8 (ours)": ids % 8, "blocks of rows": ids * 8 // ROWS}
figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
for number, (name, owner) in enumerate(owners.items()):
  axis.bar(np.arange(8) + 0.4 * number - 0.2, np.bincount(owner.ravel(), minlength=8), width=0.4, label=name)
axis.axhline(ids.size / 8, color="0.3", linestyle="--", label="even")
axis.set(
  title=f"Who has the {ids.size:,} rows that a batch asks for?", xlabel="device", ylabel="requests", xticks=range(8)
)
axis.legend();

# %% [markdown]
# ## One step
#
# `lookup` fetches the distinct rows of the batch; the model sees `vectors`; gradients with respect to the fetched
# `rows` go back to their owners. The same function runs with `mesh=None`, on one device. We train both and compare all
# rows.


# %%
def make_step(tables):
  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, ids):
    rows, plan = tables.lookup(state, {"item": ids})

    def loss(rows):
      vectors = tables.vectors(rows, plan)["item"]
      query, target = vectors["seen"].mean(axis=1), vectors["next"]
      return optax.softmax_cross_entropy_with_integer_labels(query @ target.T * 30, jnp.arange(len(query))).mean()

    value, gradient = jax.value_and_grad(loss)(rows)
    return tables.update(state, plan, gradient), value, plan.counts

  return step


def ids_of_item(tables, state):
  return np.asarray(tables.to_logical(state)["tables"]["item"]["rows"])[:ROWS]


alone = Tables(tables.tables)
batches = 6 * [{"seen": draw((BATCH, LENGTH)), "next": draw(BATCH)} for _ in range(5)]
after, curves = {}, {}
for name, these in {"8 devices": tables, "1 device": alone}.items():
  step, state = make_step(these), these.init(jax.random.key(0))
  before = ids_of_item(these, state)
  curves[name], counts = [], []
  for batch in batches:
    state, value, count = step(state, batch)
    curves[name].append(float(value))
    counts.append(count)
  after[name] = ids_of_item(these, state)
difference = np.abs(after["8 devices"] - after["1 device"]).max()
touched = np.unique(np.concatenate([ids.ravel() for batch in batches for ids in batch.values()]))
changed = np.flatnonzero((after["8 devices"] != before).any(axis=1))
print(f"loss {curves['8 devices'][0]:.3f} to {curves['8 devices'][-1]:.3f}")
print(f"largest difference of a number in the tables of 8 devices and of 1: {difference:.1e}")
print(f"{len(changed):,} of {ROWS:,} rows changed, {len(touched):,} were looked up")

# %% [markdown]
# ## What a device stores, what a step costs
#
# A plan for a table needs no memory: `abstract_state` has shapes and shardings only. With row-wise AdamW and its first
# moment in bfloat16, a parameter in bfloat16 takes 4 bytes. A step costs as much as its batch, not its table: a dense
# optimizer rewrites every row.

# %%
sizes = [10**n for n in range(5, 11)]
compact = {"optimizer": RowAdamW(1e-3, moment_dtype=jnp.bfloat16), "dtype": jnp.bfloat16, "rounding": "stochastic"}
stored = {}
for kind, options in {"float32": {"optimizer": RowAdamW(1e-3)}, "bfloat16": compact}.items():
  stored[kind] = np.array([Table(size, 64, **options).bytes_per_row * size for size in sizes]) / 8


def time_of_step(num_rows):
  """The shortest of a few steps, ours and dense Adam, on one device."""
  these = Tables({"item": Table(num_rows, WIDTH, optimizer=RowAdamW(1e-2), placement="sharded")})
  ours, dense, optimizer = these.init(jax.random.key(0)), jnp.zeros((num_rows, WIDTH)), optax.adam(1e-2)
  moments, step = optimizer.init(dense), make_step(these)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def dense_step(dense, moments, ids):
    gradient = jax.grad(lambda dense: jnp.square(dense[ids["seen"]] - 1).mean())(dense)
    updates, moments = optimizer.update(gradient, moments)
    return optax.apply_updates(dense, updates), moments

  times = []
  for _ in range(15):
    start = time.perf_counter()
    ours = jax.block_until_ready(step(ours, batches[0]))[0]
    middle = time.perf_counter()
    dense, moments = jax.block_until_ready(dense_step(dense, moments, batches[0]))
    times.append((middle - start, time.perf_counter() - middle))
  return np.min(times, axis=0)


timed = [10_000, 100_000, 1_000_000]
times = np.array([time_of_step(num_rows) for num_rows in timed]) * 1000

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
for kind, size in stored.items():
  axes[0].plot(sizes, size / 2**30, "o-", linewidth=3, label=f"{kind} rows")
axes[0].axhline(80, color="0.3", linestyle="--", label="a GPU with 80 GiB")
axes[0].set(
  title="Width 64, optimizer state included, 8 devices",
  xlabel="rows",
  ylabel="GiB on each device",
  xscale="log",
  yscale="log",
)
for k, name in enumerate(("jaxrec.embedding", "dense Adam")):
  axes[1].plot(timed, times[:, k], "o-", linewidth=3, label=name)
axes[1].set(
  title=f"A step of {BATCH} x {LENGTH} ids, one device",
  xlabel="rows of the table",
  ylabel="milliseconds",
  xscale="log",
  yscale="log",
)
for axis in axes:
  axis.legend();

# %% [markdown]
# ## Overflow
#
# Buffers have a fixed size: `capacity` is how many distinct rows a device may ask another for. Too small a capacity is
# counted, never hidden: rows beyond it read zeros. Duplicates cost nothing, so popular ids need less than `ids / 8`.

# %%
capacities = [4, 8, 12, 16, 24, 32]
overflow = []
for capacity in capacities:
  tight = Tables({"item": Table(ROWS, WIDTH, placement="sharded")}, mesh, capacity=capacity)
  plan = jax.jit(lambda state, ids, tight=tight: tight.lookup(state, {"item": ids})[1].counts)
  found = plan(tight.init(jax.random.key(0)), batches[0]["seen"])
  overflow.append((int(found["overflow"]), int(found["rows"])))
overflow = np.array(overflow)
figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
axis.bar(range(len(capacities)), overflow[:, 1], color="tab:blue", label="fetched")
axis.bar(range(len(capacities)), overflow[:, 0], bottom=overflow[:, 1], color="tab:red", label="overflow: zeros")
axis.axhline(BATCH * LENGTH, color="0.3", linestyle="--", label="ids, with duplicates")
axis.set(
  title="What fits into the exchange buffers",
  xlabel="capacity (rows from each other device)",
  ylabel="distinct rows, all devices",
  xticks=range(len(capacities)),
  ylim=(0, 1.4 * BATCH * LENGTH),
)
axis.set_xticklabels(capacities)
axis.legend(loc="upper center", ncols=3, fontsize=11);

# %% [markdown]
# ## Another number of devices
#
# `to_logical` returns rows and optimizer state in the order of ids, for a checkpoint. It goes back onto any mesh; here
# from eight devices to two, with the same next step.

# %%
two = Tables(tables.tables, Mesh(devices[:2], ("data",)))
step, state = make_step(tables), tables.init(jax.random.key(0))
for batch in batches[:3]:
  state = step(state, batch)[0]
with ocp.StandardCheckpointer() as checkpointer:
  path = os.path.join(tempfile.mkdtemp(), "tables")
  checkpointer.save(path, tables.to_logical(state))
  checkpointer.wait_until_finished()
  moved = two.from_logical(checkpointer.restore(path, two.abstract_logical(), strict=False))
on_eight, on_two = step(state, batches[0])[1], make_step(two)(moved, batches[0])[1]
print(f"loss of the next step: on eight devices {on_eight:.6f}, on two {on_two:.6f}")

# %% [markdown]
# ## What this notebook claims

# %%
share = {name: np.bincount(owner.ravel(), minlength=8).max() / owner.size for name, owner in owners.items()}
assert share["row mod 8 (ours)"] < 0.3 and share["blocks of rows"] > 0.5
assert difference < 1e-4 and np.array_equal(changed, touched)  # one device = eight; only looked-up rows change
assert all(int(count["overflow"]) == int(count["out_of_range"]) == 0 for count in counts)
assert curves["8 devices"][-1] < curves["8 devices"][0] - 0.2
assert times[-1, 0] < 3 * times[0, 0] + 5  # a step does not grow with the table (100 times as large)
assert times[-1, 1] > 5 * times[0, 1]  # a dense one does
assert overflow[0, 0] > 100 and overflow[-1, 0] == 0
assert abs(float(on_eight) - float(on_two)) < 1e-4
