"""Writes generated `ratings.csv` and `movies.csv` in the format of MovieLens 20M, by default of its size.

    PYTHONPATH=. python tests/programs/movielens_files.py --folder=files  # 20 million ratings, half a gigabyte
    python -m experiments.prepare --source=movielens-20m --raw=files --out=data/ml20m_size

Real: 138,493 users with 20 ratings or more, 144 in the mean and 68 in the median, of 27,278 movies. Generated: a
log-normal number above 20 with that mean and median; the popularity of movies is 1 / (rank + 100); no user rates a
movie twice; tastes and times are random. So times and memory are near those of the real files, and metrics say nothing.
"""

import argparse
import pathlib

import numpy as np
import polars as pl

USERS, MOVIES = 138_493, 27_278
BLOCK = 10_000  # Users whose ratings are drawn at once.
GENRES = ("Action", "Comedy|Romance", "Documentary", "Drama", "Drama|Thriller")


def ratings_of(first, count, rng, movies):
  """Returns the ratings of `count` users, the first of whom is `first`, ordered by user and movie as in the files."""
  lengths = np.minimum(20 + rng.lognormal(np.log(48), 1.377, count), movies // 4).astype(np.int64)
  cumulative = np.cumsum(1 / (np.arange(movies) + 100))
  drawn = np.repeat(np.arange(count), 3 * lengths)  # More than needed: a movie that comes again is left out.
  movie = np.searchsorted(cumulative, rng.random(len(drawn)) * cumulative[-1])
  _, order = np.unique(drawn * movies + movie, return_index=True)
  order = np.sort(order)  # The first time of each movie.
  drawn, movie = drawn[order], movie[order]
  before = np.arange(len(drawn)) - np.searchsorted(drawn, drawn)
  drawn, movie = drawn[before < lengths[drawn]], movie[before < lengths[drawn]]
  table = {
    "userId": drawn + first, "movieId": movie + 1, "rating": rng.integers(1, 11, len(drawn)) / 2,
    "timestamp": rng.integers(789_652_009, 1_427_784_002, len(drawn)),
  }  # fmt: skip
  return pl.DataFrame(table).sort("userId", "movieId")


def write_files(folder, users=USERS, movies=MOVIES, seed=0):
  """Writes the two files; returns the number of ratings."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = 0
  with open(folder / "ratings.csv", "wb") as file:
    for first in range(0, users, BLOCK):
      rng = np.random.default_rng((seed, first))
      table = ratings_of(first + 1, min(BLOCK, users - first), rng, movies)
      table.write_csv(file, include_header=first == 0)
      rows += len(table)
  names = pl.DataFrame({"movieId": np.arange(1, movies + 1)})
  genres = pl.Series(GENRES).gather(np.arange(movies) % len(GENRES))
  title = pl.format("Film {} ({})", "movieId", 1920 + pl.col("movieId") % 96)
  names.with_columns(title=title, genres=genres).write_csv(folder / "movies.csv")
  return rows


def main():
  parser = argparse.ArgumentParser(description="Writes files in the format of MovieLens 20M.")
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="where the files go")
  parser.add_argument("--users", type=int, default=USERS, help="number of users")
  parser.add_argument("--movies", type=int, default=MOVIES, help="number of movies")
  arguments = parser.parse_args()
  print(f"{write_files(arguments.folder, arguments.users, arguments.movies):,} ratings in {arguments.folder}")


if __name__ == "__main__":
  main()
