"""Re-evaluates a checkpoint, next to popularity and random order. See `jaxrec.cli.evaluate`.

python -m experiments.evaluate --workdir=runs/ml1m_hstu --split=test --ks=1,10,50
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.evaluate")
