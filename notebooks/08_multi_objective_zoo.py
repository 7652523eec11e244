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
# # The multi-objective zoo
#
# A model with several losses has one gradient for each, and they may point in opposite directions. A *weighting* turns
# them into one step. Here are the weightings of `jaxrec.multi_objective` on three problems that fit into a picture:
#
# 1. a landscape with a gorge, in which adding up the losses gets stuck;
# 2. a concave front of best compromises, which no fixed weights can reach;
# 3. two losses in different units.
#
# A point is *Pareto-stationary* if no step lowers all losses at once. The points that no other point beats in all
# losses are the *Pareto front*.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxrec.multi_objective import cagrad, fixed, mgda, multi_objective, pareto, pcgrad, preference_vectors

plt.rcParams.update({
  "figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
})  # fmt: skip


def descend(losses, weighting, starts, optimizer, steps):
  """Follows a weighting from several points: the positions after each step `[points, steps, D]`."""
  transform = multi_objective(weighting, optimizer)

  def step(carry, _):
    x, state = carry
    both = jax.jacrev(losses)(x)  # [2, D]
    updates, state = transform.update(tuple(both), state, x, losses=losses(x))
    x = optax.apply_updates(x, updates)
    return (x, state), x

  def path(start):
    return jax.lax.scan(step, (start, transform.init(start)), length=steps)[1]

  return np.asarray(jax.jit(jax.vmap(path))(starts))


# %% [markdown]
# ## 1. A gorge
#
# The problem of the CAGrad paper (Liu et al. 2021, arXiv 2110.14048, figure 2). Each loss has a deep, narrow gorge with
# steep walls, in which the gradient of one loss is far larger than that of the other and nearly opposed to it. The
# Pareto set is the line at the bottom; the smallest *mean* loss is in its middle.


# %%
def gorges(x):
  a, b = x
  upper, lower = jnp.maximum(jnp.tanh(b / 2), 0), jnp.maximum(jnp.tanh(-b / 2), 0)

  def gorge(y):
    return jnp.log(jnp.maximum(jnp.abs(y), 5e-6)) + 6

  def bowl(centre):
    return ((a - centre) ** 2 + 0.1 * (b + 8) ** 2) / 10 - 20

  first = upper * gorge(0.5 * (-a - 7) - jnp.tanh(-b)) + lower * bowl(7)
  second = upper * gorge(0.5 * (-a + 3) - jnp.tanh(-b) + 2) + lower * bowl(-7)
  return jnp.stack([first, second])


starts = jnp.array([[-8.5, 7.5], [-8.5, 5.0], [9.0, 9.0], [0.0, 8.0], [-4.0, 9.0]])
rules = {"sum of the losses": fixed([1, 1]), "MGDA": mgda(), "PCGrad": pcgrad(), "CAGrad, c = 0.5": cagrad(0.5)}
paths = {name: descend(gorges, rule, starts, optax.adam(2e-3), 100_000) for name, rule in rules.items()}

# %%
grid = np.meshgrid(np.linspace(-11, 11, 161), np.linspace(-11, 11, 161))
line = jnp.linspace(-11, -5, 601)
bottom = float(line[gorges(jnp.stack([0 * line, line])).mean(0).argmin()])
values = jax.vmap(gorges)(jnp.stack([axis.ravel() for axis in grid], axis=1)).reshape(161, 161, 2)
figure, axes = plt.subplots(1, 4, figsize=(15, 4.4), layout="constrained", sharey=True)
for axis, (name, path) in zip(axes, paths.items(), strict=True):
  image = axis.contourf(*grid, values.mean(-1), levels=20, cmap="Greys", alpha=0.6)
  axis.plot([-7, 7], [bottom, bottom], color="tab:green", linewidth=5, label="Pareto set")
  for points in path:
    axis.plot(*points[::50].T, color="tab:blue", linewidth=2)
    axis.plot(*points[-1], "o", color="tab:red", markersize=9)
  axis.plot([], [], "o", color="tab:red", label="end")
  axis.plot(0, bottom, "*", color="gold", markersize=17, markeredgecolor="black", label="smallest mean loss")
  axis.set(title=name, xlabel="first parameter", xlim=(-11, 11), ylim=(-11, 11))
axes[0].set(ylabel="second parameter")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
figure.colorbar(image, ax=axes, label="mean of the two losses");

# %%
ends = {name: path[:, -1] for name, path in paths.items()}
for name, end in ends.items():
  arrived = np.abs(end[:, 1] - bottom) < 0.3
  middle = arrived & (np.abs(end[:, 0]) < 0.5)
  print(f"{name:18} {arrived.sum()} of {len(end)} reach the Pareto set, {middle.sum()} its middle")

# %% [markdown]
# ## 2. A concave front
#
# The problem of the Pareto MTL paper (Lin et al. 2019, arXiv 1912.12854, section 6.1): two bumps in 20 dimensions. The
# best compromises form a *concave* curve in the plane of the losses. A fixed weighted sum ends at one of its two ends,
# whatever the weights. MGDA reaches some point of the curve, depending on where it starts. Pareto MTL takes a
# preference vector, first descends into the sector around it, and then to the front: each vector gives another
# compromise.


# %%
def bumps(x):
  centre = jnp.full(x.shape, x.size**-0.5)
  return 1 - jnp.exp(-jnp.stack([jnp.square(x - centre).sum(), jnp.square(x + centre).sum()]))


starts = jax.random.uniform(jax.random.key(1), (8, 20), minval=-0.35, maxval=0.35)
preferences = preference_vectors(4)
shares = np.linspace(0.1, 0.9, 5)


def one_by_one(rules):
  """Each rule from a start of its own."""
  return [descend(bumps, rule, starts[k : k + 1], optax.sgd(0.1), 1000) for k, rule in enumerate(rules)]


found = {
  "fixed weights": one_by_one(fixed([share, 1 - share]) for share in shares),
  "MGDA": [descend(bumps, mgda(), starts, optax.sgd(0.1), 1000)],
  "Pareto MTL": one_by_one(pareto(preferences, k, "constraints", "none", anchor=None) for k in range(5)),
}
in_losses = jax.vmap(jax.vmap(bumps))
found = {name: np.concatenate([in_losses(path) for path in several]) for name, several in found.items()}

# %%
line = np.linspace(-1, 1, 200)[:, None] * np.full(20, 20**-0.5)
front = jax.vmap(bumps)(line)
figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained", sharey=True)
for axis, (name, losses) in zip(axes, found.items(), strict=True):
  axis.plot(*front.T, color="tab:green", linewidth=4, label="Pareto front", zorder=0)
  for path in losses:
    axis.plot(*path.T, color="tab:blue", linewidth=1)
    axis.plot(*path[-1], "o", color="tab:red", markersize=9)
  axis.plot([], [], "o", color="tab:red", label="end")
  axis.set(title=name, xlabel="loss 1", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
for vector in preferences:
  axes[2].plot([0, 1.5 * vector[0]], [0, 1.5 * vector[1]], color="0.6", linestyle="--", linewidth=1)
axes[2].plot([], [], color="0.6", linestyle="--", label="preference vectors")
axes[0].set(ylabel="loss 2")
figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=3);

# %% [markdown]
# ## 3. Two losses in different units
#
# Two parabolas whose minima are at +1 and -1; the start is as far from one as from the other. Now the second loss is
# given in other units, 1/100 to 100 times as large. Who wins?


# %%
def parabolas(x, scale):
  to_first, to_second = x - jnp.array([1.0, 0.0]), x - jnp.array([-1.0, 0.0])
  return jnp.stack([jnp.square(to_first).sum(), scale * jnp.square(to_second).sum()]) / 2


rules = {
  "fixed, 1 and 1": fixed([1, 1]),
  "MGDA": mgda(),
  "MGDA, unit gradients": mgda("l2", rescale=True),
  "PCGrad": pcgrad(),
  "CAGrad, c = 0.5": cagrad(0.5),
}
scales = jnp.geomspace(0.01, 100, 9)


def ends(rule):
  """First coordinate of the end, for each scale: 1 is the minimum of loss 1, -1 that of loss 2."""
  transform = multi_objective(rule, optax.identity())

  def from_start(scale):
    def step(carry, _):
      x, state = carry
      both = jax.jacrev(parabolas)(x, scale)  # [2, 2]
      combined, state = transform.update(tuple(both), state, x, losses=parabolas(x, scale))
      return (x - 0.1 / (1 + scale) * combined, state), None  # small enough for the larger of the two

    start = jnp.array([0.0, 1.5])
    return jax.lax.scan(step, (start, transform.init(start)), length=10_000)[0][0]

  return np.asarray(jax.jit(jax.vmap(from_start))(scales))


reached = {name: ends(rule) for name, rule in rules.items()}

# %%
figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
for (name, end), style in zip(reached.items(), ("-", "-", "-", "--", ":"), strict=True):
  axes.plot(scales, end[:, 0], style, marker="o", linewidth=3, label=name)
axes.set(
  title="Who wins if loss 2 is in other units?", xscale="log", xlabel="loss 2 is multiplied by", yticks=[-1, 0, 1]
)
axes.set_yticklabels(["minimum of loss 2", "half way", "minimum of loss 1"])
axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5));

# %% [markdown]
# - **Fixed weights** and **CAGrad** follow the larger loss, **MGDA** on raw gradients the smaller one.
# - **MGDA on unit gradients** (`mgda("l2", rescale=True)`) does not notice the units.
# - **PCGrad** stops as soon as the gradients are opposed, wherever that is.
#
# Which one to take: the manual of [jaxrec/multi_objective](../jaxrec/multi_objective/README.md) has a table of all
# weightings. In a training run it is a setting: `--config.multi_objective.weighting.name=mgda`.

# %% [markdown]
# ## What this notebook claims

# %%
on_set = {name: np.abs(path[:, -1, 1] - bottom) < 0.3 for name, path in paths.items()}
assert not on_set["sum of the losses"].all()  # adding up gets stuck in a gorge
assert all(on_set[name].all() for name in ("MGDA", "CAGrad, c = 0.5"))
assert (np.abs(paths["CAGrad, c = 0.5"][:, -1, 0]) < 0.5).all()  # CAGrad also finds the smallest mean
assert (np.abs(paths["MGDA"][:, -1, 0]) > 2).any()  # MGDA stops where it first meets the set

last = {name: losses[:, -1] for name, losses in found.items()}
assert (last["fixed weights"].min(axis=1) < 0.05).all()  # one loss is minimal, the other as bad as it gets
products = last["Pareto MTL"] @ np.transpose(preferences)  # [point, preference]; the largest is that of its sector
assert (np.diagonal(products) > products.max(axis=1) - 0.02).all()  # each preference has its compromise
distance = np.abs(last["Pareto MTL"][:, None] - np.asarray(front)).max(axis=-1).min(axis=1)
assert (distance < 0.03).all()  # on the front

first = {name: end[:, 0] for name, end in reached.items()}
assert first["fixed, 1 and 1"][0] > 0.9 and first["fixed, 1 and 1"][-1] < -0.9
assert first["CAGrad, c = 0.5"][0] > 0.9 and first["CAGrad, c = 0.5"][-1] < -0.9
assert first["MGDA"][0] < -0.5 and first["MGDA"][-1] > 0.5
assert np.abs(first["MGDA, unit gradients"]).max() < 0.05
