"""Prints what users did and what a trained model recommends next. See `jaxrec.cli.recommend`.

python -m experiments.recommend --workdir=runs/ml1m_hstu --user=17
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.recommend")
