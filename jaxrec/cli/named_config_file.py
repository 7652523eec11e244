"""The config file behind --config=NAME --data=FOLDER; see `jaxrec.cli.config_argument`."""

from __future__ import annotations

import sys

from ml_collections import ConfigDict

from jaxrec.data.prepared import PreparedData
from jaxrec.train.named_configs import named_config, sizes_text


def get_config(argument: str) -> ConfigDict:
  """Returns the config of "name|folder", and prints the sizes that were derived from the data."""
  name, _, folder = argument.partition("|")
  try:
    data = PreparedData.load(folder)
    config = named_config(name, data)
  except ValueError as error:
    sys.exit(f"FATAL Flags parsing error: --config={name} --data={folder}: {error}")
  print(
    f"{name}, derived from the data: {sizes_text(config, data)} (--config.group.key=value changes a setting)",
    file=sys.stderr,
  )
  return config
