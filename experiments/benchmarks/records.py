"""Records of benchmarks: JSON lines that name the machine."""

from __future__ import annotations

import json
from typing import Any


def publish(record: dict[str, Any], out: str | None) -> None:
  """Prints a record as a JSON line and appends it to the file `out`, if given."""
  line = json.dumps(record)
  print(line, flush=True)
  if out:
    with open(out, "a", encoding="utf-8") as file:
      file.write(line + "\n")
