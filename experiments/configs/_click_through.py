"""What the click-through configs have in common."""

from __future__ import annotations

from ml_collections import ConfigDict

from jaxrec.models.ctr import VARIANTS
from jaxrec.train.click_through import default_config


def config(name: str, choice: str, *, width: int) -> ConfigDict:
  """Returns the default settings with a model.

  Args:
    name: what the name of the config begins with.
    choice: a name of `VARIANTS` and perhaps a hyphen and the width of each field; "" is "dare".
    width: of each field, where the choice gives none.

  Raises:
    ValueError: another choice.
  """
  variant, _, chosen = (choice or "dare").partition("-")
  if variant not in VARIANTS or (chosen and not chosen.isdigit()):
    raise ValueError(f"{choice=} must be one of {tuple(VARIANTS)}, and perhaps a hyphen and a width")
  settings = default_config()
  settings.name = "_".join(filter(None, (name, variant, chosen)))
  settings.model = dict(name=variant, width=int(chosen or width))
  return settings
