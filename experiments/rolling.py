"""Trains a model at several cuts in time, beside popularity of the last days. See `jaxrec.cli.rolling`.

python -m experiments.rolling --config=experiments/configs/beauty_hstu.py --out=runs/beauty_rolling --cuts=4
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.rolling")
