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
# # Your own data: from a CSV to recommendations
#
# A log with one line for each event is enough: who, what and when. This notebook writes such a file, so that it runs
# anywhere. To use yours, change the path and the names of the columns in the third cell.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import polars as pl

import jaxrec
from jaxrec.evaluation import baselines
from jaxrec.evaluation.model import evaluate
from jaxrec.serving.histories import histories_of_users
from jaxrec.serving.recommendation import describe, table

plt.rcParams.update(
  {"figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
)
folder = Path(tempfile.mkdtemp())

# %%
made = jaxrec.synthetic_data(num_users=1200, num_items=240, mean_events=30, seed=1)
customers = np.repeat(np.arange(made.num_users), np.diff(made.offsets))
log = pl.DataFrame(
  {
    "customer": [f"c{customer:04}" for customer in customers],
    "sku": [f"S{item:03}" for item in made.item_id],
    "name": [made.item_titles()[item] for item in made.item_id],
    "shop": [made.domain_names[domain - 1] for domain in made.domain_id],
    "bought_at": np.asarray(made.timestamp, "datetime64[s]").astype(str),
  }
).sample(fraction=1.0, shuffle=True, seed=0)  # Any order of the lines will do.
log.write_csv(folder / "log.csv")
print(*(folder / "log.csv").read_text().splitlines()[:5], sep="\n")

# %% [markdown]
# ## Prepare
#
# `prepare` reads and checks the file, numbers the ids, sorts the events of each customer by time, and holds out the
# last event for the test and the one before for validation. What it drops it counts. The same options are flags of
# `jaxrec prepare --source=table`; for a frame that is in memory already there is `jaxrec.from_events(log, ...)`.

# %%
columns = dict(user="customer", item="sku", title="name", domain="shop", timestamp="bought_at", time_unit="iso")
data = jaxrec.prepare("table", folder / "log.csv", folder / "data", min_user_events=10, min_item_events=5, **columns)
print(f"{data.num_users} customers, {data.num_items} items, {data.num_events} events, shops: {data.domain_names}")
print("dropped:", data.meta["counts"]["dropped"])

# %% [markdown]
# A line that cannot be read is never skipped in silence: the error names file, line, column and text.

# %%
lines = (folder / "log.csv").read_text().splitlines()
lines[7] = lines[7].replace("T", " at ")
(folder / "broken.csv").write_text("\n".join(lines))
try:
  jaxrec.prepare("table", folder / "broken.csv", **columns)
except ValueError as error:
  message = str(error).replace(f"{folder}/", "")
  print(message)

# %% [markdown]
# ## Train
#
# `"hstu"` is a name; the sizes of the model and of the batches are derived from the data. Everything of the run lies
# in its folder: parameters, metrics, a report to open in a browser. The same call again resumes it.

# %%
recommender = jaxrec.fit(data, "hstu", epochs=12, workdir=folder / "run")

# %% [markdown]
# ## Is it any good?
#
# Each customer's last purchase is ranked among all items that the customer does not have yet. HR@K is the share of
# customers for whom it is among the first K.

# %%
ks = (1, 2, 5, 10, 20, 50, 100)
config = recommender.config
config.eval.ks = ks
batches = jaxrec.evaluation_batches(data, split=2, batch_size=256, max_length=config.data.max_length)
scores = {"HSTU": evaluate(recommender.model, recommender.params, data, config, split=2)}
for baseline in (baselines.popularity(data, last_split=1), baselines.random_order(data)):
  scores[baseline.name] = baselines.evaluate_baseline(baseline, data, batches, ks=ks)

figure, (curve, bars) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", width_ratios=(3, 2))
for (name, values), colour in zip(scores.items(), ("tab:blue", "tab:orange", "0.6"), strict=True):
  curve.plot(ks, [values[f"HR@{k}"] for k in ks], marker="o", label=name, color=colour)
curve.set(title="Is the last purchase in the list?", xscale="log", xticks=ks, xticklabels=ks, ylim=(0, 1))
curve.set(xlabel="K, length of the list (items)", ylabel="HR@K (share of customers)")
curve.minorticks_off()
curve.legend()
shops = data.domain_names
for offset, (name, colour) in zip((-0.2, 0.2), (("HSTU", "tab:blue"), ("popularity", "tab:orange")), strict=True):
  bars.bar(np.arange(len(shops)) + offset, [scores[name][f"domain/{shop}/HR@10"] for shop in shops], 0.4, color=colour)
bars.set(title="The same by shop, K = 10", xticks=range(len(shops)), xticklabels=shops, ylim=(0, 1), ylabel="HR@10");

# %% [markdown]
# ## Recommend
#
# For customers of the log by their ids; with `hold_out` the last purchase is hidden and looked for in the list.

# %%
(shown,) = recommender.recommend(users=["c0001"], k=8, hold_out=True)
print(describe(data, shown, history=8))

# %% [markdown]
# For somebody who is new: the history comes with the request, as `(item, time)`. `domain=` asks for one shop,
# `allowed=` for what is in stock.

# %%
basket = log.filter(pl.col("name").str.starts_with("book") & pl.col("name").str.ends_with("(space)")).unique("sku")
history = [(sku, 1_700_000_000 + 60 * i) for i, sku in enumerate(basket.sort("name")["sku"][:4])]
in_stock = [f"S{item:03}" for item in range(1, 241, 2)]
(films,) = recommender.recommend(histories=[history], k=5, domain="film")
(available,) = recommender.recommend(histories=[history], k=5, allowed=in_stock)
print(describe(data, films))

# %% [markdown]
# For everybody, as a table that can be written as Parquet or CSV:

# %%
everybody = histories_of_users(data, np.arange(data.num_users))
recommendations = table(data, everybody, recommender.best_items(everybody, k=5))
recommendations.select("user", "rank", "item", "title", "score").head(5)

# %% [markdown]
# ## What has it learned about the items?
#
# The model never saw a title, only who bought what and when. Yet the vectors of items of the same genre are alike,
# and books are alike to films of their genre. Below: the mean cosine between the item vectors of two genres.

# %%
vectors = recommender.item_vectors()
vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
titles = np.array(data.item_titles()[1:])
genres = sorted({title[title.find("(") + 1 : -1] for title in titles})
kinds = [(shop, genre) for shop in shops for genre in genres]
groups = [
  np.flatnonzero([title.startswith(shop) and title.endswith(f"({genre})") for title in titles]) for shop, genre in kinds
]


def likeness(a, b):
  """The mean cosine of different items."""
  cosines = vectors[groups[a]] @ vectors[groups[b]].T
  return cosines[~np.eye(len(cosines), dtype=bool)].mean() if a == b else cosines.mean()


cosine = np.array([[likeness(a, b) for b in range(len(kinds))] for a in range(len(kinds))])
figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
image = axes.imshow(cosine, cmap="RdBu_r", vmin=-0.6, vmax=0.6)
centres = [len(genres) / 2 - 0.5, 1.5 * len(genres) - 0.5]
axes.set(title="Item vectors by shop and genre", xticks=centres, xticklabels=[f"{shop}s" for shop in shops])
axes.set(yticks=range(len(kinds)), yticklabels=[genre for _, genre in kinds])
axes.tick_params(axis="y", labelsize=10)
for middle in (axes.axhline, axes.axvline):
  middle(len(genres) - 0.5, color="black", linewidth=1)
figure.colorbar(image, ax=axes, label="mean cosine", shrink=0.8);

# %% [markdown]
# ## Later
#
# `jaxrec.load` gives the recommender back in another process; `jaxrec serve --workdir=...` answers requests over
# HTTP. Tomorrow's log goes on top of today's data with `jaxrec.prepare(..., extends=folder / "data")`: known ids
# stay.

# %%
again = jaxrec.load(folder / "run")
(same,) = again.recommend(histories=[history], k=5, domain="film")

# %%
own_genre = np.mean([cosine[i, i] for i in range(len(kinds))])
across = np.mean([cosine[i, i + len(genres)] for i in range(len(genres))])
different = np.mean([cosine[a, b] for a in range(len(genres)) for b in range(len(genres)) if a != b])
print(f"mean cosine: shop and genre {own_genre:.2f}, book and film of a genre {across:.2f}, others {different:.2f}")
assert "broken.csv" in message and "line 8" in message and "bought_at" in message
assert scores["HSTU"]["HR@10"] > 3 * scores["popularity"]["HR@10"]
assert all(item.domain == "film" for item in films.items) and {item.item for item in available.items} <= {*in_stock}
assert [item.item for item in same.items] == [item.item for item in films.items]
assert len(recommendations) == 5 * data.num_users
assert own_genre > different + 0.2 and across > different + 0.1
