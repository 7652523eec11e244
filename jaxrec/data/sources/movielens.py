"""MovieLens 100K, 1M, 20M, 25M and 32M. The catalogue is the movies file, including movies without ratings.

Terms: GroupLens, research use, no redistribution. Source: https://grouplens.org/datasets/movielens/
"""

from __future__ import annotations

import pathlib

import polars as pl

from jaxrec.data import event_values
from jaxrec.data.sources.reading import Column, find_file, line_chunks, read_columns
from jaxrec.data.sources.registry import InteractionLog

_GENRES_100K = (
  "unknown",
  "Action",
  "Adventure",
  "Animation",
  "Children's",
  "Comedy",
  "Crime",
  "Documentary",
  "Drama",
  "Fantasy",
  "Film-Noir",
  "Horror",
  "Musical",
  "Mystery",
  "Romance",
  "Sci-Fi",
  "Thriller",
  "War",
  "Western",
)


def read_100k(raw: str | pathlib.Path, *, domain: str = "one") -> InteractionLog:
  """Returns MovieLens 100K: `u.data` (separated by tabs) and `u.item` (`|`, Latin-1); arguments as in `read_1m`."""
  ratings = read_columns(find_file(raw, "u.data", "*/u.data"), _rating_columns(), separator="\t")
  movies = _split_lines(find_file(_folder(raw), "u.item", "*/u.item"), "|", 24, "latin-1")
  flags = [pl.when(pl.col("fields").list.get(5 + i) == "1").then(pl.lit(genre)) for i, genre in enumerate(_GENRES_100K)]
  movies = movies.with_columns(genres=pl.concat_str(flags, separator="|", ignore_nulls=True))
  return _log(ratings, movies, domain, half_stars=False)


def read_1m(raw: str | pathlib.Path, *, domain: str = "one") -> InteractionLog:
  """Returns MovieLens 1M: `ratings.dat` and `movies.dat` (separated by `::`, Latin-1). The action is the rating.

  Args:
    raw: the folder of the two files.
    domain: "one" for a single domain; "first_genre" for the first genre of the movie in the movies file.

  Raises:
    ValueError: an unknown domain, a missing file or a bad row.
  """
  ratings = read_columns(find_file(raw, "ratings.dat", "*/ratings.dat"), _rating_columns(), separator="::")
  movies = _split_lines(find_file(_folder(raw), "movies.dat", "*/movies.dat"), "::", 3, "latin-1")
  return _log(ratings, movies.with_columns(genres=pl.col("fields").list.get(2)), domain, half_stars=False)


def read_csv(raw: str | pathlib.Path, *, domain: str = "one") -> InteractionLog:
  """Returns MovieLens 20M, 25M or 32M: `ratings.csv` and `movies.csv`; arguments as in `read_1m`.

  The action is the rating in half stars, 1 to 10.
  """
  names = {
    "userId": Column(pl.Int64),
    "movieId": Column(pl.Int64),
    "rating": Column(pl.Float32),
    "timestamp": Column(pl.Int64, unit="s"),
  }
  ratings = read_columns(find_file(raw, "ratings.csv", "*/ratings.csv"), names, header=True)
  ratings = ratings.rename({"userId": "user", "movieId": "item"})
  titles = {"movieId": Column(pl.Int64), "title": Column(pl.String), "genres": Column(pl.String, optional=True)}
  movies = read_columns(find_file(_folder(raw), "movies.csv", "*/movies.csv"), titles, header=True, quote='"')
  return _log(ratings, movies.rename({"movieId": "item"}), domain, half_stars=True)


def _rating_columns() -> dict[str, Column]:
  return {
    "user": Column(pl.Int64),
    "item": Column(pl.Int64),
    "rating": Column(pl.Float32),
    "timestamp": Column(pl.Int64, unit="s"),
  }


def _folder(raw: str | pathlib.Path) -> pathlib.Path:
  raw = pathlib.Path(raw)
  return raw.parent if raw.is_file() else raw


def _split_lines(path: pathlib.Path, separator: str, num_fields: int, encoding: str) -> pl.DataFrame:
  """Returns item, title and all fields of a small file; titles may hold any character except the separator."""
  text = b"".join(chunk.data for chunk in line_chunks(path)).decode(encoding).rstrip("\n")
  table = pl.DataFrame({"line": [line.rstrip("\r") for line in text.split("\n")]})
  table = table.with_columns(fields=pl.col("line").str.split(separator)).with_row_index("row", offset=1)
  table = table.with_columns(
    item=pl.col("fields").list.get(0, null_on_oob=True).cast(pl.Int64, strict=False),
    title=pl.col("fields").list.get(1, null_on_oob=True),
  )
  bad = table.filter((pl.col("fields").list.len() != num_fields) | pl.col("item").is_null()).head(1)
  if len(bad):
    raise ValueError(
      f"{path}: line {bad['row'][0]}: needs a movie id and {num_fields} columns separated by {separator!r}: "
      f"{bad['line'][0]!r}"
    )
  return table


def _log(ratings: pl.DataFrame, movies: pl.DataFrame, domain: str, half_stars: bool) -> InteractionLog:
  movies = movies.select("item", "title", "genres")
  unit = 2 if half_stars else 1
  place = event_values.at_rows("ratings", "rating")
  events = ratings.with_columns(event_values.rating_actions(ratings["rating"], place, unit).alias("action"))
  if domain == "one":
    return InteractionLog(events, items=movies, domains=("movies",), raw_rows=len(ratings))
  if domain != "first_genre":
    raise ValueError(f"{domain=} is not known; give 'one' or 'first_genre'")
  movies = movies.with_columns(domain=pl.col("genres").fill_null("").str.split("|").list.first().replace("", "unknown"))
  return InteractionLog(events, items=movies, raw_rows=len(ratings))
