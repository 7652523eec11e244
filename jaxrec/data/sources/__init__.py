"""Data sources: each reads raw files into an `InteractionLog`. See `table.py` for the names of the columns."""

from jaxrec.data.sources.registry import SOURCES, InteractionLog, source_names, source_reader

__all__ = ["SOURCES", "InteractionLog", "source_names", "source_reader"]
