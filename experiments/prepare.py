"""Turns raw files into prepared data. See `jaxrec.cli.prepare`.

python -m experiments.prepare --source=movielens-1m --out=prepared/ml1m
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.prepare")
