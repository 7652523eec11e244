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
# # Will it fit my pod?
#
# Accelerators are booked by the hour, and a job that runs out of memory in its first step has cost a queue. The
# compilers for TPUs and NVIDIA GPUs run on a laptop without any of these devices: they say how many bytes a training
# step takes on each device and what it sends between them, before anything is booked.
#
# The TPU compiler is `pip install "jaxrec[compilers]"` (a gigabyte). Without it this notebook shows what needs no
# compiler.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxrec.embedding import RowAdamW, Table
from pallas_kernels import IntervalMask, aot, segment_attention

plt.rcParams.update({
  "figure.dpi": 110, "font.size": 13, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
})  # fmt: skip
GIB = 2**30
CHIPS = {"v5e": 15.75, "v6e": 31.25, "v5p": 95.74}  # GiB of memory that the compiler may use
TARGET = "v5e:2x2"
for target in (TARGET, "h100"):
  print(f"{target:8}", aot.why_not(target) or "can be compiled for here")

# %% [markdown]
# ## First the item table: no compiler needed
#
# With a large catalogue nearly all memory is the item table with its optimizer state, row-sharded over the chips. How
# large a catalogue of width 256 fits if the table may take half of each chip?

# %%
kinds = {
  "float32 rows, row-wise AdamW": {"optimizer": RowAdamW()},
  "bfloat16 rows and moments": {
    "dtype": "bfloat16",
    "rounding": "stochastic",
    "optimizer": RowAdamW(moment_dtype="bfloat16"),
  },
}
numbers = np.array([1, 4, 16, 64, 256, 1024])
figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
largest = {}
for axis, (kind, options) in zip(axes, kinds.items(), strict=True):
  for chip, memory in CHIPS.items():
    largest[kind, chip] = numbers * memory * GIB / 2 / Table(1, 256, **options).bytes_per_row
    axis.plot(numbers, largest[kind, chip], "o-", linewidth=3, label=f"{chip}, {memory:.0f} GiB")
  axis.set(title=kind, xlabel="chips", xscale="log", yscale="log")
  axis.set_xticks(numbers, numbers)
  axis.grid(alpha=0.3)
axes[0].set(ylabel="items (half of the memory)")
axes[0].legend();

# %% [markdown]
# ## Then what a step needs in between
#
# The rest is activations, and of these attention can be by far the largest: a program that forms the `[N, N]` matrix
# needs memory for it, a kernel that walks over its tiles does not. We compile attention of 8 rows and 2 heads of width
# 128 for one TPU v5e, both ways, and read what the compiler reserved.


# %%
def compile_attention(length, implementation):
  """GiB that attention needs on a v5e, or what the compiler says."""

  def attend(q, k, v, sequence_id):
    mask = IntervalMask.causal(sequence_id)
    return segment_attention(q, k, v, mask, activation="silu", scale=128**-0.5, implementation=implementation)

  vectors = jax.ShapeDtypeStruct((8, length, 2, 128), jnp.bfloat16)
  device = aot.target_devices(TARGET)[0]
  shapes = (vectors, vectors, vectors, jax.ShapeDtypeStruct((8, length), jnp.int32))
  try:
    program, _ = aot.compile_for(attend, [device], *shapes)
  except jax.errors.JaxRuntimeError as error:
    return str(error)
  return sum(aot.memory_of(program).values()) / GIB


LENGTHS = {"dense": (1024, 4096, 8192, 32768), "tpu": (1024, 4096, 8192, 32768)}
can_compile = aot.why_not(TARGET) is None
needs = {}
if can_compile:
  needs = {name: [compile_attention(length, name) for length in lengths] for name, lengths in LENGTHS.items()}
  refusal = needs["dense"][-1]
  print(refusal[:500])
else:
  print(f"{aot.why_not(TARGET)}. The next picture needs the compiler and is left out.")

# %% [markdown]
# The longest dense program is refused, on the laptop and with the reason, instead of in the queue.

# %%
if can_compile:
  figure, axis = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
  names = {"dense": "with the [N, N] matrix", "tpu": "segment_attention, tile by tile"}
  for (kind, found), color in zip(needs.items(), ("tab:orange", "tab:blue"), strict=True):
    sizes = [(length, need) for length, need in zip(LENGTHS[kind], found, strict=True) if not isinstance(need, str)]
    axis.plot(*zip(*sizes, strict=True), "o-", color=color, linewidth=3, markersize=8, label=names[kind])
  axis.plot(LENGTHS["dense"][-1], CHIPS["v5e"], "x", color="tab:red", markersize=13, markeredgewidth=4, label="refused")
  axis.axhline(CHIPS["v5e"], color="black", linestyle="--", label="memory of a v5e")
  axis.set(title="Attention of 8 histories", xlabel="events of a history", ylabel="GiB", xscale="log", yscale="log")
  axis.set_xticks(LENGTHS["dense"], LENGTHS["dense"])
  axis.minorticks_off()
  axis.set_ylim(top=30)
  axis.legend(loc="lower right");

# %% [markdown]
# ## A whole training step
#
# is compiled from the config of a run, and nothing as large as the parameters is made. That takes about a minute, so it
# is not done here:
#
# ```python
# from jaxrec.train.target_step import compile_training_step
#
# program, seconds = compile_training_step(config, "v5e:2x2")
# print(aot.memory_of(program), aot.collectives_of(program))
# ```
#
# or, from the command line, `python -m experiments.benchmarks.compile_check --targets=v5p:4x4x4 --config=my_config.py`.

# %% [markdown]
# ## A pod
#
# Compiling 24 layers of width 1,024 for thousands of chips takes minutes, so these numbers are from
# [experiments/results/pod.md](../experiments/results/pod.md): 1.5 trillion parameters on 4,096 v5p. None of it has run
# on a TPU; it says that the program compiles, and what it needs.

# %%
pods = {"v5p:16x16x16": (2.78, 2.01), "v6e:16x16": (7.39, 0.80), "v5e:16x16": (4.40, 0.89)}  # GiB: arguments, temporary
figure, axis = plt.subplots(figsize=(9, 3.6), layout="constrained")
for row, (target, (kept, used)) in enumerate(pods.items()):
  axis.barh(row, kept, color="tab:blue", label="arguments" if row == 0 else None)
  axis.barh(row, used, left=kept, color="tab:orange", label="temporary" if row == 0 else None)
  limit = CHIPS[target.partition(":")[0]]
  axis.barh(row, limit, color="none", edgecolor="black", label="memory of a chip" if row == 0 else None)
axis.set(title="HSTU, 24 layers, 0.2 to 1.5 trillion parameters", xlabel="GiB on each chip")
axis.set_yticks(range(len(pods)), list(pods))
axis.invert_yaxis()
axis.legend(loc="lower right");

# %% [markdown]
# ## What this notebook claims

# %%
per_row = [Table(1, 256, **options).bytes_per_row for options in kinds.values()]
assert per_row[0] > 1.9 * per_row[1]  # compact rows hold twice the catalogue
assert all(sum(needed) < CHIPS[target.partition(":")[0]] for target, needed in pods.items())
if can_compile:
  assert isinstance(refusal, str) and "memory" in refusal.lower()
  assert needs["dense"][2] > 5 * needs["tpu"][2]
  assert needs["tpu"][3] / needs["tpu"][2] < 10  # four times the length; squared it would be 16
