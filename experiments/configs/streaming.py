"""The synthetic streaming experiment of HSTU: does attention that counts help where what was chosen is chosen again?

    python -m experiments.train --config=experiments/configs/streaming.py:hstu --workdir=runs/streaming_hstu
    python -m experiments.scaling --layers=1,2 --widths=16,32 --shares=0.1,1 --out=runs/streaming_scaling \
      --configs=experiments/configs/streaming.py:hstu,experiments/configs/streaming.py:sasrec

The argument is the model: `hstu`, `hstu_softmax` (the same layer with softmax attention) or `sasrec` (a Transformer).
Without relative bias, as in table 2 of arXiv 2402.17152: HR@10 / HR@50 .0442 / .2025 for the Transformer, .0617 / .2496
for HSTU with softmax, .0893 / .3170 for HSTU. The paper's stream is larger, and its constants are not known here.

Data: `jaxrec.data.generators.streaming_vocabulary`, 500 items in 25 categories, 44,000 records of 65 events, which are
seen once, in their order. Items of a record remain candidates. Four events of each held-out record are targets. With
`--config.data.options.initial_share=1.0` all items are there from the beginning, as for the scaling study.

Choice: dot products of normalised queries with item vectors of any length, at temperature 1, and a softmax over all
items, so that the loss begins at that of a uniform guess, ln 500 = 6.2, at all widths; the public configurations have
cosines at temperature .05 and 128 negatives.

Numbers: `experiments/results/scaling.md`.
"""

from jaxrec.train.config import default_config

MODELS = ("hstu", "hstu_softmax", "sasrec")


def get_config(model: str = "hstu"):
  """Returns the settings of a model of width 32 with 2 layers."""
  if model not in MODELS:
    raise ValueError(f"{model=} is not one of {MODELS}")
  config = default_config()
  config.name = "streaming" if model == "hstu" else f"streaming_{model}"
  config.data.source = "streaming"
  config.data.options = {
    "num_records": 44_000, "num_items": 500, "num_categories": 25, "length": 65, "most_concentration": 60.0,
    "initial_share": 0.4, "held_out_share": 0.025,
  }  # fmt: skip
  config.data.order = "given"
  config.data.max_length = 64
  config.data.request_time = "last_event"
  common = dict(width=32, num_layers=2, num_heads=1, max_positions=65, output_norm="layer_norm")
  if model == "sasrec":
    config.model = dict(name="sasrec", hidden=32, **common)
  else:
    activation = "softmax" if model == "hstu_softmax" else "silu"
    config.model = dict(
      name="hstu", head_width=32, value_width=32, attention_length=65, time_bias=False, position_bias=False,
      activation=activation, **common,
    )  # fmt: skip
  config.objective = dict(name="full_softmax", temperature=1.0)
  config.optimizer.learning_rate = 5e-3
  config.optimizer.schedule = "warmup_cosine"
  config.optimizer.warmup_steps = 10
  config.train.batch_size = 8
  config.train.num_epochs = 1
  config.eval.exclude_seen = False
  config.eval.targets = "all"
  config.eval.targets_per_user = 4
  return config
