"""AutoCDSR+ as its authors built it (arXiv 2505.21811), taken apart: which part of it makes the difference?

    python -m experiments.train --config=experiments/configs/autocdsr_plus.py:abxi-pareto-usual --workdir=runs/plus

The argument is the data (abxi, kuairand, kuairand_core), a model and a start:

| model | |
|---|---|
| `blind` | BERT4Rec of six layers that sees no domain |
| `domain` | the same with an embedding of each event's domain |
| `encoders` | three layers for each domain, which exchange nothing, below three layers over all events |
| `bottleneck` | the same with four bottleneck tokens between the domains |
| `pareto` | the same, and attention to these tokens is the second objective, weighted by the published rule |

| start | |
|---|---|
| `uniform` | all parameters, scales of norms too, uniform in +-.05, a constant learning rate of 3e-5: as published |
| `usual` | as the layers define, and the optimizer of `abxi` or `kuairand` |

`encoders` against `bottleneck` shows what the exchange gives, `bottleneck` against `pareto` what the second objective
adds, `domain` against `blind` what a comparison with a model that sees no domain leaves to explain. None was measured.
On one core 100 epochs of `abxi` take about 9 minutes with two layers; with six, or three in each of two domains and
three above, about 25 to 35. `kuairand` has seven domains, so 21 layers below the shared ones; published were two.
"""

from ml_collections import ConfigDict

from experiments.configs import abxi, kuairand, kuairand_core

DATA = {"abxi": abxi, "kuairand": kuairand, "kuairand_core": kuairand_core}
BLIND = {"num_layers": 6}
ENCODERS = {"name": "domain_encoders", "num_layers": 3, "num_domain_layers": 3, "bottleneck_stride": 2}
MODELS = {
  "blind": BLIND,
  "domain": BLIND | {"event_domain": True},
  "encoders": ENCODERS | {"num_bottlenecks": 0},
  "bottleneck": ENCODERS | {"num_bottlenecks": 4},
  "pareto": ENCODERS | {"num_bottlenecks": 4},
}
STARTS = ("uniform", "usual")


def get_config(choice: str = "abxi-pareto-usual") -> ConfigDict:
  """Returns the settings of a data set, a model and a start; see the module.

  Raises:
    ValueError: a choice that is not made of these.
  """
  data, model, start = (choice.split("-") + 3 * [""])[:3]
  if choice.count("-") != 2 or data not in DATA or model not in MODELS or start not in STARTS:
    raise ValueError(f"{choice=} must be <data>-<model>-<start> of {tuple(DATA)}, {tuple(MODELS)} and {STARTS}")
  config = DATA[data].get_config("bert4rec-base")
  config.name = f"autocdsr_plus_{data}_{model}_{start}"
  config.model.update(MODELS[model])
  if model == "pareto":
    config.multi_objective.objectives = ("cross_domain_attention",)
    config.multi_objective.score = "all_keys"
  if start == "uniform":
    config.train.uniform_start = 0.05
    config.optimizer.learning_rate, config.optimizer.schedule, config.optimizer.warmup_steps = 3e-5, "constant", 0
  return config
