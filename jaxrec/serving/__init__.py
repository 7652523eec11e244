"""Inference with trained models: recommendations, event-by-event queries, search of long histories, exported models."""

from __future__ import annotations

__all__ = ["load_artifact"]


def __getattr__(name: str):
  if name == "load_artifact":
    from jaxrec.serving.artifact import load_artifact  # Imports polars.

    return load_artifact
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
