"""Programs, configs, benchmarks and results of experiments; the programs are in `jaxrec.cli`."""

import sys
from itertools import pairwise

from jaxrec.cli.process import restart_with_huge_pages

if any(flag == "-m" and name.startswith("experiments.") for flag, name in pairwise(sys.orig_argv)):
  restart_with_huge_pages()  # Benchmarks and tables, which have no `start`, shall run at the speed of training.
