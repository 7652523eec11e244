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
# # Scaling laws, and when not to believe them
#
# "Ten times the compute lowers the loss by so much" is a claim about runs that nobody has made. `jaxrec scaling` trains
# a grid of sizes, counts floating-point operations (FLOPs), fits a power law and says whether the points support it.
# Here: how compute is counted, whether the fit can be trusted (on laws that we know), and a small study.

# %%
import json
import os
import subprocess
import sys
import tempfile

import matplotlib.pyplot as plt
import numpy as np

import jaxrec
from jaxrec.analysis.scaling_fit import fit_power_law, on_frontier, predict_largest, why_no_law
from jaxrec.train.named_configs import named_config
from jaxrec.train.step_flops import step_cost

plt.rcParams.update({
  "figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
})  # fmt: skip
folder = tempfile.mkdtemp()
data = jaxrec.synthetic_data(num_users=800, num_items=240).save(os.path.join(folder, "data"))

# %% [markdown]
# ## What a step costs
#
# `step_cost` asks the compiler: it lowers the whole training step and adds up its operations; nothing is trained. The
# usual rule of thumb, 6 operations for each parameter and token, knows neither attention nor the softmax over all
# items, and for small models these are most of the work.


# %%
def cost_of(width, num_layers=2):
  config = named_config("sasrec", data)
  config.model.width, config.model.num_layers, config.model.hidden = width, num_layers, width
  return step_cost(config)


widths = [16, 32, 64, 128, 256, 512]
costs = [cost_of(width) for width in widths]
counted = np.array([cost.flops / cost.tokens for cost in costs])
rule = np.array([6 * (cost.parameters - cost.table_parameters) for cost in costs])
figure, axis = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
axis.plot(widths, counted, "o-", linewidth=3, label="counted by the compiler")
axis.plot(widths, rule, "o--", linewidth=3, label="6 x parameters without the item table")
axis.set(title="A training step of SASRec", xlabel="width", ylabel="FLOPs for each token", xscale="log", yscale="log")
axis.set_xticks(widths, widths)
axis.minorticks_off()
axis.legend()
# %% [markdown]
# ## Can the fit be trusted?
#
# We draw points from a law that we know, `loss = 2 + 1.5 (compute / 1e12)^-0.2`, with noise as between seeds, and fit
# it. How often does the 95% interval contain the exponent, and how many decades of compute does it take to know it?

# %%
FLOOR, SCALE, EXPONENT, NOISE = 2.0, 1.5, 0.2, 0.01
rng = np.random.default_rng(0)


def drawn(decades, count=8):
  x = np.geomspace(1e12, 10 ** (12 + decades), count)
  return x, FLOOR + SCALE * (x / 1e12) ** -EXPONENT + NOISE * rng.normal(size=count)


decades = [1, 2, 3, 4]
intervals = {
  span: np.array([fit_power_law(*drawn(span), resamples=200).interval() for _ in range(20)]) for span in decades
}
width_of = {span: np.median(found[:, 1] - found[:, 0]) for span, found in intervals.items()}
covered = {span: ((found[:, 0] <= EXPONENT) & (EXPONENT <= found[:, 1])).mean() for span, found in intervals.items()}

# %%
x, loss = drawn(3)
law, far = fit_power_law(x[:-1], loss[:-1]), np.geomspace(1e12, 1e17, 60)
figure, axes = plt.subplots(1, 2, figsize=(12.5, 4.6), layout="constrained")
axes[0].fill_between(far, *law.band(far), color="tab:blue", alpha=0.2, label="95% band")
axes[0].plot(far, law.at(far), color="tab:blue", linewidth=3, label="fitted")
axes[0].plot(far, FLOOR + SCALE * (far / 1e12) ** -EXPONENT, color="black", linestyle="--", label="the truth")
axes[0].plot(x[:-1], loss[:-1], "o", color="tab:blue", markersize=9)
axes[0].plot(x[-1], loss[-1], "o", color="tab:red", markersize=9, label="held out")
axes[0].set(title="One draw: three decades", xlabel="compute (FLOPs)", ylabel="loss (nats)", xscale="log")
axes[0].legend()
bars = axes[1].bar([str(span) for span in decades], [width_of[span] for span in decades], color="tab:orange")
axes[1].bar_label(bars, [f"{100 * covered[span]:.0f}% hold it" for span in decades])
axes[1].axhline(EXPONENT, color="black", linestyle="--", label="the exponent itself")
axes[1].set(
  title="How well is the exponent known?", xlabel="decades of compute", ylabel="width of the 95% interval", yscale="log"
)
axes[1].margins(y=0.2)
axes[1].legend()
# %% [markdown]
# ## A small study
#
# Five sizes of SASRec, layers x width x length x share of the users, in one command. The same command resumes. The last
# lines of its output are the verdict.

# %%
OUT = os.path.join(folder, "scaling")
sizes = "1x8x20x0.05,1x8x20x0.2,1x16x20x0.5,1x32x20x1,2x64x20x1"
command = [
  "scaling", "--configs=sasrec", f"--data={data.path}", f"--sizes={sizes}", f"--out={OUT}", "--in_process",
  "--override=train.num_epochs=3", "--override=optimizer.warmup_steps=5",
]  # fmt: skip
done = subprocess.run([sys.executable, "-m", "jaxrec.cli", *command], capture_output=True, text=True, check=True)
print(done.stdout)

# %%
with open(os.path.join(OUT, "scaling.json")) as file:
  points = json.load(file)["curves"][0]["points"]
compute, losses = (np.array([point[name] for point in points]) for name in ("flops", "loss"))
best = on_frontier(compute, losses)
figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
axis.plot(compute[best], losses[best], "o-", color="tab:blue", markersize=9, linewidth=3, label="frontier")
axis.plot(compute[~best], losses[~best], "o", color="0.6", markersize=9, label="beaten by a smaller run")
axis.set(
  title="SASRec on 800 generated users", xlabel="training compute (FLOPs)", ylabel="test loss (nats)", xscale="log"
)
axis.legend()
reasons = why_no_law(compute, losses)
print("A law?", reasons or "the points support it")

# %% [markdown]
# Five points of a minute's training are no law, whatever the curve looks like, and the program says so. The committed
# study with more decades is in [experiments/results](../experiments/results/README.md).
#
# ## What this notebook claims

# %%
assert counted[0] > 3 * rule[0] and counted[-1] / rule[-1] < counted[0] / rule[0]  # the rule is for large models
assert all(0.8 <= share <= 1 for share in covered.values())  # intervals hold the truth about as often as they say
assert width_of[1] > 3 * width_of[3] > 3 * width_of[4]  # decades, not points, fix an exponent
held_out = predict_largest(x, loss)
assert abs(held_out.error) < 0.05
assert (np.diff(compute) > 0).all() and compute[-1] > 100 * compute[0]
assert losses[-1] < losses[0] - 0.3  # more compute, lower loss
