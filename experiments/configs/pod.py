"""HSTU with 1.5 trillion parameters in its item table, for a TPU v5p pod of 4,096 chips: compiled, never trained.

Paper: the largest model of arXiv 2402.17152 (24 layers, width 1,024, histories of 8,192 events, 1.5 trillion
parameters), except for histories of 1,024 events; with 8,192 it compiles too. Rows in bfloat16 with stochastic
rounding, row-wise AdamW with its first moment in bfloat16: 4 bytes per parameter, row-sharded over all chips. One
packed row of 1,024 positions on each chip; 512 negatives shared by a row.

Compile it on a machine without a TPU (see `pallas_kernels.aot` for what it needs):

    python -m experiments.benchmarks.compile_check --config=experiments/configs/pod.py --targets=v5p:16x16x16
    python -m experiments.benchmarks.compile_check --config=experiments/configs/pod.py --targets=v6e:16x16 \\
        --config.tables.num_items=400000000

Bytes per chip and collectives: experiments/results/pod.md. The data are synthetic and small: they only provide shapes.
Not run on any hardware.
"""

from jaxrec.train.config import default_config

NUM_ITEMS = 1_464_843_750  # x 1,024 = 1.5e12


def get_config():
  """Returns the settings."""
  config = default_config()
  config.name = "pod"
  config.data.source = "synthetic"
  config.data.max_length = 1024
  config.model = {
    "name": "hstu", "width": 1024, "num_layers": 24, "num_heads": 8, "head_width": 128, "value_width": 128,
    "max_positions": 1024, "attention_length": 1024, "dropout": 0.1, "input_dropout": 0.1,
  }  # fmt: skip
  config.objective = {"name": "sampled_softmax", "num_negatives": 512, "sharing": "row"}
  config.optimizer.learning_rate = 1e-3
  config.optimizer.clip_norm = 1.0
  config.train.dtype = "bfloat16"
  config.tables.placement = "sharded"
  config.tables.num_items = NUM_ITEMS
  config.tables.dtype = "bfloat16"
  config.tables.moment_dtype = "bfloat16"
  config.tables.rounding = "stochastic"
  return config
