"""Audits prepared data: ties, duplicates, popularity of targets, leakage of time. See `jaxrec.cli.audit`.

python -m experiments.audit --data=prepared/ml1m
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.audit")
