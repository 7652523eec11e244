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
# # Reuse: a layer, a multi-objective step and a table in your own code
#
# You have a training program and want one piece of jaxrec in it: an HSTU layer, MGDA, or an embedding table that lives
# outside the parameters. We put all three into one small program and write its model four times, in Flax Linen, Flax
# NNX, plain JAX and Equinox. From the same initial values the four must learn the same thing, number for number.

# %%
import importlib.util

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

import jaxrec
from jaxrec.embedding import RowAdamW, Table, Tables
from jaxrec.layers import HSTULayer
from jaxrec.layers.context import AttentionContext
from jaxrec.layers.hstu import split_uvqk
from jaxrec.layers.norm import layer_norm
from jaxrec.multi_objective import mgda, multi_objective, task_gradients
from pallas_kernels import RelativeBias, segment_attention

plt.rcParams.update({
  "figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
})  # fmt: skip

# %% [markdown]
# ## The problem
#
# Synthetic users read books and watch films. At every event we predict the next item and, as a second objective, its
# genre. All that the pieces need are integer arrays `[B, N]`: `sequence_id` is 1, 2, ... for the users packed into a
# row and 0 on padding.

# %%
data = jaxrec.synthetic_data(num_users=400, num_items=240)
options = jaxrec.TrainingOptions(max_length=64, row_length=128, rows_per_batch=8, num_epochs=3)
batches = list(jaxrec.training_batches(data, options))
names = [title[title.find("(") + 1 : -1] for title in data.item_titles()]  # "book 16 (mystery)"; "" for padding
genre_of = np.unique(names, return_inverse=True)[1]  # [V + 1]
GENRES, WIDTH, LENGTH = int(genre_of.max()) + 1, 32, 64
print(f"{len(batches)} batches of {batches[0].item_id.shape}, {data.num_items} items, {GENRES - 1} genres")

# %% [markdown]
# ## What the four programs share
#
# - **A table** of 100,000 rows outside the parameters. A step fetches the rows of its ids, differentiates with respect
#   to them and updates only them. Our data has 240 items, so nearly all rows must stay as they were.
# - **MGDA**, used only to combine two gradients (`optax.identity()` inside): the combined gradient of the parameters
#   then goes to Adam, that of the rows to the table.
#
# `model(params, x, context)` returns a query vector and genre scores for each position. It is the only thing that
# changes from framework to framework.

# %%
tables = Tables({"item": Table(100_000, WIDTH, optimizer=RowAdamW(1e-2))})
combine = multi_objective(mgda("l2", rescale=True), optax.identity())
optimizer = optax.adam(3e-3)
print(tables.describe())


def losses_of(queries, scores, vectors, batch):
  """The two losses: softmax over all items, softmax over genres."""
  weight = batch.target_weight / batch.target_weight.sum()
  items = queries @ vectors.T  # [B, N, V]
  item = optax.softmax_cross_entropy_with_integer_labels(items, jnp.maximum(batch.target_item - 1, 0))
  genre = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.asarray(genre_of)[batch.target_item])
  return lambda: (item * weight).sum(), lambda: (genre * weight).sum()


def make_step(model):
  @jax.jit
  def step(state, batch):
    params, moments, table, combination = state
    catalogue = jnp.arange(1, data.num_items + 1)
    rows, plan = tables.lookup(table, {"item": {"history": batch.item_id, "catalogue": catalogue}})
    context = AttentionContext.causal(batch.sequence_id, batch.timestamp)

    def trunk(trained):
      vectors = tables.vectors(trained["rows"], plan)["item"]
      queries, scores = model(trained["params"], vectors["history"], context)
      return queries, scores, vectors["catalogue"]

    heads = [lambda z, _, k=k: losses_of(*z, batch)[k]() for k in range(2)]
    losses, _, gradients = task_gradients(trunk, heads, {"params": params, "rows": rows})
    gradient, combination = combine.update(gradients, combination, losses=losses)
    updates, moments = optimizer.update(gradient["params"], moments, params)
    table = tables.update(table, plan, gradient["rows"])
    state = optax.apply_updates(params, updates), moments, table, combination
    return state, {"loss": losses, "cosine": combination.cosines[0, 1], "weight": combination.weights}

  return step


def train(model, params):
  """Trains from `params` and returns the curves and the final table."""
  step = make_step(model)
  state = params, optimizer.init(params), tables.init(jax.random.key(1)), combine.init(params)
  curves = []
  for batch in batches:
    state, numbers = step(state, batch)
    curves.append(numbers)
  return jax.tree.map(lambda *x: np.stack(x), *curves), state[2]


# %% [markdown]
# ## Flax Linen
#
# `HSTULayer` is a Linen module like any other: make it a submodule.

# %%
SIZES = {"num_heads": 2, "head_width": 16, "value_width": 16, "attention_length": LENGTH}


class LinenModel(nn.Module):
  @nn.compact
  def __call__(self, x, context):
    y = layer_norm(HSTULayer(**SIZES, name="hstu")(x, context))
    return y, nn.Dense(GENRES, name="genre")(y)


example = jnp.zeros((1, 4, WIDTH)), AttentionContext.causal(jnp.ones((1, 4), int))
linen = LinenModel()
start = linen.init(jax.random.key(0), *example)["params"]
print(jax.tree.map(jnp.shape, start))
results = {"Flax Linen": train(lambda params, x, context: linen.apply({"params": params}, x, context), start)}


# %% [markdown]
# ## Flax NNX
#
# The bridge of Flax makes the Linen layer an NNX module. `nnx.update` loads values into it, here those of Linen; in
# practice those of a trained model.


# %%
class NNXModel(nnx.Module):
  def __init__(self, rngs):
    self.hstu = nnx.bridge.ToNNX(HSTULayer(**SIZES), rngs=rngs).lazy_init(*example)
    self.genre = nnx.Linear(WIDTH, GENRES, rngs=rngs)

  def __call__(self, x, context):
    y = layer_norm(self.hstu(x, context))
    return y, self.genre(y)


module = NNXModel(nnx.Rngs(5))
graph, values, others = nnx.split(module, nnx.Param, ...)
nnx.replace_by_pure_dict(values, start)
results["Flax NNX"] = train(lambda values, x, context: nnx.merge(graph, values, others, copy=True)(x, context), values)

# %% [markdown]
# ## Plain JAX
#
# No modules: the parts of the layer are functions of arrays. These lines are equations 1 to 3 of HSTU (Zhai et al.
# 2024, arXiv 2402.17152); `segment_attention` never forms the `[N, N]` matrix.


# %%
def hstu(params, x, context):
  projected = jax.nn.silu(layer_norm(x) @ params["uvqk"]["kernel"])
  u, v, q, k = split_uvqk(projected, num_heads=2, head_width=16, value_width=16)
  bias = RelativeBias(
    time_table=params["time_table"], query_time=context.query_time, key_time=context.key_time,
    position_table=params["position_table"], query_position=context.query_position, key_position=context.key_position,
  )  # fmt: skip
  attended = segment_attention(q, k, v, context.mask, activation="silu", bias=bias, normalizer=LENGTH)
  gated = u * layer_norm(attended.reshape(u.shape))
  return x + gated @ params["output"]["kernel"] + params["output"]["bias"]


def plain(params, x, context):
  y = layer_norm(hstu(params["hstu"], x, context))
  return y, y @ params["genre"]["kernel"] + params["genre"]["bias"]


results["plain JAX"] = train(plain, start)

# %% [markdown]
# ## Equinox
#
# The parameters of a Linen layer are a pytree, so they can be a field of an Equinox module. Without Equinox (`pip
# install equinox`) this cell is skipped.

# %%
if importlib.util.find_spec("equinox"):
  import equinox as eqx

  class EquinoxModel(eqx.Module):
    hstu: dict
    genre: eqx.nn.Linear

    def __call__(self, x, context):
      y = layer_norm(HSTULayer(**SIZES).apply({"params": self.hstu}, x, context))
      return y, jax.vmap(jax.vmap(self.genre))(y)

  model = EquinoxModel(start["hstu"], eqx.nn.Linear(WIDTH, GENRES, key=jax.random.key(5)))

  model = eqx.tree_at(
    lambda model: (model.genre.weight, model.genre.bias), model, (start["genre"]["kernel"].T, start["genre"]["bias"])
  )
  params, rest = eqx.partition(model, eqx.is_inexact_array)
  results["Equinox"] = train(lambda params, x, context: eqx.combine(params, rest)(x, context), params)
else:
  print("Equinox is not installed: three frameworks are compared.")

# %% [markdown]
# ## The same numbers
#
# Each framework is drawn over the ones before, in thinner lines: one visible curve per objective means that they agree.

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
for number, (name, (curves, _)) in enumerate(results.items()):
  style = {"color": f"C{number}", "linewidth": 9 - 2.3 * number}
  axes[0].plot(curves["loss"][:, 0], label=name, **style)
  axes[0].plot(curves["loss"][:, 1], **style)
curves = results["Flax Linen"][0]
for row, text in zip(curves["loss"][len(batches) // 3], ("next item", "its genre"), strict=True):
  axes[0].annotate(text, (len(batches) // 3, row), (0, 12), textcoords="offset points", fontsize=12)
axes[0].set(title="Two losses in each framework", xlabel="step", ylabel="cross entropy (nats)", ylim=(0, None))
axes[0].legend(loc="center", bbox_to_anchor=(0.62, 0.52), ncols=2)
for k, text in enumerate(("next item", "its genre")):
  axes[1].plot(curves["weight"][:, k], color=("C0", "C1")[k], label=f"MGDA's weight of: {text}")
axes[1].plot(curves["cosine"], color="0.4", linestyle="--", label="cosine of the two gradients")
axes[1].set(title="What MGDA did (Flax Linen)", xlabel="step", ylabel="weight, cosine")
axes[1].legend();

# %%
reference, first = results["Flax Linen"][0]["loss"], tables.init(jax.random.key(1))
for name, (curves, table) in results.items():
  difference = np.abs(curves["loss"] - reference).max()
  before, after = (np.asarray(tables.to_logical(state)["tables"]["item"]["rows"]) for state in (first, table))
  changed = np.flatnonzero((before != after).any(axis=1))
  print(
    f"{name:11} largest difference of a loss {difference:.1e}; rows that changed: {changed.min()} to {changed.max()}"
  )
  assert difference < 1e-4
  assert changed.min() == 1 and changed.max() == data.num_items  # and none of the other 99,760
assert (reference[-10:].mean(axis=0) < reference[:3].mean(axis=0) - 0.5).all()  # both objectives are learned
