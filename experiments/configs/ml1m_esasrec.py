"""eSASRec on MovieLens-1M: SASRec's training with LiGR layers and a sampled softmax (arXiv 2508.06450).

    python -m experiments.train --config=experiments/configs/ml1m_esasrec.py --workdir=runs/ml1m_esasrec

Protocol: see `ml1m_hstu`; dropout of `ml1m_sasrec`, 1,024 negatives and 60 epochs as in `ml1m_hstu`.

| HR@10 / NDCG@10 | |
|---|---|
| published, stable order of ties, without the target's time (SASRec with the same loss .2929 / .1684) | .3133 / .1772 |
| validation, epoch 60 of 60 | .3172 / .1815 |
| test, the same parameters | .3056 / .1749 |

One seed (1). Time: 2,820 steps in about 30 minutes on one CPU core.

Choice: cosines over a temperature of .05, as of the other models here, where the paper has dot products. Hidden layers
are four times as wide as the model, as in the paper's code, so that a layer has 45,500 parameters, and 15,300 in
`ml1m_sasrec`.
"""

from experiments.configs import ml1m_sasrec


def get_config():
  """Returns the settings of eSASRec."""
  config = ml1m_sasrec.get_config()
  config.name = "ml1m_esasrec"
  config.data.row_length = 256
  config.objective.num_negatives = 1024
  config.train.num_epochs = 60
  config.train.evaluate_every_epochs = 4
  config.model = dict(
    name="sasrec", layer="ligr", width=50, num_layers=2, num_heads=1, hidden=200,
    max_positions=211, input_dropout=0.2, dropout=0.2,
  )  # fmt: skip
  return config
