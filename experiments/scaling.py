"""Trains a grid of sizes and fits power laws of loss against compute. See `jaxrec.cli.scaling`.

python -m experiments.scaling --configs=experiments/configs/streaming.py:hstu --layers=1,2 --widths=16,32 --out=runs/law
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.scaling")
