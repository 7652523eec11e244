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
# # Know your data before you train
#
# Lengths, popularity, gaps of time, transitions between domains, ties, and leakage of time: each has ruined published
# numbers. The log below has faults that real logs have. We look for them one by one; nothing is trained.

# %%
import matplotlib.pyplot as plt
import numpy as np
import polars as pl

import jaxrec
from jaxrec.cli.audit import sizes_table, targets_table
from jaxrec.data.audit import audit
from pallas_kernels import time_bucket

plt.rcParams.update(
  {"figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
)
BOOK, FILM, SPLIT = "tab:blue", "tab:orange", ("0.75", "tab:green", "tab:red")

# %% [markdown]
# ## A log
#
# Readers and viewers of a year. New titles come out every week and lose their appeal within a month; a session
# stays in its domain mostly. And then: the film shop writes dates without a time of day, some clicks are recorded
# twice, and a crawler visits.

# %%
rng = np.random.default_rng(0)
DAY, DAYS, TITLES, READERS = 86_400, 365, 600, 1500
published = rng.integers(-90, DAYS, TITLES)
appeal = rng.permutation(1 / np.arange(1, TITLES + 1) ** 0.9)
is_film = np.arange(TITLES) % 2 == 1
age = np.arange(DAYS)[:, None] - published  # [days, titles]
weight = np.where(age >= 0, appeal * np.exp(-age / 15), 0)[None] * (is_film == np.array([[False], [True]]))[:, None]
cumulative = np.cumsum(weight, axis=2)  # [domains, days, titles]
rows = []
for reader in range(READERS):
  second, film, seen = rng.integers(0, (DAYS - 60) * DAY), rng.random() < 0.5, set()
  for _ in range(5 + rng.geometric(1 / 20)):
    if second >= DAYS * DAY:
      break
    chances = cumulative[int(film), second // DAY]
    title = next((t for t in np.searchsorted(chances, rng.random(9) * chances[-1]) if t not in seen), None)
    if title is None:
      break
    seen.add(title)
    written = second // DAY * DAY if film else second  # The film shop writes dates only.
    rows += [(f"r{reader}", int(title), "film" if film else "book", written)] * (2 if rng.random() < 0.02 else 1)
    session_ends = rng.random() < 0.25
    second += 1 + int((2 * DAY if session_ends else 90) * rng.lognormal())
    film = film ^ (rng.random() < 0.2)
crawl = rng.integers(0, DAYS * DAY, 3000)
rows += [("crawler", t % TITLES, "film" if t % 2 else "book", t) for t in crawl.tolist()]
start = 1_700_000_000 // DAY * DAY
log = pl.DataFrame(rows, ["user", "item", "domain", "timestamp"], orient="row")
log = log.with_columns(pl.col("timestamp") + start)
data = jaxrec.from_events(log, domain="domain")
print(f"{data.num_users:,} users, {data.num_items} items, {data.num_events:,} events")

# %% [markdown]
# ## Lengths and popularity
#
# A history that is a hundred times longer than the others is no reader. And a catalogue in which a tenth of the items
# has a large part of the events makes popularity a strong baseline: report it next to every model.

# %%
lengths = np.diff(data.offsets)
counts = np.sort(np.bincount(data.item_id, minlength=data.num_items + 1)[1:])[::-1]
top_tenth = counts[: data.num_items // 10].sum() / counts.sum()
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.hist(lengths, np.geomspace(4, 5000, 40), color="tab:purple")
left.set(title="Lengths of histories", xscale="log", yscale="log", xlabel="events of a user", ylabel="users")
left.annotate("the crawler", (lengths.max(), 1.1), (600, 15), arrowprops={"arrowstyle": "->"})
share = np.arange(1, data.num_items + 1) / data.num_items
right.plot(share, np.cumsum(counts) / counts.sum(), color="tab:purple")
right.plot([0.1, 0.1, 0], [0, top_tenth, top_tenth], color="0.5", linestyle=":")
right.set(title=f"The top tenth has {top_tenth:.0%} of the events", xlim=(0, 1), ylim=(0, 1))
right.set(xlabel="share of the items, most popular first", ylabel="share of the events");

# %%
log = log.filter(pl.col("user") != "crawler")
data = jaxrec.from_events(log, domain="domain")

# %% [markdown]
# ## Gaps of time
#
# The scale has to be logarithmic: clicks of a session are a minute apart, sessions days. HSTU reads these gaps
# through a table with one entry for each bucket of `floor(ln(seconds) / 0.301)`, so each bar below is an entry that
# this data can train. The tall bar at the left are gaps of zero seconds.

# %%
user = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
time, domain = np.asarray(data.timestamp), np.asarray(data.domain_id)
same_user = user[1:] == user[:-1]
gap = np.diff(time)[same_user]
buckets = np.bincount(np.asarray(time_bucket(gap.astype(np.int32))), minlength=60)
figure, axes = plt.subplots(figsize=(10, 3.4), layout="constrained")
axes.bar(range(60), buckets / len(gap), color="tab:purple", width=0.9)
marks = {"0-1 s": 0, "10 s": 7, "1 min": 13, "10 min": 21, "1 h": 27, "1 day": 37, "1 week": 44, "2 months": 51}
axes.set(title="Time since the event before", xticks=[*marks.values()], xticklabels=[*marks], xlim=(-1, 55))
axes.set(xlabel="bucket of HSTU's time table, by its gap", ylabel="share of the events")
axes.tick_params(axis="x", labelsize=11);

# %% [markdown]
# ## Transitions between domains
#
# How often does a film follow a book? If a domain mostly follows itself, the domain of the next event is easy to
# guess, and a model earns points among all items for guessing it. Rank within the domain of the target as well
# (`config.eval.protocol = "both"`).

# %%
names = data.domain_names
transitions = np.zeros((len(names), len(names)))
np.add.at(transitions, (domain[:-1][same_user] - 1, domain[1:][same_user] - 1), 1)
transitions /= transitions.sum(axis=1, keepdims=True)
figure, axes = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
image = axes.imshow(transitions, vmin=0, vmax=1, cmap="Blues")
for (i, j), value in np.ndenumerate(transitions):
  axes.text(j, i, f"{value:.0%}", ha="center", va="center", color="white" if value > 0.5 else "black", fontsize=16)
axes.set(title="Domain of the next event", xticks=range(len(names)), xticklabels=names)
axes.set(yticks=range(len(names)), yticklabels=names, xlabel="next event", ylabel="event")
figure.colorbar(image, ax=axes, label="share of the events in a row");

# %% [markdown]
# ## Ties
#
# The last event of a user is the test. If several events have the same time, the order of the lines in the file
# decides which one that is: shuffle the file, and the test set changes. `audit` counts what could change (`order
# decides`) without any shuffling.

# %%
figures = audit(data)
print(targets_table(figures))


def test_items(frame):
  """The raw id of the test item of each user."""
  prepared = jaxrec.from_events(frame, domain="domain")
  events = np.flatnonzero(np.asarray(prepared.split) == 2)
  owners = np.repeat(prepared.users["raw_id"].to_numpy(), np.diff(prepared.offsets))[events]
  return dict(zip(owners, prepared.items["raw_id"].to_numpy()[prepared.item_id[events] - 1], strict=True))


orders = [test_items(log.sample(fraction=1.0, shuffle=True, seed=seed)) for seed in (1, 2)]
changed = np.mean([orders[0][reader] != orders[1][reader] for reader in orders[0]])
decided = figures["test"]["order_decides"] / figures["test"]["targets"]
print(f"\ntest items that changed when the file was shuffled: {changed:.1%}; could change: {decided:.1%}")

# %% [markdown]
# The film shop writes dates only, so its events tie. Where the time of day is lost for good, say so next to the
# number, or evaluate the events of whole days. Duplicates are easier: `duplicates="first"` drops and counts them.

# %%
clean = jaxrec.from_events(log, domain="domain", duplicates="first", split="by_time")
print("dropped:", clean.meta["counts"]["dropped"])
print(sizes_table(audit(clean)))

# %% [markdown]
# ## Leakage of time
#
# Leave-one-out cuts each user at another time. While one reader's last event is predicted, the model has been trained
# on what others did weeks later. `split="by_time"` cuts everybody at once.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for axis, prepared, title in zip(axes, (data, clean), ("Leave-one-out", "By time"), strict=True):
  chosen = np.argsort(prepared.timestamp[prepared.offsets[1:] - 1])[:: prepared.num_users // 40]
  for height, reader in enumerate(chosen):
    events = prepared.user_slice(int(reader))
    days, split = (prepared.timestamp[events] - start) / DAY, np.asarray(prepared.split[events])
    axis.scatter(days, np.full(len(days), height), c=np.array(SPLIT)[split], s=9 + 9 * (split > 0))
  axis.set(title=title, xlabel="day of the year")
median = (np.median(data.timestamp[np.asarray(data.split) == 2]) - start) / DAY
axes[0].axvline(median, color="black", linewidth=1)
axes[0].annotate("training events that\nthis test user's model\nhas seen already", (median + 5, 6), fontsize=11)
for colour, name in zip(SPLIT, ("training", "validation", "test"), strict=True):
  axes[1].scatter([], [], color=colour, label=name)
axes[0].set_ylabel("one of 40 users")
figure.legend(loc="outside right center", markerscale=2);

# %% [markdown]
# Does it matter? We predict each test item by its popularity among the training events of two weeks: those before the
# target, or those from one week before to one week after it, which leave-one-out hands to every model. No
# recommender could have had the second list.


# %%
def hit_rate(prepared, before, after, k=10):
  """HR@k of popularity among training events from `before` days before to `after` days after each test event."""
  times, items = np.asarray(prepared.timestamp), np.asarray(prepared.item_id)
  training = np.flatnonzero(np.asarray(prepared.split) == 0)
  training = training[np.argsort(times[training], kind="stable")]
  hits = []
  for event in np.flatnonzero(np.asarray(prepared.split) == 2):
    first, last = np.searchsorted(times[training], times[event] + DAY * np.array([-before, after]))
    popular = np.bincount(items[training[first:last]], minlength=prepared.num_items + 1)
    hits.append(popular[items[event]] > 0 and (popular > popular[items[event]]).sum() < k)
  return np.mean(hits)


rates = {
  "all training events": hit_rate(data, 400, 400),
  "two weeks before": hit_rate(data, 14, 0),
  "a week before and after": hit_rate(data, 7, 7),
}
figure, (bars, line) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", width_ratios=(3, 2))
bars.barh([*rates], [*rates.values()], color=["0.6", "tab:blue", "tab:red"])
bars.invert_yaxis()
bars.set(title="Popularity under leave-one-out", xlabel="HR@10 of the test items")
when = np.sort(data.timestamp[np.asarray(data.split) == 0])
for prepared, name, colour in ((data, "leave-one-out", "tab:red"), (clean, "by time", "tab:blue")):
  targets = prepared.timestamp[np.asarray(prepared.split) == 2]
  train_times = np.sort(prepared.timestamp[np.asarray(prepared.split) == 0])
  later = 1 - np.searchsorted(train_times, np.sort(targets), side="right") / len(train_times)
  line.plot(np.linspace(0, 1, len(later)), later, color=colour, label=name)
line.set(title="Training after the target", xlabel="share of the targets", ylabel="share of training")
line.legend();

# %%
leaked, clean_figures = figures["test"]["later_training"], audit(clean)
assert lengths.max() > 20 * np.median(lengths) and top_tenth > 0.25
assert buckets[0] / len(gap) > 0.15 and figures["neighbours_tied"] > 0.15
assert transitions.diagonal().min() > 0.7
assert 0.1 < changed <= decided
assert clean.meta["counts"]["dropped"]["duplicate"] > 200 and clean_figures["duplicates"] == 0
assert leaked > 0.3 and clean_figures["test"]["later_training"] == 0
assert rates["a week before and after"] > 1.1 * rates["two weeks before"] > 1.1 * rates["all training events"], rates
