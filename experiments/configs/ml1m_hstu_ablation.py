"""What HSTU-large on MovieLens-1M lacks: one change at a time, judged on validation events.

    python -m experiments.train --config=experiments/configs/ml1m_hstu_ablation.py:position128 --workdir=runs/ablation

The argument is a variant of the table. An independent re-run with the same order of ties (RecTools' tutorial) has
.3642 / .2164 on test, HSTU-large had .3404 / .1994 here. It has 128 negatives for each position, temperature .05, a
constant learning rate of 1e-3 and at most 100 epochs; `recipe` has all of these, the other variants one change each.
Later 1,024 negatives and 100 epochs with cosine decay gave .3730 / .2263: `ml1m_hstu_large` now, while `base` is its
"short".
`python -m experiments.configs.ml1m_hstu_ablation` prints the command of a sweep over all variants.

| variant | change | minutes on one core |
|---|---|---|
| `base` | `ml1m_hstu_large` without the retraining | 57 |
| `position128` | 128 negatives for each position instead of 256 shared by a row | 83 |
| `negatives512`, `negatives1024` | so many negatives, shared by a row | 65, 80 |
| `full_softmax` | all 3,883 movies in the loss | 85 |
| `constant100` | a constant learning rate of 1e-3, 100 epochs | 180 |
| `cosine64` | twice the epochs | 114 |
| `recipe` | `position128` and `constant100` | 260 |
| `dropout.1`, `dropout.3` | rate of both dropouts instead of .2 | 57 |
| `dropout_output` | dropout on the output of a layer instead of the gated attention (`dropout_on`) | 57 |
| `input_dropout` | dropout of the embedded events only | 55 |
| `keys` | weights divided by the number of keys a query reads (`normalizer`) | 58 |
| `tables_by_head` | bias tables of each head (`bias_tables`); each layer has its own anyway | 60 |
| `decay.01`, `decay.1` | decoupled weight decay | 57 |
| `average` | moving average of the parameters over about 4 epochs | 58 |
| `width64`, `width100` | of the model, heads of half of it | 65, 120 |

Estimates, from 57 minutes for `base` on a shared core and the recorded step of 128 negatives a position; none of these
runs was made. One seed of all variants takes about 27 hours of one core. What wins goes into `ml1m_hstu_large` with
three seeds.
"""

from ml_collections import ConfigDict

from experiments.configs import ml1m_hstu, ml1m_hstu_large

_CONSTANT = {"optimizer": dict(schedule="constant", warmup_steps=0, learning_rate=1e-3), "train": dict(num_epochs=100)}
_POSITION = {"objective": dict(sharing="position", num_negatives=128)}
VARIANTS = {
  "base": {},
  "position128": _POSITION,
  "negatives512": {"objective": dict(num_negatives=512)},
  "negatives1024": {"objective": dict(num_negatives=1024)},
  "full_softmax": {"objective": dict(name="full_softmax")},
  "constant100": _CONSTANT,
  "cosine64": {"train": dict(num_epochs=64)},
  "recipe": _POSITION | _CONSTANT,
  "dropout.1": {"model": dict(input_dropout=0.1, dropout=0.1)},
  "dropout.3": {"model": dict(input_dropout=0.3, dropout=0.3)},
  "dropout_output": {"model": dict(dropout_on="output")},
  "input_dropout": {"model": dict(dropout=0.0)},
  "keys": {"model": dict(normalizer="keys")},
  "tables_by_head": {"model": dict(bias_tables="head")},
  "decay.01": {"optimizer": dict(weight_decay=0.01)},
  "decay.1": {"optimizer": dict(weight_decay=0.1)},
  "average": {"train": dict(average=0.995)},
  "width64": {"model": dict(width=64, head_width=32, value_width=32)},
  "width100": {"model": dict(width=100, head_width=50, value_width=50)},
}


def get_config(choice: str = "base") -> ConfigDict:
  """Returns the settings of a variant; see the module.

  Raises:
    ValueError: another variant.
  """
  if choice not in VARIANTS:
    raise ValueError(f"{choice=} must be one of {tuple(VARIANTS)}")
  config = ml1m_hstu_large.get_config(ml1m_hstu.SHORT)
  config.name = f"ml1m_hstu_ablation_{choice}"
  config.train.retrain = False
  for group, changes in VARIANTS[choice].items():
    config[group].update(changes)
  return config


if __name__ == "__main__":
  configs = ",".join(f"experiments/configs/ml1m_hstu_ablation.py:{name}" for name in VARIANTS)
  print(f"python -m experiments.sweep --configs={configs} --seeds=1 --out=runs/ablation")
