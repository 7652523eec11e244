"""Says whether a data set has negative transfer between its domains. See `jaxrec.cli.certificate`.

python -m experiments.certificate --config=experiments/configs/abxi.py --out=runs/certificate --seeds=1,2,3
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.certificate")
