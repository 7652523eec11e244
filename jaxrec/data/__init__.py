"""Raw events -> prepared columns -> batches. Modules are imported on first use, so that `import jaxrec` stays fast.

- `sources/` read raw files into interaction logs, `generators/` simulate users;
- `preparation/` turns a log into `PreparedData`: columns on disk (`prepare`, or `load_data` for a config);
- `batches/` turns prepared data into training and evaluation batches.
"""

from __future__ import annotations

import importlib

_MODULE_OF_NAME = {
  "PreparedData": "jaxrec.data.prepared",
  "load_data": "jaxrec.data.load",
  "only_domain": "jaxrec.data.single_domain",
  "prepare": "jaxrec.data.preparation.prepare",
}

__all__ = ["PreparedData", "load_data", "only_domain", "prepare"]


def __getattr__(name: str):
  if name in _MODULE_OF_NAME:
    return getattr(importlib.import_module(_MODULE_OF_NAME[name]), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
