"""The command `jaxrec`, also `python -m jaxrec.cli`: `jaxrec train --config=...`, `jaxrec prepare ...`."""

from __future__ import annotations

import sys

from jaxrec.cli.process import start

PROGRAMS = (
  "prepare", "audit", "certificate", "train", "evaluate", "recommend", "export", "export-vectors", "serve", "sweep",
  "rolling", "scaling", "push", "pull", "check", "demo",
)  # fmt: skip


def main() -> None:
  """Runs the program named by the first argument."""
  if len(sys.argv) < 2 or sys.argv[1] not in PROGRAMS:
    sys.exit(f"usage: jaxrec {{{','.join(PROGRAMS)}}} [--flags]; `jaxrec train --help` lists the flags of a program")
  program = sys.argv.pop(1)
  start(f"jaxrec.cli.{program.replace('-', '_')}")


if __name__ == "__main__":
  main()
