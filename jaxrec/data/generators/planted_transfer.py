"""Users of a target domain, an informative domain that predicts it, and noise domains; the truth is known.

For questions that recorded data cannot answer, such as whether a model uses the domain that helps and ignores those
that do not.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from jaxrec.data.generators.common import (
  check_ranges,
  genre_names,
  normalize,
  offsets_of,
  options_of,
  power_law,
  real_steps,
  sample_categorical,
  sample_lengths,
  sample_times,
  sample_unseen,
  takes_fields_of,
)
from jaxrec.data.prepared import TEST, TRAIN, VALIDATION, PreparedData

TARGET, INFORMATIVE, FIRST_NOISE = 1, 2, 3  # Domain ids.
USEFUL, NEUTRAL, HARMFUL = 1, 0, -1


@dataclasses.dataclass(frozen=True)
class PlantedOptions:
  """Parameters of the process that `planted_transfer` describes.

  num_users: number of users.
  items_per_domain: items in each domain, a multiple of num_genres.
  num_noise_domains: domains 3, 4, ...; 0 for none.
  num_genres: latent genres of the target and the informative domain.
  mean_events: mean number of events per user, noise included; uniform between 0.5 and 1.5 times the mean.
  transfer: probability that an event in the target domain follows one in the informative domain.
  noise_share: share of the events, 0..1, that are noise; a third of the others are in the target domain.
  stay_in_genre: probability that an event keeps the genre of the latest event in its domain that followed none.
  concentration: of the Dirichlet distribution of each user's taste; small values give few genres.
  popularity: exponent of the power law by which titles are drawn.
  gap: events between the two held-out ones, as many as any: without them the validation event follows the latest
    informative one, and what is left for the test event to follow is an older one; with 8 both are nearly alike.
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
  gap: int = 0
  seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class PlantedTruth:
  """The cause of each event of `planted_transfer`, in the order of the columns of its data.

  source_event: index of the earlier event of the same user that decided the title (planted transfer) or the genre
    (otherwise); -1 if no event did.
  is_planted: whether the event is in the target domain and has the title of `source_event`, which is in the informative
    domain.
  usefulness: for each domain 1..C, whether its history helps to predict the event. USEFUL: the domain of its source.
    HARMFUL: a noise domain, whose history is independent of the event. NEUTRAL: other domains, such as the target
    domain for a planted event. Events in noise domains depend on nothing: all NEUTRAL.
  """

  source_event: Int[np.ndarray, " E"]
  is_planted: Bool[np.ndarray, " E"]
  usefulness: Int[np.ndarray, "E C"]


@takes_fields_of(PlantedOptions)
def planted_transfer(**options) -> PreparedData:
  """Returns the events of users in a target, an informative and noise domains, split leave-one-out.

  Each user has a taste in the target and in the informative domain: a Dirichlet draw over the genres. Then, event by
  event:

  1. Domain: noise with probability `noise_share`, else target (1/3) or informative (2/3, so that there is nearly always
     an event to follow), independently of earlier events. The last two events of a user, which the split holds out, are
     in the target domain. With a `gap` there are so many events of any domain between these two: for validation too,
     but after the target of validation, and before that of the test.
  2. Informative domain: the genre of the previous event in this domain with probability `stay_in_genre`, else a draw
     from the taste; then a title of that genre by popularity, none of which repeats before the user has had them all.
  3. Target domain: with probability `transfer` the event *follows* the user's latest event in the informative domain
     that was not followed yet: its title has the same genre and number ("target 17 (space)" after "informative 17
     (space)"). Otherwise, and if there is none to follow, the rule of 2 with the taste of the target domain; events
     that follow do not change the genre that the next one may keep.
  4. Noise domain: a title of that domain by popularity. It depends on nothing, and nothing depends on it.
  5. Time: about an hour after the previous event.

  `planted_truth` returns the cause of each event. Item ids are a random permutation, so they carry no information about
  domain or genre.

  Args:
    **options: the fields of `PlantedOptions`.

  Raises:
    ValueError: a field is out of range.
    TypeError: an unknown field.

  >>> data = planted_transfer(num_users=3, items_per_domain=16, num_noise_domains=2, seed=1)
  >>> data.num_users, data.num_items, data.domain_names
  (3, 64, ('target', 'informative', 'noise1', 'noise2'))
  """
  return _generate(PlantedOptions(**options))[0]


def planted_truth(data: PreparedData) -> PlantedTruth:
  """Returns the cause of each event of `data`, generated again from the options recorded in it.

  Args:
    data: made by `planted_transfer`, in memory or loaded.

  Raises:
    ValueError: the data has another source, or another version of the generator made it.

  >>> truth = planted_truth(planted_transfer(num_users=3, items_per_domain=16, transfer=1.0, seed=1))
  >>> truth.usefulness[-1].tolist()  # The last event is in the target domain and follows one in the informative domain.
  [0, 1, -1]
  """
  same, truth = _generate(options_of(data, "planted", PlantedOptions))
  if not np.array_equal(same.item_id, data.item_id):
    raise ValueError("the generator makes other events from these options than the data holds; prepare it again")
  return truth


def _generate(settings):
  _check(settings)
  rng = np.random.default_rng(settings.seed)
  lengths = sample_lengths(rng, settings.num_users, settings.mean_events)
  offsets, is_real = offsets_of(lengths), real_steps(lengths)  # [U + 1], [U, T]
  domain = _domains(rng, settings, lengths)  # [U, T]
  title, source = _simulate(rng, settings, domain)  # [U, T]
  time = sample_times(rng, is_real.shape)  # [U, T]
  source = np.where(source >= 0, source + offsets[:-1, None], -1)[is_real]  # [E]
  ids = rng.permutation(_num_domains(settings) * settings.items_per_domain) + 1
  domain = domain[is_real]  # [E]
  data = PreparedData.from_columns(
    offsets=offsets,
    item_id=ids[(domain - 1) * settings.items_per_domain + title[is_real]],
    domain_id=domain,
    timestamp=time[is_real],
    num_items=len(ids),
    domain_names=_domain_names(settings),
    titles=[_titles(settings)[i] for i in np.argsort(ids)],
    item_domain=np.concatenate([[0], np.argsort(ids) // settings.items_per_domain + 1]),
    source="planted",
    options=dataclasses.asdict(settings),
    split=_split(settings, lengths, is_real),
  )
  return data, _truth(settings, domain, source)


def _domains(rng, settings, lengths):
  noise = settings.num_noise_domains
  share = settings.noise_share if noise else 0.0
  probabilities = [(1 - share) / 3, (1 - share) * 2 / 3] + [share / max(1, noise)] * noise
  domain = rng.choice(len(probabilities), (len(lengths), lengths.max()), p=probabilities) + 1  # [U, T]
  from_end = lengths[:, None] - 1 - np.arange(lengths.max())  # [U, T] 0 at the last event
  domain[(from_end <= 0) | (from_end == 1 + settings.gap)] = TARGET
  return domain


def _split(settings, lengths, is_real):
  """Leave-one-out; with a gap what lies in it is held out with the validation event."""
  if not settings.gap:
    return "leave_one_out"
  from_end = lengths[:, None] - 1 - np.arange(lengths.max())
  return np.where(from_end == 0, TEST, np.where(from_end <= 1 + settings.gap, VALIDATION, TRAIN))[is_real]


def _simulate(rng, settings, domain) -> tuple[Int[np.ndarray, "U T"], Int[np.ndarray, "U T"]]:
  """Returns the index of each title in its domain, and the step it came from or -1, for all users at once."""
  num_users, num_steps = domain.shape
  users, steps = np.arange(num_users), np.arange(num_steps)
  chains = _GenreChains(rng, settings)
  popularity = normalize(power_law(settings.items_per_domain, settings.popularity))
  title = rng.choice(settings.items_per_domain, domain.shape, p=popularity)  # Kept in noise domains only.
  source = np.full(domain.shape, -1)
  unfollowed = np.zeros(domain.shape, bool)
  for t in steps:
    latest = np.where(unfollowed, steps, -1).max(axis=1)  # [U]
    follows = (domain[:, t] == TARGET) & (latest >= 0) & (rng.random(num_users) < settings.transfer)
    title[follows, t], source[follows, t] = title[follows, latest[follows]], latest[follows]
    unfollowed[users[follows], latest[follows]] = False
    independent = np.flatnonzero((domain[:, t] < FIRST_NOISE) & ~follows)
    title[independent, t], source[independent, t] = chains.extend(independent, domain[independent, t] - 1, t)
    unfollowed[:, t] = domain[:, t] == INFORMATIVE
  return title, source


class _GenreChains:
  """The events of the target and the informative domain (axis C of 2) that follow no event of the other domain."""

  def __init__(self, rng, settings):
    self._rng, self._stay_in_genre = rng, settings.stay_in_genre
    shape, num_titles = (settings.num_users, 2), settings.items_per_domain // settings.num_genres
    self._popularity = normalize(power_law(num_titles, settings.popularity))  # [titles]
    self._taste = rng.dirichlet(np.full(settings.num_genres, settings.concentration), shape)  # [U, C, G]
    self._genre, self._step = np.zeros(shape, int), np.full(shape, -1)  # [U, C]
    self._unseen = np.ones((*shape, settings.num_genres, num_titles), bool)

  def extend(self, users, domain, step):
    """Returns the next title of each user in a domain, and the step whose genre it keeps, or -1."""
    previous = self._step[users, domain]
    stays = (previous >= 0) & (self._rng.random(len(users)) < self._stay_in_genre)
    drawn = sample_categorical(self._rng, self._taste[users, domain])
    genre = np.where(stays, self._genre[users, domain], drawn)
    index = sample_unseen(self._rng, self._popularity, self._unseen[users, domain, genre])
    self._genre[users, domain], self._step[users, domain] = genre, step
    self._unseen[users, domain, genre, index] = False
    return genre * len(self._popularity) + index, np.where(stays, previous, -1)


def _truth(settings, domain, source):
  is_planted = (domain == TARGET) & (source >= 0) & (domain[source] == INFORMATIVE)
  cause = np.where(is_planted, INFORMATIVE, domain)
  ids = np.arange(1, _num_domains(settings) + 1)
  usefulness = np.where(ids == cause[:, None], USEFUL, np.where(ids >= FIRST_NOISE, HARMFUL, NEUTRAL))
  usefulness[domain >= FIRST_NOISE] = NEUTRAL
  return PlantedTruth(source_event=source, is_planted=is_planted, usefulness=usefulness)


def _num_domains(settings):
  return 2 + settings.num_noise_domains


def _domain_names(settings):
  return ["target", "informative", *(f"noise{i + 1}" for i in range(settings.num_noise_domains))]


def _titles(settings):
  genres, numbers = genre_names(settings.num_genres), range(1, settings.items_per_domain // settings.num_genres + 1)
  with_genre = [f"{domain} {n} ({genre})" for domain in ("target", "informative") for genre in genres for n in numbers]
  noise = [f"{domain} {n + 1}" for domain in _domain_names(settings)[2:] for n in range(settings.items_per_domain)]
  return with_genre + noise


def _check(settings):
  at_least = {"num_users": 1, "num_genres": 1, "items_per_domain": 1, "num_noise_domains": 0}
  check_ranges(settings, at_least, probabilities=("transfer", "noise_share", "stay_in_genre"))
  if settings.items_per_domain % settings.num_genres:
    raise ValueError(
      f"items_per_domain={settings.items_per_domain} must be a multiple of num_genres={settings.num_genres}"
    )
  if settings.gap < 0 or settings.mean_events < 2 * (settings.gap + 3):
    raise ValueError(
      f"gap={settings.gap} must be in 0..{int(settings.mean_events / 2) - 3}, half of mean_events less 3"
    )
  if settings.concentration <= 0:
    raise ValueError(f"concentration={settings.concentration} must be above 0")
