"""Settings that the click-through configs share."""

from __future__ import annotations

from ml_collections import ConfigDict

from jaxrec.models.ctr import VARIANTS
from jaxrec.train.click_task import default_config


def config(name: str, choice: str, *, width: int) -> ConfigDict:
  """Returns the default settings with a model.

  Args:
    name: prefix of the config's name.
    choice: a name of `VARIANTS`, optionally followed by a hyphen and the width of each field, and by another hyphen and
      the total attention width of all fields ("dare-16-64": 24 for the item, 24 for its category, 16 for its age); ""
      is "dare".
    width: width of each field, if the choice gives none.

  Raises:
    ValueError: another choice.
  """
  variant, *widths = (choice or "dare").split("-")
  if variant not in VARIANTS or len(widths) > 2 or not all(text.isdigit() for text in widths):
    raise ValueError(f"{choice=} must be one of {tuple(VARIANTS)}, and perhaps one or two widths after hyphens")
  settings = default_config()
  settings.name = "_".join((name, variant, *widths))
  settings.model = dict(name=variant, width=int(widths[0]) if widths else width, evaluation_norm="running")
  settings.model.init_scale = 0.01  # Both are published; `--config.model.init_scale` changes them.
  if VARIANTS[variant]["tables"] != "shared":
    settings.model.attention_init_scale = 0.01
  if len(widths) > 1:
    total = int(widths[1])
    if total % 8:
      raise ValueError(f"{choice=}: the width of attention must be a multiple of 8")
    settings.model.attention_width = (3 * total // 8, 3 * total // 8, total // 4)
  return settings
