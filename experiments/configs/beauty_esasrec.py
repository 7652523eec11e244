"""eSASRec on Amazon Beauty (2014, 5-core): one LiGR layer of width 256 with a sampled softmax (arXiv 2508.06450).

    python -m experiments.train --config=experiments/configs/beauty_esasrec.py --workdir=runs/beauty_esasrec

Protocol: see `beauty_hstu`; the target's time is not given, positions are absolute.

| HR@10 / NDCG@10 | validation | test, the same parameters |
|---|---|---|
| published, the authors' own: .0928 / .0523; SASRec with a sampled softmax .0921 / .0531 | | |
| this config, mean of three seeds | .1119 ± .0011 / .0689 ± .0002 | .0920 ± .0006 / .0561 ± .0002 |
| 40 epochs, one seed | .1111 / .0689 | .0896 / .0549 |
| two layers of width 64, hidden 256, 40 epochs, one seed | .1092 / .0665 | .0875 / .0533 |
| Sports, published: .0560 / .0323; SASRec with a sampled softmax .0569 / .0314 | | |
| Sports, this config, one seed | .0628 / .0373 | .0503 / .0298 |

Seeds 1 to 3; 1. The best epoch is the last one. Sports: --config.data.options="{'name': 'Sports_and_Outdoors'}"; two
layers of width 64 are level with this config there (experiments/results/quality.md). Time: 840 steps in 17 minutes on
one CPU core beside other programs.

Choice: 20 epochs with cosine decay, 1,024 negatives shared by a row and cosines over a temperature of .05, where the
paper has dot products, 256 negatives of each position, dropout .2 and up to 200 epochs.
"""

from experiments.configs import beauty_hstu


def get_config():
  """Returns the settings of eSASRec on Beauty."""
  config = beauty_hstu.get_config()
  config.name = "beauty_esasrec"
  config.model = dict(
    name="sasrec", layer="ligr", width=256, num_layers=1, num_heads=1, hidden=1024,
    max_positions=61, input_dropout=0.5, dropout=0.5,
  )  # fmt: skip
  config.train.num_epochs = 20
  config.train.retrain = False
  return config
