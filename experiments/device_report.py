"""Says of the device at hand what is right and how fast. See `jaxrec.cli.check`.

python -m experiments.device_report --quick --out=report
"""

from jaxrec.cli.process import start

if __name__ == "__main__":
  start("jaxrec.cli.check")
