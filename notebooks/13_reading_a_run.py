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
# # Reading a run: records, sweeps, significance
#
# Is model A better than model B, or was it luck? We train SASRec with one layer for 2 epochs and for 6, with three
# seeds each, read what a run writes down, and compare the two user by user. A user is hard or easy for both, and a
# comparison that uses this needs far fewer users.

# %%
import json
import os
import subprocess
import sys
import tempfile

import matplotlib.pyplot as plt
import numpy as np

import jaxrec
from jaxrec.analysis.paired_bootstrap import UserValues, means_by_seed, paired_difference, user_values
from jaxrec.evaluation.model import user_ranks
from jaxrec.train.runs import load_run
from jaxrec.train.writers import read_records

plt.rcParams.update({
  "figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
})  # fmt: skip

folder = tempfile.mkdtemp()
data = jaxrec.synthetic_data(num_users=500, num_items=240).save(os.path.join(folder, "data"))

# %% [markdown]
# ## A sweep
#
# `jaxrec sweep` trains a grid of configs, settings and seeds, and prints means and standard deviations over the seeds.
# The same command resumes; `--in_process` saves the start-up time of small runs.

# %%
OUT = os.path.join(folder, "sweep")
command = [
  "sweep", "--configs=sasrec", f"--data={data.path}", "--seeds=1,2,3", f"--out={OUT}", "--in_process",
  "--override=model.num_layers=1", "--override=train.num_epochs=2,6", "--override=train.evaluate_every_epochs=2",
  "--override=train.retrain=false", "--metrics=NDCG@10",
]  # fmt: skip
done = subprocess.run([sys.executable, "-m", "jaxrec.cli", *command], capture_output=True, text=True, check=True)
print(done.stdout)

# %% [markdown]
# ## What a run writes down
#
# `results.jsonl` has a line for each run; its workdir has the rest. `metrics.jsonl` is the log: a record for every few
# steps and every evaluation. `timing.jsonl` is apart, so that a run that was killed and resumed has the same
# `metrics.jsonl` as one that was not.

# %%
with open(os.path.join(OUT, "results.jsonl")) as file:
  results = [json.loads(line) for line in file]
workdirs = {"2 epochs": [], "6 epochs": []}
for result in results:
  workdirs[result["overrides"]["train.num_epochs"] + " epochs"].append(result["workdir"])
print(sorted(os.listdir(results[0]["workdir"])))
for record in read_records(os.path.join(results[0]["workdir"], "metrics.jsonl"))[:2]:
  print(record)

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for (name, folders), color in zip(workdirs.items(), ("tab:orange", "tab:blue"), strict=True):
  for seed, workdir in enumerate(folders, 1):
    records = read_records(os.path.join(workdir, "metrics.jsonl"))
    label = name if seed == 1 else None
    for axis, kind, value in ((axes[0], "train", "loss"), (axes[1], "validation", "NDCG@10")):
      points = [(record["step"], record[value]) for record in records if record["kind"] == kind]
      axis.plot(*zip(*points, strict=True), "o-", color=color, linewidth=2, markersize=4, label=label)
axes[0].set(title="Training loss, three seeds each", xlabel="step", ylabel="cross entropy (nats)")
axes[1].set(title="Validation, three seeds each", xlabel="step", ylabel="NDCG@10")
for axis in axes:
  axis.legend();

# %% [markdown]
# ## Rank by rank
#
# `user_ranks` gives the rank of each user's target, from which every metric comes. The three seeds of a model differ
# only in initialization and order of the data.


# %%
def values_of(name):
  ranks = []
  for workdir in workdirs[name]:
    loaded = load_run(workdir)
    ranks.append(user_ranks(loaded.task.model, loaded.params, data, loaded.task.config, split=2))
  return user_values(ranks, np.asarray(data.item_domain()), k=10)


values = {name: values_of(name) for name in workdirs}
long, short = values["6 epochs"].value, values["2 epochs"].value  # [seeds, users]
for name, value in values.items():
  by_seed = means_by_seed(value)
  print(f"{name:7} NDCG@10 of the seeds {by_seed.round(4)}: {by_seed.mean():.4f} ± {by_seed.std(ddof=1):.4f}")
print(f"correlation of the two models over users: {np.corrcoef(long.mean(0), short.mean(0))[0, 1]:.2f}")

# %% [markdown]
# ## Significance
#
# `paired_difference` draws users, and seeds where there are several, the same ones for both, and reports the interval
# that holds 95% of the mean differences. For comparison, the interval of someone who treats the users as two separate
# groups. Two seeds of the *same* model (grey) are a warning: with one seed an interval speaks of two sets of
# parameters, not of two models, and it may well leave out 0 where there is nothing to find. Seeds have to be drawn too.


# %%
def one_seed(name, seed):
  return UserValues(values[name].user, values[name].domain, values[name].value[seed : seed + 1])


def separate(first, second):
  """Mean difference and 95% interval of two groups of different users."""
  middle = first.mean() - second.mean()
  half = 1.96 * np.sqrt(first.var() / first.size + second.var() / second.size)
  return middle, middle - half, middle + half


def paired(first, second):
  found = paired_difference(first, second)
  return found.mean, found.low, found.high


intervals = {
  "6 epochs - 2, three seeds, paired": paired(values["6 epochs"], values["2 epochs"]),
  "6 epochs - 2, one seed, paired": paired(one_seed("6 epochs", 0), one_seed("2 epochs", 0)),
  "6 epochs - 2, one seed, separate groups": separate(long[0], short[0]),
  "2 epochs, seed 1 - seed 2, paired": paired(one_seed("2 epochs", 0), one_seed("2 epochs", 1)),
  "6 epochs, seed 1 - seed 2, paired": paired(one_seed("6 epochs", 0), one_seed("6 epochs", 1)),
}
figure, axis = plt.subplots(figsize=(11, 3.6), layout="constrained")
for row, (name, (middle, low, high)) in enumerate(intervals.items()):
  color = "tab:blue" if name.startswith("6 epochs - 2") else "0.5"
  axis.plot([low, high], [row, row], color=color, linewidth=5, alpha=0.5, solid_capstyle="butt")
  axis.plot(middle, row, "o", color=color, markersize=9)
axis.axvline(0, color="black", linewidth=1)
axis.set(title="95% intervals; grey: nothing to find", xlabel="difference of NDCG@10")
axis.set_yticks(range(len(intervals)), list(intervals))
axis.invert_yaxis();

# %% [markdown]
# ## How many users does it take?
#
# Half the width of the interval against the number of test users, for one seed. The difference becomes visible where
# the curve falls below it.

# %%
counts = [15, 30, 60, 125, 250, 500]
rng = np.random.default_rng(0)
halves = {"paired": [], "separate groups": []}
for count in counts:
  draws = [rng.choice(long.shape[1], count, replace=False) for _ in range(20)]
  differences = [long[0, chosen] - short[0, chosen] for chosen in draws]
  halves["paired"].append(np.mean([1.96 * x.std() / count**0.5 for x in differences]))
  halves["separate groups"].append(np.mean([np.subtract(*separate(long[0, c], short[0, c])[:0:-1]) / 2 for c in draws]))
figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
for name, half in halves.items():
  axis.plot(counts, half, "o-", linewidth=3, label=name)
axis.axhline(
  abs(intervals["6 epochs - 2, three seeds, paired"][0]), color="0.3", linestyle="--", label="the difference"
)
axis.set(
  title="What can be seen with how many users",
  xlabel="test users",
  ylabel="half an interval, in NDCG@10",
  xscale="log",
)
axis.set_xticks(counts, counts)
axis.minorticks_off()
axis.legend();

# %% [markdown]
# From the command line, `python -m experiments.compare_runs --run=short=... --run=long=... --out=comparison.json` does
# the same, by domain too, and `jaxrec.write_report(workdir)` makes a page of one run.
#
# ## What this notebook claims

# %%
table = {name: float(means_by_seed(value).mean()) for name, value in values.items()}
for name, mean in table.items():  # the table of the sweep has the same means
  rows = [line for line in done.stdout.splitlines() if f"num_epochs={name.split()[0]}," in line]
  assert any(f"{mean:.4f}" in row for row in rows), (name, mean)
middle, low, high = intervals["6 epochs - 2, three seeds, paired"]
assert low > 0 or high < 0  # the models differ
assert np.corrcoef(long.mean(0), short.mean(0))[0, 1] > 0.8  # a user is hard or easy for both
assert halves["paired"][-1] < 0.6 * halves["separate groups"][-1]  # so pairing narrows the interval
