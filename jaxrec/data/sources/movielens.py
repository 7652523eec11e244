"""MovieLens 100K, 1M, 20M, 25M and 32M. The catalogue is the movies file, including movies without ratings.

Terms: GroupLens, research use, no redistribution. Source: https://grouplens.org/datasets/movielens/
"""

from __future__ import annotations

import pathlib

import polars as pl

from jaxrec.data import event_values
from jaxrec.data.sources.catalogue_rows import check_catalogue
from jaxrec.data.sources.reading import find_file, read_columns
from jaxrec.data.sources.registry import InteractionLog
from jaxrec.data.sources.text_format import Column, TextFormat

_ACTION_KINDS = {"rating": "regression", "liked": "binary"}
_LIKED = 4.0  # Stars.
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


def read_100k(
  raw: str | pathlib.Path, *, domain: str = "one", quote: str = "", encoding: str = "latin-1"
) -> InteractionLog:
  """Returns MovieLens 100K: `u.data` (separated by tabs) and `u.item` (`|`, Latin-1); arguments as in `read_1m`."""
  names = ["item", "title", "date", "video_date", "url", *_GENRES_100K]
  columns = {name: Column(pl.String, optional=True) for name in names} | {"item": Column(pl.Int64)}
  files = _files(raw, "u.data", "u.item")
  ratings = read_columns(files[0], _rating_columns(), TextFormat("\t", quote, encoding))
  movies = read_columns(files[1], columns, TextFormat("|", quote, encoding))
  flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES_100K]
  movies = movies.with_columns(genres=pl.concat_str(flags, separator="|", ignore_nulls=True))
  return _log(ratings, movies, domain, files)


def read_1m(
  raw: str | pathlib.Path, *, domain: str = "one", quote: str = "", encoding: str = "latin-1"
) -> InteractionLog:
  """Returns MovieLens 1M: `ratings.dat` and `movies.dat` (separated by `::`, Latin-1). The action is the rating.

  Typed actions: `rating` in stars (regression), and `liked`, whether it is 4 or more (binary).

  Args:
    raw: the folder of the two files.
    domain: "one" for a single domain; "first_genre" for the first genre of the movie in the movies file.
    quote, encoding: of the files, as in `TextFormat`.

  Raises:
    ValueError: an unknown domain, a missing file or a bad row.
  """
  columns = {"item": Column(pl.Int64), "title": Column(pl.String), "genres": Column(pl.String, optional=True)}
  files = _files(raw, "ratings.dat", "movies.dat")
  form = TextFormat("::", quote, encoding)
  return _log(read_columns(files[0], _rating_columns(), form), read_columns(files[1], columns, form), domain, files)


def read_csv(
  raw: str | pathlib.Path, *, domain: str = "one", quote: str | None = None, encoding: str = "utf-8"
) -> InteractionLog:
  """Returns MovieLens 20M, 25M or 32M: `ratings.csv` and `movies.csv`; arguments as in `read_1m`.

  The action is the rating in half stars, 1 to 10.
  """
  names = {
    "userId": Column(pl.Int64),
    "movieId": Column(pl.Int64),
    "rating": Column(pl.Float32),
    "timestamp": Column(pl.Int64, unit="s"),
  }
  form, files = TextFormat(",", quote, encoding), _files(raw, "ratings.csv", "movies.csv")
  ratings = read_columns(files[0], names, form, header=True).rename({"userId": "user", "movieId": "item"})
  titles = {"movieId": Column(pl.Int64), "title": Column(pl.String), "genres": Column(pl.String, optional=True)}
  movies = read_columns(files[1], titles, form, header=True).rename({"movieId": "item"})
  return _log(ratings, movies, domain, files, half_stars=True)


def _files(raw: str | pathlib.Path, ratings: str, movies: str) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns the paths of the two files; `raw` is their folder, the folder around it, or the file of ratings."""
  found = find_file(raw, ratings, f"*/{ratings}")
  return found, find_file(found.parent, movies)


def _rating_columns() -> dict[str, Column]:
  return {
    "user": Column(pl.Int64),
    "item": Column(pl.Int64),
    "rating": Column(pl.Float32),
    "timestamp": Column(pl.Int64, unit="s"),
  }


def _log(
  ratings: pl.DataFrame,
  movies: pl.DataFrame,
  domain: str,
  files: tuple[pathlib.Path, pathlib.Path],
  half_stars: bool = False,
) -> InteractionLog:
  movies = movies.select("item", "title", "genres")
  check_catalogue(ratings, movies, *files, lines_above=1 if half_stars else 0)
  unit = 2 if half_stars else 1
  place = event_values.at_rows(files[0], "rating", 2 if half_stars else 1, "line")
  events = ratings.with_columns(
    event_values.rating_actions(ratings["rating"], place, unit).alias("action"),
    pl.col("rating").alias("action.rating"),
    (pl.col("rating") >= _LIKED).cast(pl.UInt8).alias("action.liked"),
  )
  if domain == "one":
    return InteractionLog(events, movies, domains=("movies",), raw_rows=len(ratings), action_kinds=_ACTION_KINDS)
  if domain != "first_genre":
    raise ValueError(f"{domain=} is not known; give 'one' or 'first_genre'")
  movies = movies.with_columns(domain=pl.col("genres").fill_null("").str.split("|").list.first().replace("", "unknown"))
  return InteractionLog(events, items=movies, raw_rows=len(ratings), action_kinds=_ACTION_KINDS)
