"""Simulated users who act in several domains, with a known amount of transfer from the first domain to the others."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxrec.data.generators.common import (
  START_SECOND,
  check_ranges,
  genre_names,
  offsets_of,
  power_law,
  real_steps,
  sample_categorical,
  sample_unseen,
  takes_fields_of,
)
from jaxrec.data.prepared import PreparedData

DOMAINS = ("book", "film", "game", "song", "toy", "podcast")

_YEAR, _DAY, _MINUTE = 365 * 86_400, 86_400, 60


@dataclasses.dataclass(frozen=True)
class SyntheticOptions:
  """Parameters of the process that `synthetic_data` describes.

  num_users: number of users.
  num_items: number of items over all domains, a multiple of num_domains * num_genres; all genres of all domains have
    equally many.
  num_domains: number of domains; transfer comes from the first one.
  num_genres: latent genres, shared by all domains.
  mean_events: mean number of events per user; geometric above the minimum of 6.
  transfer: probability that an event outside domain 1 takes the genre of the user's latest event in domain 1.
  sequel: probability that an event is the title that follows the user's latest title of that domain and genre.
  stay_in_genre: probability that an event keeps the genre of the previous one in the same domain and session.
  stay_in_domain: probability that an event is in the domain of the previous one.
  session_end: probability that a session ends after an event.
  concentration: of the Dirichlet distribution of each user's taste; small values give few genres.
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


@takes_fields_of(SyntheticOptions)
def synthetic_data(**options) -> PreparedData:
  """Returns the events of simulated users, split leave-one-out.

  Each user has a taste in every domain: a Dirichlet draw over the genres. Then, event by event:

  1. Domain: that of the previous event with probability `stay_in_domain`, else a uniform draw.
  2. Genre, in domain 1: that of the user's previous event in domain 1 with probability `stay_in_genre`; otherwise, and
     at the start of a session, a draw from the taste. In another domain: with probability `transfer` the genre of the
     user's latest event in *domain 1*; otherwise the rule of domain 1, with the taste of the other domain and the genre
     of its latest event that was not transferred. With transfer = 1 only domain 1 predicts the next genre in the other
     domains, with transfer = 0 it carries no information about them.
  3. Title: with probability `sequel` the one that follows the user's latest title of that domain and genre ("book 17
     (mystery)" after "book 16 (mystery)"); otherwise a draw by popularity, where low numbers are popular. No title
     repeats before the user has had all titles of that domain and genre.
  4. Time: about a minute after the previous event inside a session, about a day after it between sessions.
  5. Action: a rating of 1..5, higher for genres with a large share in the user's taste.

  The last title, the latest genre in each domain, the latest genre in domain 1 and the time since the last event all
  help to predict the next item; popularity alone helps little. Item ids are a random permutation, so they carry no
  information about domain or genre.

  Args:
    **options: the fields of `SyntheticOptions`.

  Raises:
    ValueError: a field is out of range.
    TypeError: an unknown field.

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
  is_real = real_steps(lengths)  # [U, T]
  events = {name: values[is_real] for name, values in steps.items()}
  ids = rng.permutation(settings.num_items) + 1
  return PreparedData.from_columns(
    offsets=offsets_of(lengths),
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


def _simulate(rng, settings, num_steps):
  """Returns columns [U, T], simulated for all users at once, one event after another."""
  users = np.arange(settings.num_users)
  shape = (settings.num_users, settings.num_domains)
  taste = rng.dirichlet(np.full(settings.num_genres, settings.concentration), shape)  # [U, C, G]
  genre_of = sample_categorical(rng, taste)  # [U, C], the latest genre in each domain that was not transferred
  latest = np.full((*shape, settings.num_genres), -1)  # [U, C, G], the latest title of each domain and genre
  unseen = np.ones((*latest.shape, _titles_per_genre(settings)), bool)  # [U, C, G, titles]
  domain = rng.integers(settings.num_domains, size=settings.num_users)
  time = START_SECOND + rng.integers(_YEAR, size=settings.num_users)
  new_session = np.ones(shape, bool)  # Whether a session began since the domain's latest event.
  steps = {name: np.zeros((settings.num_users, num_steps), np.int64) for name in ("title", "domain", "time", "action")}
  for t in range(num_steps):
    moves = rng.random(settings.num_users) >= settings.stay_in_domain
    domain = np.where(moves, rng.integers(settings.num_domains, size=settings.num_users), domain)
    genre = _next_genre(rng, settings, taste, genre_of, new_session, domain)
    title = _next_title(rng, settings, latest[users, domain, genre], unseen[users, domain, genre])
    latest[users, domain, genre], unseen[users, domain, genre, title] = title, False
    steps["title"][:, t] = (domain * settings.num_genres + genre) * _titles_per_genre(settings) + title
    steps["domain"][:, t], steps["time"][:, t] = domain, time
    liking = taste[users, domain, genre] / taste[users, domain].max(axis=-1)
    steps["action"][:, t] = 1 + rng.binomial(4, 0.3 + 0.6 * liking)
    ends = rng.random(settings.num_users) < settings.session_end
    new_session |= ends[:, None]
    time = time + 1 + (np.where(ends, _DAY, _MINUTE) * rng.lognormal(0, 1, settings.num_users)).astype(np.int64)
  return steps


def _next_genre(rng, settings, taste, genre_of, new_session, domain):
  """Returns the genre of the next event; a transferred genre does not change `genre_of` of its domain."""
  users = np.arange(settings.num_users)
  previous, drawn = genre_of[users, domain], sample_categorical(rng, taste[users, domain])
  stays = (rng.random(settings.num_users) < settings.stay_in_genre) & ~new_session[users, domain]
  transferred = (rng.random(settings.num_users) < settings.transfer) & (domain > 0)
  genre = np.where(transferred, previous, np.where(stays, previous, drawn))
  genre_of[users, domain], new_session[users, domain] = genre, new_session[users, domain] & transferred
  return np.where(transferred, genre_of[:, 0], genre)


def _next_title(rng, settings, latest, unseen):
  drawn = sample_unseen(rng, power_law(unseen.shape[1], settings.popularity), unseen)
  following = np.minimum(latest + 1, unseen.shape[1] - 1)
  follows = (rng.random(len(latest)) < settings.sequel) & (latest >= 0) & unseen[np.arange(len(latest)), following]
  return np.where(follows, following, drawn)


def _titles_per_genre(settings):
  """Returns the number of titles of each genre in each domain."""
  return settings.num_items // (settings.num_domains * settings.num_genres)


def _domain_names(num_domains):
  return [DOMAINS[d] if d < len(DOMAINS) else f"domain{d + 1}" for d in range(num_domains)]


def _titles(settings):
  numbers = range(1, _titles_per_genre(settings) + 1)
  domains, genres = _domain_names(settings.num_domains), genre_names(settings.num_genres)
  return [f"{domain} {n} ({genre})" for domain in domains for genre in genres for n in numbers]


def _title_domains(settings):
  return np.repeat(np.arange(1, settings.num_domains + 1), settings.num_genres * _titles_per_genre(settings))


def _in_id_order(ids, values):
  """Returns the values of items 1, 2, ... from those of the titles, whose item ids are `ids`."""
  return [values[i] for i in np.argsort(ids)]


def _check(settings):
  probabilities = ("transfer", "sequel", "stay_in_genre", "stay_in_domain", "session_end")
  check_ranges(settings, dict.fromkeys(("num_users", "num_items", "num_domains", "num_genres"), 1), probabilities)
  unit = settings.num_domains * settings.num_genres
  if settings.num_items % unit:
    raise ValueError(
      f"num_items={settings.num_items} must be a multiple of num_domains * num_genres = {unit}, so that every genre of"
      f" every domain has equally many titles; try {max(1, round(settings.num_items / unit)) * unit}"
    )
  if settings.concentration <= 0:
    raise ValueError(f"concentration={settings.concentration} must be above 0")
