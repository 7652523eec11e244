"""Runs a grid of configs, overrides and seeds, and prints means and deviations. See `jaxrec.cli.sweep`.

python -m experiments.sweep --configs=experiments/configs/ml1m_hstu.py --seeds=1,2,3 --out=runs/sweep
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.sweep")
