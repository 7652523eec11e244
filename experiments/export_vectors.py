"""Writes the vectors of all items and users of a run. See `jaxrec.cli.export_vectors`.

python -m experiments.export_vectors --workdir=runs/demo --out=vectors
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.export_vectors")
