"""Trains any task from a config; the same command resumes an interrupted run. See `jaxrec.cli.train`.

python -m experiments.train --config=experiments/configs/ml1m_hstu.py --workdir=runs/ml1m_hstu
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.train")
