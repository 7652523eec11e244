"""Raw events -> prepared columns -> batches. The modules are imported on use, so that `import jaxrec` stays fast.

`prepare` turns raw files into a folder of columns, `PreparedData` reads such a folder.
"""

from __future__ import annotations

import importlib

_LAZY = {"prepare": "jaxrec.data.preparation.prepare", "PreparedData": "jaxrec.data.prepared"}

__all__ = ["PreparedData", "prepare"]


def __getattr__(name: str):
  if name in _LAZY:
    return getattr(importlib.import_module(_LAZY[name]), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
