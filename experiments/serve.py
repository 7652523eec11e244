"""Answers HTTP requests with a model. See `jaxrec.cli.serve`.

python -m experiments.serve --workdir=runs/demo
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.serve")
