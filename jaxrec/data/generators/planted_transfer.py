"""Users of a target domain, a domain that tells what comes next in it, and domains of noise; the truth is known.

For questions that real data cannot answer: does a model read the domain that helps and leave alone those that do not?
"""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.data.generators.synthetic import GENRES, draw
from jaxrec.data.prepared import PreparedData

TARGET, INFORMATIVE, FIRST_NOISE = 1, 2, 3  # Domain ids.
USEFUL, NEUTRAL, HARMFUL = 1, 0, -1

_START, _HOUR = 1_600_000_000, 3_600  # September 2020.


@dataclasses.dataclass(frozen=True)
class PlantedOptions:
  """The process behind the events; `planted_transfer` explains it.

  num_users: users.
  items_per_domain: items of each domain (a multiple of num_genres).
  num_noise_domains: domains 3, 4, ...; 0 = none.
  num_genres: latent genres of the target and the informative domain.
  mean_events: mean number of events of a user, noise included; each has between half and one and a half times as many.
  transfer: 0..1, probability that an event of the target domain follows one of the informative domain.
  noise_share: 0..1, share of the events that are noise; of the others a third are in the target domain.
  stay_in_genre: probability that an event keeps the genre of the last one that its domain chose by itself.
  concentration: of the Dirichlet distribution of each user's taste; small = few genres.
  popularity: exponent of the power law by which titles are drawn.
  seed: the same seed gives the same data.
  """

  num_users: int = 2000
  items_per_domain: int = 240
  num_noise_domains: int = 1
  num_genres: int = 8
  mean_events: float = 40.0
  transfer: float = 0.8
  noise_share: float = 0.6
  stay_in_genre: float = 0.8
  concentration: float = 0.3
  popularity: float = 0.8
  seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class PlantedTruth:
  """What each event of `planted_transfer` came from, in the order of the columns of its data.

  source_event: the index of the event, of the same user and before it, that decided its title (planted transfer) or its
    genre (the chain of its own domain); -1 where no event did.
  is_planted: the event is in the target domain and has the title of `source_event`, which is in the informative one.
  usefulness: what the history in each domain 1..C tells about the event. USEFUL: it comes from there. HARMFUL: a noise
    domain; that history is independent of the event. NEUTRAL: the rest, such as the own domain of a planted event. An
    event of a noise domain depends on nothing: all NEUTRAL.
  """

  source_event: Int[np.ndarray, " E"]
  is_planted: Bool[np.ndarray, " E"]
  usefulness: Int[np.ndarray, "E C"]


def planted_transfer(**options) -> PreparedData:
  """Returns the events of users of a target, an informative and noise domains, split leave-one-out.

  Each user has an own taste, a Dirichlet draw over the genres, in the target and in the informative domain. Then, event
  by event:

  1. Domain: noise with `noise_share`, else target (1/3) or informative (2/3, so that there is nearly always an event to
     follow), each time anew. The last two events of a user, which the split holds out, are in the target domain.
  2. Informative domain: the genre of the event before it in this domain with `stay_in_genre`, else a draw from the
     taste; then a title of that genre by popularity, none twice before all have been had.
  3. Target domain: with probability `transfer` it *follows* the user's latest event of the informative domain that was
     not followed yet: the title with the same genre and number ("target 17 (space)" after "informative 17 (space)").
     Otherwise, and where there is none to follow, the rule of 2 with its own taste and chain of genres, on which events
     that follow leave no trace.
  4. Noise domain: a title of that domain by popularity. It depends on nothing, and nothing depends on it.
  5. Time: some hours after the event before.

  `planted_truth` returns which event came from where. Item ids are shuffled: they say nothing about domain or genre.

  Args:
    **options: the fields of `PlantedOptions`.

  Raises:
    ValueError: a field out of its range. TypeError: an unknown field.

  >>> data = planted_transfer(num_users=3, items_per_domain=16, num_noise_domains=2, seed=1)
  >>> data.num_users, data.num_items, data.domain_names
  (3, 64, ('target', 'informative', 'noise1', 'noise2'))
  """
  return _generate(PlantedOptions(**options))[0]


# What `help` shows and what the command line accepts.
planted_transfer.__signature__ = inspect.signature(PlantedOptions).replace(return_annotation=PreparedData)


def planted_truth(data: PreparedData) -> PlantedTruth:
  """Returns where each event of `data` came from, generated anew from the options that the data carry.

  Args:
    data: from `planted_transfer`, or the folder in which such data were saved.

  Raises:
    ValueError: the data are from elsewhere, or from another version of the generator.

  >>> truth = planted_truth(planted_transfer(num_users=3, items_per_domain=16, transfer=1.0, seed=1))
  >>> truth.usefulness[-1].tolist()  # The last event is in the target domain and came from the informative one.
  [0, 1, -1]
  """
  if data.meta["source"] != "planted":
    raise ValueError(f"the source of the data is {data.meta['source']!r}; the truth is known of source 'planted' only")
  same, truth = _generate(PlantedOptions(**data.meta["options"]))
  if not np.array_equal(same.item_id, data.item_id):
    raise ValueError("the generator makes other events from these options than the data hold: prepare the data again")
  return truth


def _generate(settings):
  _check(settings)
  rng = np.random.default_rng(settings.seed)
  lengths = np.rint(settings.mean_events * rng.uniform(0.5, 1.5, settings.num_users)).astype(np.int64)
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  kept = np.arange(lengths.max()) < lengths[:, None]  # [U, T]
  domain = _domains(rng, settings, lengths)  # [U, T]
  title, source = _simulate(rng, settings, domain)  # [U, T]
  gaps = 1 + (_HOUR * rng.lognormal(0, 1, kept.shape)).astype(np.int64)  # [U, T]
  source = np.where(source >= 0, source + offsets[:-1, None], -1)[kept]  # [E]
  ids = rng.permutation(_num_domains(settings) * settings.items_per_domain) + 1
  domain = domain[kept]
  data = PreparedData.from_columns(
    offsets=offsets,
    item_id=ids[(domain - 1) * settings.items_per_domain + title[kept]],
    domain_id=domain,
    timestamp=(_START + np.cumsum(gaps, axis=1))[kept],
    num_items=len(ids),
    domain_names=_domain_names(settings),
    titles=[_titles(settings)[i] for i in np.argsort(ids)],
    item_domain=np.concatenate([[0], np.argsort(ids) // settings.items_per_domain + 1]),
    source="planted",
    options=dataclasses.asdict(settings),
  )
  return data, _truth(settings, domain, source)


def _domains(rng, settings, lengths):
  noise = settings.num_noise_domains
  share = settings.noise_share if noise else 0.0
  shares = [(1 - share) / 3, (1 - share) * 2 / 3] + [share / max(1, noise)] * noise
  domain = rng.choice(len(shares), (len(lengths), lengths.max()), p=shares) + 1  # [U, T]
  domain[np.arange(lengths.max()) >= lengths[:, None] - 2] = TARGET
  return domain


def _simulate(rng, settings, domain) -> tuple[Int[np.ndarray, "U T"], Int[np.ndarray, "U T"]]:
  """The titles, numbered inside their domains, and the steps they came from: all users at once, step after step."""
  num_users, num_steps = domain.shape
  users, steps = np.arange(num_users), np.arange(num_steps)
  chains = _Chains(rng, settings)
  title = rng.choice(settings.items_per_domain, domain.shape, p=_popularity(settings, settings.items_per_domain))
  source = np.full(domain.shape, -1)
  unfollowed = np.zeros(domain.shape, bool)
  for t in steps:
    latest = np.where(unfollowed, steps, -1).max(axis=1)  # [U]
    follows = (domain[:, t] == TARGET) & (latest >= 0) & (rng.random(num_users) < settings.transfer)
    title[follows, t], source[follows, t] = title[follows, latest[follows]], latest[follows]
    unfollowed[users[follows], latest[follows]] = False
    own = np.flatnonzero((domain[:, t] < FIRST_NOISE) & ~follows)
    title[own, t], source[own, t] = chains.extend(own, domain[own, t] - 1, t)
    unfollowed[:, t] = domain[:, t] == INFORMATIVE
  return title, source


class _Chains:
  """The events that the target and the informative domain (axis C of 2) choose by themselves."""

  def __init__(self, rng, settings):
    self._rng, self._settings = rng, settings
    shape = (settings.num_users, 2)
    self._taste = rng.dirichlet(np.full(settings.num_genres, settings.concentration), shape)  # [U, C, G]
    self._genre, self._step = np.zeros(shape, int), np.full(shape, -1)  # [U, C]
    self._unseen = np.ones((*shape, settings.num_genres, settings.items_per_domain // settings.num_genres), bool)

  def extend(self, users, domain, step):
    """Returns the next title of each user's chain in its domain, and the step whose genre it keeps, or -1."""
    before = self._step[users, domain]
    stays = (before >= 0) & (self._rng.random(len(users)) < self._settings.stay_in_genre)
    genre = np.where(stays, self._genre[users, domain], draw(self._rng, self._taste[users, domain]))
    unseen = self._unseen[users, domain, genre]  # [U, titles]
    weights = _popularity(self._settings, unseen.shape[1]) * (unseen | ~unseen.any(axis=1, keepdims=True))
    number = draw(self._rng, weights / weights.sum(axis=1, keepdims=True))
    self._genre[users, domain], self._step[users, domain] = genre, step
    self._unseen[users, domain, genre, number] = False
    return genre * unseen.shape[1] + number, np.where(stays, before, -1)


def _popularity(settings, num_titles) -> Float[np.ndarray, " titles"]:
  weights = 1.0 / np.arange(1, num_titles + 1) ** settings.popularity
  return weights / weights.sum()


def _truth(settings, domain, source):
  is_planted = (domain == TARGET) & (source >= 0) & (domain[source] == INFORMATIVE)
  origin = np.where(is_planted, INFORMATIVE, domain)
  numbers = np.arange(1, _num_domains(settings) + 1)
  usefulness = np.where(numbers == origin[:, None], USEFUL, np.where(numbers >= FIRST_NOISE, HARMFUL, NEUTRAL))
  usefulness[domain >= FIRST_NOISE] = NEUTRAL
  return PlantedTruth(source_event=source, is_planted=is_planted, usefulness=usefulness)


def _num_domains(settings):
  return 2 + settings.num_noise_domains


def _domain_names(settings):
  return ["target", "informative", *(f"noise{i + 1}" for i in range(settings.num_noise_domains))]


def _titles(settings):
  genres = [GENRES[g] if g < len(GENRES) else f"genre{g + 1}" for g in range(settings.num_genres)]
  numbers = range(1, settings.items_per_domain // settings.num_genres + 1)
  named = [f"{name} {n} ({genre})" for name in ("target", "informative") for genre in genres for n in numbers]
  noise = [f"{name} {n + 1}" for name in _domain_names(settings)[2:] for n in range(settings.items_per_domain)]
  return named + noise


def _check(settings):
  for name, least in (("num_users", 1), ("num_genres", 1), ("items_per_domain", 1), ("num_noise_domains", 0)):
    if getattr(settings, name) < least:
      raise ValueError(f"{name}={getattr(settings, name)} must be at least {least}")
  if settings.items_per_domain % settings.num_genres:
    raise ValueError(
      f"items_per_domain={settings.items_per_domain} must be a multiple of num_genres={settings.num_genres}"
    )
  for name in ("transfer", "noise_share", "stay_in_genre"):
    if not 0 <= getattr(settings, name) <= 1:
      raise ValueError(f"{name}={getattr(settings, name)} must be between 0 and 1")
  if settings.mean_events < 6:
    raise ValueError(f"mean_events={settings.mean_events} must be at least 6; a split needs some history")
  if settings.concentration <= 0:
    raise ValueError(f"concentration={settings.concentration} must be above 0")
