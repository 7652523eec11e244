"""Data sources: each reads raw files into an `InteractionLog`. See `table.py` for the names of the columns."""

from jaxrec.data.sources.registry import GENERATED, SOURCES, InteractionLog, generator, source_names, source_reader

__all__ = ["GENERATED", "SOURCES", "InteractionLog", "generator", "source_names", "source_reader"]
