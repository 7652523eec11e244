"""Trains the demo and shows what it recommends. See `jaxrec.cli.demo`.

make demo        or: python -m experiments.demo [FOLDER]
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.demo")
