"""Programs: prepare, train, evaluate, recommend, sweep, demo."""

import sys

from jaxrec.cli.process import restart_with_huge_pages

if any(
  pair[0] == "-m" and pair[1].startswith("experiments.") for pair in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
):
  restart_with_huge_pages()  # `python -m experiments.…`, not an import from elsewhere
