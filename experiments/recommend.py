"""Prints what users did and what a trained model would show them next, as titles.

    python -m experiments.recommend --workdir=runs/ml1m_hstu --user=17 --user=4169
    python -m experiments.recommend --workdir=runs/demo --random=5 --domain=film --hold_out

--user takes ids of the raw data. --hold_out stops before each user's test event and shows where that event came out.
"""

from __future__ import annotations

import sys

import numpy as np
from absl import app, flags, logging

from jaxrec.inference.recommend import describe, recommend
from jaxrec.train.experiment import load_run
from jaxrec.train.log import HideOrbaxDetails

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training run.")
_USER = flags.DEFINE_multi_string("user", [], "Id of a user in the raw data; give several.")
_RANDOM = flags.DEFINE_integer("random", 0, "Also so many users drawn at random.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draw.")
_K = flags.DEFINE_integer("k", 10, "Items to recommend.", lower_bound=1)
_HISTORY = flags.DEFINE_integer("history", 10, "Latest events to show.", lower_bound=0)
_DOMAIN = flags.DEFINE_string("domain", None, "Recommend from this domain only.")
_HOLD_OUT = flags.DEFINE_bool("hold_out", False, "Stop before the test event and tell its rank.")
_SEEN = flags.DEFINE_bool("exclude_seen", True, "Recommend nothing that the user has met.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint.")
_PHASE = flags.DEFINE_enum("phase", None, ["select", "final"], "Which phase of the run; by default the last one.")


def main(argv: list[str]) -> None:
  """Runs what the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; users are given as --user=<id>")
  logging.get_absl_handler().addFilter(HideOrbaxDetails())
  try:
    print(recommendations())
  except (FileNotFoundError, ValueError) as error:
    sys.exit(f"{type(error).__name__}: {error}")


def recommendations() -> str:
  """Returns the text for the users of the flags."""
  if not _USER.value and not _RANDOM.value:
    raise ValueError("no user to recommend to; give --user=<id> or --random=5")
  experiment, params, _ = load_run(_WORKDIR.value, _CHECKPOINT.value, _PHASE.value)
  data = experiment.data
  users = [data.user_index(raw) for raw in _USER.value]
  drawn = np.random.default_rng(_SEED.value).choice(data.num_users, min(_RANDOM.value, data.num_users), replace=False)
  found = recommend(
    experiment.model,
    params,
    data,
    experiment.config,
    [*users, *drawn.tolist()],
    k=_K.value,
    domain=_DOMAIN.value,
    hold_out=_HOLD_OUT.value,
    exclude_seen=_SEEN.value,
  )
  return "\n\n".join(describe(data, one, _HISTORY.value) for one in found)


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
