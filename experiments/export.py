"""Writes the model of a run as a folder that runs without jaxrec. See `jaxrec.cli.export`.

python -m experiments.export --workdir=runs/demo --out=artifact
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.export")
