"""Synthetic users who act in several domains, with a known amount of transfer from the first domain to the others."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
from jaxtyping import Float, Int

from jaxrec.data.prepared import PreparedData

GENRES = (
  "mystery", "romance", "history", "space", "comedy", "travel", "sports", "cooking", "horror", "nature", "music", "war",
)  # fmt: skip
DOMAINS = ("book", "film", "game", "song", "toy", "podcast")

_START = 1_600_000_000  # September 2020.
_YEAR, _DAY, _MINUTE = 365 * 86_400, 86_400, 60


@dataclasses.dataclass(frozen=True)
class SyntheticOptions:
  """The process behind the events; `synthetic_data` explains each step.

  num_users: users.
  num_items: items of all domains together; spread evenly over domains and genres (a multiple of num_domains *
    num_genres).
  num_domains: domains; the first one is the source of the transfer.
  num_genres: latent genres, shared by all domains.
  mean_events: mean number of events of a user (geometric above the minimum of 6).
  transfer: 0..1, probability that an event outside domain 1 takes the genre of the user's latest event in domain 1.
  sequel: probability that an event is the next title after the user's latest one of that domain and genre.
  stay_in_genre: probability that an event keeps the genre of the one before it in the same domain and session.
  stay_in_domain: probability that an event is in the domain of the one before it.
  session_end: probability that a session ends after an event.
  concentration: of the Dirichlet distribution of each user's taste; small = few genres.
  popularity: exponent of the power law by which titles are drawn inside a genre.
  seed: the same seed gives the same data.
  """

  num_users: int = 2000
  num_items: int = 960
  num_domains: int = 2
  num_genres: int = 12
  mean_events: float = 40.0
  transfer: float = 0.7
  sequel: float = 0.5
  stay_in_genre: float = 0.8
  stay_in_domain: float = 0.7
  session_end: float = 0.15
  concentration: float = 0.3
  popularity: float = 0.8
  seed: int = 0


def synthetic_data(**options) -> PreparedData:
  """Returns the events of synthetic users, split leave-one-out.

  Each user has, in every domain, an own taste: a Dirichlet draw over the genres. Then, event by event:

  1. Domain: that of the event before with `stay_in_domain`, else any.
  2. Genre, in domain 1: the one before it in domain 1 with `stay_in_genre`; else, and at the start of a session, a draw
     from the taste. In another domain: with probability `transfer` the genre of the user's latest event in *domain 1*;
     otherwise the same rule as in domain 1, with the taste of that domain and the genre of its latest event that was
     not taken over. So with transfer = 1 only domain 1 tells the next genre in the others; with transfer = 0 it tells
     nothing about them.
  3. Title: with `sequel` the one after the user's latest title of that domain and genre ("book 17 (mystery)" after
     "book 16 (mystery)"); otherwise a draw by popularity, in which low numbers are popular. No title comes twice
     before the user has had all of that domain and genre.
  4. Time: a minute or so after the event before inside a session, a day or so after it between sessions.
  5. Action: a rating of 1..5 that is higher the more of the user's taste the genre has.

  So the last title, the latest genre in each domain, the latest genre in domain 1 and the time since the last event all
  help to predict, and popularity alone helps little. Item ids are shuffled: they say
  nothing about domain or genre.

  Args:
    **options: the fields of `SyntheticOptions`.

  Raises:
    ValueError: a field out of its range. TypeError: an unknown field.

  >>> data = synthetic_data(num_users=3, num_items=48, seed=1)
  >>> data.num_users, data.num_items, data.num_domains, data.domain_names
  (3, 48, 2, ('book', 'film'))
  """
  settings = SyntheticOptions(**options)
  _check(settings)
  rng = np.random.default_rng(settings.seed)
  lengths = 6 + rng.geometric(1 / max(1.0, settings.mean_events - 5), settings.num_users) - 1
  lengths = np.minimum(lengths, int(6 * settings.mean_events))
  steps = _simulate(rng, settings, int(lengths.max()))
  kept = np.arange(lengths.max()) < lengths[:, None]  # [U, T]
  events = {name: values[kept] for name, values in steps.items()}
  ids = rng.permutation(settings.num_items) + 1
  return PreparedData.from_columns(
    offsets=np.concatenate([[0], np.cumsum(lengths)]),
    item_id=ids[events["title"]],
    domain_id=events["domain"] + 1,
    timestamp=events["time"],
    action=events["action"],
    num_items=settings.num_items,
    domain_names=_domain_names(settings.num_domains),
    titles=_in_id_order(ids, _titles(settings)),
    item_domain=np.concatenate([[0], _in_id_order(ids, _title_domains(settings))]).astype(np.int32),
    source="synthetic",
    options=dataclasses.asdict(settings),
  )


# What `help` shows and what the command line accepts.
synthetic_data.__signature__ = inspect.signature(SyntheticOptions).replace(return_annotation=PreparedData)


def _simulate(rng, settings, num_steps):
  """All users at once, one event after another; arrays [U, T]."""
  users = np.arange(settings.num_users)
  shape = (settings.num_users, settings.num_domains)
  taste = rng.dirichlet(np.full(settings.num_genres, settings.concentration), shape)  # [U, C, G]
  genre_of = draw(rng, taste)  # [U, C], the latest genre of each domain's own chain
  latest = np.full((*shape, settings.num_genres), -1)  # [U, C, G], the latest title of each kind
  unseen = np.ones((*latest.shape, _series_length(settings)), bool)  # [U, C, G, titles]
  domain = rng.integers(settings.num_domains, size=settings.num_users)
  time = _START + rng.integers(_YEAR, size=settings.num_users)
  fresh = np.ones(shape, bool)  # Whether a session began since the chain's latest event.
  steps = {name: np.zeros((settings.num_users, num_steps), np.int64) for name in ("title", "domain", "time", "action")}
  for t in range(num_steps):
    moves = rng.random(settings.num_users) >= settings.stay_in_domain
    domain = np.where(moves, rng.integers(settings.num_domains, size=settings.num_users), domain)
    genre = _next_genre(rng, settings, taste, genre_of, fresh, domain)
    title = _next_title(rng, settings, latest[users, domain, genre], unseen[users, domain, genre])
    latest[users, domain, genre], unseen[users, domain, genre, title] = title, False
    steps["title"][:, t] = (domain * settings.num_genres + genre) * _series_length(settings) + title
    steps["domain"][:, t], steps["time"][:, t] = domain, time
    liking = taste[users, domain, genre] / taste[users, domain].max(axis=-1)
    steps["action"][:, t] = 1 + rng.binomial(4, 0.3 + 0.6 * liking)
    ends = rng.random(settings.num_users) < settings.session_end
    fresh |= ends[:, None]
    time = time + 1 + (np.where(ends, _DAY, _MINUTE) * rng.lognormal(0, 1, settings.num_users)).astype(np.int64)
  return steps


def _next_genre(rng, settings, taste, genre_of, fresh, domain):
  """The genre of the next event; one taken over from domain 1 leaves the own chain of its domain as it was."""
  users = np.arange(settings.num_users)
  own, drawn = genre_of[users, domain], draw(rng, taste[users, domain])
  stays = (rng.random(settings.num_users) < settings.stay_in_genre) & ~fresh[users, domain]
  transferred = (rng.random(settings.num_users) < settings.transfer) & (domain > 0)
  continued = np.where(transferred, own, np.where(stays, own, drawn))
  genre_of[users, domain], fresh[users, domain] = continued, fresh[users, domain] & transferred
  return np.where(transferred, genre_of[:, 0], continued)


def _next_title(rng, settings, latest, unseen):
  popularity = 1.0 / np.arange(1, unseen.shape[1] + 1) ** settings.popularity
  weights = popularity * (unseen | ~unseen.any(axis=1, keepdims=True))  # [U, titles]
  drawn = draw(rng, weights / weights.sum(axis=1, keepdims=True))
  following = np.minimum(latest + 1, unseen.shape[1] - 1)
  follows = (rng.random(len(latest)) < settings.sequel) & (latest >= 0) & unseen[np.arange(len(latest)), following]
  return np.where(follows, following, drawn)


def draw(rng: np.random.Generator, probabilities: Float[np.ndarray, "*batch G"]) -> Int[np.ndarray, "*batch"]:
  """One draw from each distribution along the last axis."""
  above = rng.random(probabilities.shape[:-1])[..., None] > np.cumsum(probabilities, axis=-1)
  return np.minimum(above.sum(axis=-1), probabilities.shape[-1] - 1)


def _series_length(settings):
  return settings.num_items // (settings.num_domains * settings.num_genres)


def _domain_names(num_domains):
  return [DOMAINS[d] if d < len(DOMAINS) else f"domain{d + 1}" for d in range(num_domains)]


def _titles(settings):
  genres = [GENRES[g] if g < len(GENRES) else f"genre{g + 1}" for g in range(settings.num_genres)]
  numbers = range(1, _series_length(settings) + 1)
  return [f"{name} {n} ({genre})" for name in _domain_names(settings.num_domains) for genre in genres for n in numbers]


def _title_domains(settings):
  return np.repeat(np.arange(1, settings.num_domains + 1), settings.num_genres * _series_length(settings))


def _in_id_order(ids, values):
  """Entry i belongs to item i + 1; `values` are in the order of the titles, whose ids are `ids`."""
  return [values[i] for i in np.argsort(ids)]


def _check(settings):
  for name in ("num_users", "num_items", "num_domains", "num_genres"):
    if getattr(settings, name) < 1:
      raise ValueError(f"{name}={getattr(settings, name)} must be at least 1")
  kinds = settings.num_domains * settings.num_genres
  if settings.num_items % kinds:
    raise ValueError(
      f"num_items={settings.num_items} must be a multiple of num_domains * num_genres = {kinds}, so that every genre of"
      f" every domain has equally many titles; try {max(1, round(settings.num_items / kinds)) * kinds}"
    )
  for name in ("transfer", "sequel", "stay_in_genre", "stay_in_domain", "session_end"):
    if not 0 <= getattr(settings, name) <= 1:
      raise ValueError(f"{name}={getattr(settings, name)} must be between 0 and 1")
  if settings.mean_events < 6:
    raise ValueError(f"mean_events={settings.mean_events} must be at least 6; a split needs some history")
  if settings.concentration <= 0:
    raise ValueError(f"concentration={settings.concentration} must be above 0")
