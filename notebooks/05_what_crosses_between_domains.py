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
# # What crosses between domains
#
# Before training a method against harmful transfer between domains, ask whether there is any. Then look where
# attention goes, which users it helps, and what a second objective (AutoCDSR, arXiv 2505.21811) does to it. Two data
# sets whose truth is known: in one, another domain tells what comes next; in the other, all other domains are noise.

# %%
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxrec
from jaxrec import multi_objective
from jaxrec.analysis.autocdsr_analysis import attention_by_strata, attention_to_usefulness, query_attention
from jaxrec.analysis.paired_bootstrap import paired_difference, user_values
from jaxrec.data.generators.planted_transfer import planted_transfer, planted_truth
from jaxrec.data.single_domain import only_domain
from jaxrec.evaluation.model import user_ranks
from jaxrec.objectives.autocdsr import CrossDomainObjective, shared_parameters
from jaxrec.train.state import create_state
from jaxrec.train.step import make_train_step

plt.rcParams.update(
  {"figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
)
process = dict(num_users=900, items_per_domain=48, noise_share=0.4, gap=8, mean_events=32, seed=0)
worlds = {
  "one domain helps": planted_transfer(**process, transfer=0.9),
  "all are noise": planted_transfer(**process, transfer=0.0),
}

# %% [markdown]
# ## Train
#
# - `merged`: an HSTU of all events, given the domain of the event that it predicts.
# - `single`: the same of the target domain alone.
# - `AutoCDSR`: merged, with a second loss, the share of attention that goes to other domains than that of the event
#   that attends. Its weight comes from the gradients of both, step by step.
# - `AutoCDSR, target`: the same with the domain of the *predicted* event in its place (not published).

# %%
EPOCHS = 14
sizes = dict(num_layers=2, num_heads=2, width=32, head_width=16, value_width=16, max_positions=64, attention_length=64)
recommend = jaxrec.ItemObjective("full_softmax", temperature=0.1)
options = jaxrec.TrainingOptions(
  max_length=64, row_length=128, rows_per_batch=16, num_epochs=EPOCHS, request_time="last_event"
)
config = jaxrec.default_config()
config.data.max_length, config.data.request_time, config.eval.protocol = 64, "last_event", "full_per_domain"


def with_autocdsr(optimizer):
  """Weighs both gradients by Pareto stationarity, as AutoCDSR does."""
  return multi_objective.multi_objective(multi_objective.build({"name": "pareto"}), optimizer, select=shared_parameters)


shape = worlds["all are noise"]  # Both worlds have the same numbers of items and domains: one program serves both.
model = jaxrec.HSTU(**sizes, num_items=shape.num_items, num_domains=shape.num_domains, target_domain=True)
adam = optax.adam(optax.warmup_cosine_decay_schedule(0, 8e-3, 20, EPOCHS * 15))
learners = {
  "merged": (adam, recommend),
  "AutoCDSR": (with_autocdsr(adam), CrossDomainObjective(recommend, own="query")),
  "AutoCDSR, target": (with_autocdsr(adam), CrossDomainObjective(recommend, own="target")),
}
steps = {
  name: make_train_step(model, objective, optimizer, seed=0) for name, (optimizer, objective) in learners.items()
}


def train(data, learner):
  """Parameters, and the scalars of all steps."""
  batches = jaxrec.training_batches(data, options)
  state, scalars = create_state(model, learners[learner][0], next(iter(batches)), seed=0), []
  for batch in batches:
    state, values = steps[learner](state, batch)
    scalars.append(values)
  return state.params, scalars


trained, ranks, history = {}, {}, {}
for world, data in worlds.items():
  for name in ("merged", "single", "AutoCDSR", "AutoCDSR, target"):
    events, learner = (only_domain(data, "target"), "merged") if name == "single" else (data, name)
    trained[world, name], history[world, name] = train(events, learner)
    ranks[world, name] = user_ranks(model, trained[world, name], events, config, split=2)

# %% [markdown]
# ## The certificate
#
# NDCG@10 of each variant less that of `merged`, user by user, with the interval of 95% from resampling users. Right
# of zero: other domains did harm that this variant removes. Left of zero: they help. (`jaxrec certificate` does the
# same with several seeds, for any data.)

# %%
VARIANTS = ("single", "AutoCDSR", "AutoCDSR, target")
values = {key: user_values([found], worlds[key[0]].item_domain(), 10) for key, found in ranks.items()}
certificate = {
  (world, name): paired_difference(values[world, name], values[world, "merged"])
  for world in worlds
  for name in VARIANTS
}
figure, axes = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained", sharey=True)
for axis, world in zip(axes, worlds, strict=True):
  for height, name in enumerate(VARIANTS):
    found = certificate[world, name]
    colour = "tab:green" if found.low > 0 else "tab:red" if found.high < 0 else "0.5"
    axis.plot([found.low, found.high], [height, height], color=colour, linewidth=4)
    axis.scatter([found.mean], [height], color=colour, s=90, zorder=3)
  base = values[world, "merged"].value.mean()
  axis.axvline(0, color="black", linewidth=1)
  axis.set(title=f"{world.capitalize()} (merged: {base:.2f})", xlabel="difference of NDCG@10 to merged")
axes[0].set(yticks=range(3), yticklabels=VARIANTS, ylim=(2.5, -0.5));

# %% [markdown]
# ## Where attention goes
#
# The attention of the query that predicts the target, by what its keys are. Black marks: the share of the events that
# are of this kind, which is what a query that attends to all alike would give.

# %%
attention = {}
for (world, name), params in trained.items():
  if name != "single":
    batches = jaxrec.evaluation_batches(worlds[world], 2, 256, 64, request_time="last_event")
    attention[world, name] = query_attention(model, params, batches)
usefulness = {
  (world, name): attention_to_usefulness(found, worlds[world], planted_truth(worlds[world]), split=2)["all"]
  for (world, name), found in attention.items()
}
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", sharey=True)
for axis, world in zip(axes, worlds, strict=True):
  names = {"merged": "tab:blue", "AutoCDSR": "tab:orange", "AutoCDSR, target": "tab:green"}
  for offset, (name, colour) in zip((-0.27, 0, 0.27), names.items(), strict=True):
    shares = [usefulness[world, name][kind].mean for kind in ("own", "informative", "noise")]
    axis.bar(np.arange(3) + offset, shares, 0.25, color=colour, label=name)
  events = [usefulness[world, "merged"][f"events/{kind}"].mean for kind in ("own", "informative", "noise")]
  axis.scatter(range(3), events, marker="_", s=1200, color="black", linewidth=2, zorder=3, label="share of events")
  axis.set(title=world.capitalize(), xticks=range(3), xticklabels=("target", "informative", "noise"), ylim=(0, 1))
axes[0].set(ylabel="share of attention")
axes[0].legend(markerscale=0.4, fontsize=11);

# %% [markdown]
# Where all other domains are noise, the published score even draws attention *away* from the target domain: the last
# event, which asks, is of another domain as a rule, and that one counts as its own. With the domain of the target in
# its place nearly all attention goes there. Where a domain helps, the merged model finds it by itself.

# %% [markdown]
# ## Whom does it help?
#
# Users by which model has their target in its top 10: the one of the target domain alone, the one of all events,
# both, or none. How much of the merged model's attention crosses domains in each group?

# %%
strata = {}
for world in worlds:
  single, cross = ranks[world, "single"], ranks[world, "merged"]
  users = np.intersect1d(single.user, cross.user)
  kept = [found.rank[np.isin(found.user, users)] for found in (single, cross)]
  share = attention[world, "merged"].select(users).cross_domain_share("target", "visible")
  strata[world] = attention_by_strata(share, *kept)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", width_ratios=(1, 1))
names = [*strata["one domain helps"]]
for offset, (world, groups), colour in zip((-0.2, 0.2), strata.items(), ("tab:purple", "0.6"), strict=True):
  axes[0].bar(np.arange(4) + offset, [group.count for group in groups.values()], 0.38, color=colour, label=world)
  means, errors = ([getattr(group, what) or 0 for group in groups.values()] for what in ("mean", "error"))
  axes[1].bar(np.arange(4) + offset, means, 0.38, yerr=errors, color=colour, capsize=4)
for axis, title, label in zip(
  axes, ("Who is served well", "Attention that crosses"), ("users", "share to other domains"), strict=True
):
  axis.set(title=title, ylabel=label, xticks=range(4), xticklabels=["single", "merged", "both", "none"])
axes[0].legend();

# %% [markdown]
# The counts tell the two worlds apart. The share of attention that crosses does not: it is the same whether the other
# domains helped a user or not. A mean over queries is a weak guide to what attention is good for.

# %% [markdown]
# ## Weights over time
#
# AutoCDSR solves for the weights of its two gradients in every step. Below: the weight of the second objective, the
# cosine between the gradients, and the loss that the second objective makes small, as means over ten steps.


# %%
def over_time(world, name):
  """The scalar by step, smoothed over ten steps."""
  series = np.array([float(values[name]) for values in history[world, "AutoCDSR"]])
  return np.convolve(series, np.ones(10) / 10, mode="valid")


figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
titles = {
  "weight/cross_domain_attention": "Weight of the second objective",
  "cosine": "Cosine of the two gradients",
  "cross_domain_attention": "Attention that crosses",
}
for axis, (name, title) in zip(axes, titles.items(), strict=True):
  for world, colour in zip(worlds, ("tab:purple", "0.5"), strict=True):
    axis.plot(over_time(world, name), color=colour, label=world)
  axis.set(title=title, xlabel="step")
axes[1].axhline(0, color="black", linewidth=0.8)
axes[0].legend();

# %%
helps, noise = worlds
assert certificate[helps, "single"].high < 0 < certificate[noise, "single"].low
assert certificate[noise, "AutoCDSR, target"].mean > 0.01
to_target = {key: found["own"].mean for key, found in usefulness.items()}
assert to_target[noise, "AutoCDSR, target"] > to_target[noise, "merged"] + 0.2
assert to_target[noise, "AutoCDSR"] < to_target[noise, "merged"] - 0.05
assert usefulness[helps, "merged"]["informative"].mean > usefulness[helps, "merged"]["noise"].mean + 0.04
assert strata[helps]["cross right"].count > 1.3 * strata[helps]["single right"].count
assert strata[noise]["single right"].count > 1.3 * strata[noise]["cross right"].count
assert over_time(helps, "cross_domain_attention")[-1] < 0.85 * over_time(helps, "cross_domain_attention")[0]
