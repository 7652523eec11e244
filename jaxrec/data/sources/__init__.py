"""Data sources: each reads raw files into an `InteractionLog`. `table` reads any CSV or Parquet file."""

from jaxrec.data.sources.registry import GENERATED, SOURCES, InteractionLog, generator, source_names, source_reader

__all__ = ["GENERATED", "SOURCES", "InteractionLog", "generator", "source_names", "source_reader"]
