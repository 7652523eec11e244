"""Decoupled tables (DARE, arXiv 2410.02604) in sequence encoders: do they help HSTU and SASRec?

    python -m experiments.train --config=experiments/configs/decoupled.py:planted-hstu-decoupled --workdir=runs/hstu

The argument is the data (planted, ml1m, beauty, taobao), an encoder (hstu, sasrec) and the tables (shared, decoupled).
"decoupled": all layers make their queries and keys from a second item table of the same width. Everything else is as in
the configs `planted` (base), `ml1m_hstu`, `ml1m_sasrec` or `beauty_hstu`; SASRec on Beauty has the dropout of HSTU
there. Taobao (views, users and items with 5 or more) has the settings of Beauty with histories of 200.

| planted, HR@10 / NDCG@10 | validation | test, the same parameters |
|---|---|---|
| SASRec, shared | .2615 / .1577 | .1070 / .0547 |
| SASRec, decoupled | .3130 / .2192 | .1085 / .0611 |
| HSTU, shared | .2590 / .1708 | .0610 / .0266 |
| HSTU, decoupled | .2055 / .1308 | .0500 / .0231 |

One seed (42) each, 50 epochs in 3 to 8 minutes on one shared CPU core.

| test NDCG@10 | seeds | shared | decoupled | difference, 95% |
|---|---|---|---|---|
| Taobao, excerpt, SASRec | 5 | .6120 | .6198 | +.008 (+.002 to +.013) |
| Taobao, excerpt, HSTU | 5 | .5879 | .5688 | -.019 (-.032 to -.006) |
| Beauty, SASRec | 2 | .0501 | .0507 | +.001 (-.000 to +.001) |
| Beauty, HSTU | 2 | .0549 | .0520 | -.003 (-.005 to -.000) |
| MovieLens-1M, SASRec, 40 of 80 epochs | 2 | .1606 | .1605 | -.000 (-.004 to +.004) |
| MovieLens-1M, HSTU, 20 of 40 epochs | 3 | .1634 | .1640 | +.001 (-.004 to +.005) |

Taobao: 396 targets, 10 to 20 seconds each; views repeat, so metrics are high. Beauty: 2 to 4 minutes; MovieLens: 4 to
10, HSTU at its best in the last epoch. Lines: `experiments/results/decoupled.jsonl`. They help SASRec and hurt HSTU on
Taobao, hurt HSTU a little on Beauty, and make no difference that can be told on MovieLens-1M and for SASRec on Beauty.
"""

from ml_collections import ConfigDict

from experiments.configs import beauty_hstu, ml1m_hstu, ml1m_sasrec, planted

DATA = ("planted", "ml1m", "beauty", "taobao")
ENCODERS = ("hstu", "sasrec")
TABLES = ("shared", "decoupled")


def get_config(choice: str = "planted-hstu-decoupled") -> ConfigDict:
  """Returns the settings of a data set, an encoder and its tables; see the module.

  Raises:
    ValueError: a choice that is not made of these.
  """
  data, encoder, tables = (choice.split("-") + 3 * [""])[:3]
  if choice.count("-") != 2 or data not in DATA or encoder not in ENCODERS or tables not in TABLES:
    raise ValueError(f"{choice=} must be <data>-<encoder>-<tables> of {DATA}, {ENCODERS} and {TABLES}")
  if data == "planted":
    config = planted.get_config(f"{encoder}-base")
  elif data in ("beauty", "taobao"):
    config = _like_beauty(data, encoder)
  else:
    config = ml1m_hstu.get_config(ml1m_hstu.SHORT) if encoder == "hstu" else ml1m_sasrec.get_config()
  config.name = "decoupled"
  if tables == "decoupled":
    config.model.attention_width = config.model.width
  return config


def _like_beauty(data, encoder):
  config = beauty_hstu.get_config()
  if encoder == "sasrec":
    config.model = dict(
      name="sasrec", width=64, num_layers=2, num_heads=2, hidden=64, feed_forward_activation="relu", max_positions=61,
      input_dropout=0.5, dropout=0.5,
    )  # fmt: skip
  if data == "taobao":
    config.data.source = "taobao"
    config.data.options = {"behaviors": "pv", "min_user_events": 5, "min_item_events": 5}
    config.data.max_length = 200
    config.train.batch_size = 64  # The excerpt has several hundred users.
    config.model.max_positions = 211
    if encoder == "hstu":
      config.model.attention_length = 211
  return config
