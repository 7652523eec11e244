"""The flags --config and --data: a config file, or the name of a config whose sizes are derived from prepared data."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

_CONFIG, _DATA = "--config", "--data"
_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "named_config_file.py")
CONFIG_HELP = (
  "A name of `jaxrec train --list`, or a config file, which is Python and is executed; --config.group.key=value changes"
  " a setting."
)
DATA_HELP = "Folder of prepared data, which `jaxrec prepare` writes, or its URL; same as --config.data.prepared."


def define_config(
  values: flags.FlagValues = flags.FLAGS, text: str = CONFIG_HELP, arguments: list[str] | None = None
) -> None:
  """Defines the flag --config, with --config.group.key=value for each setting.

  Groups such as `config.model` hold what a config sets; with the flag, any field of the model's class can be set. So
  the flag takes names that the config does not have: `check_names` follows when flags are parsed.

  Args:
    values: where the flag is defined.
    text: its help.
    arguments: what is parsed later, the program first; None: `sys.argv`.
  """
  config_flags.DEFINE_config_file(
    "config", None, text, flag_values=values, lock_config=False, accept_new_attributes=True, sys_argv=arguments
  )


def check_names(config: ConfigDict) -> None:
  """Raises unless the settings of a config are those of its task and of its model.

  Raises:
    ValueError: names the setting, and the nearest known one or all known fields.
  """
  from jaxrec.train import settings  # Not before: these modules import JAX.
  from jaxrec.train.task import task_class

  task = task_class(config.task)
  default, given = task.default_config().to_dict(), config.to_dict()
  settings.check_names("config", given, default)
  for group in task.groups:
    settings.check_names(f"config.{group}", given[group], default[group])
  task.check_model(given["model"])


def with_config_file(argv: Sequence[str]) -> list[str]:
  """Returns the arguments of a program with --config=NAME --data=FOLDER replaced by what absl's config flag reads.

  Args:
    argv: program and its arguments. A config that ends with ".py", perhaps followed by ":argument", is a file.

  >>> with_config_file(["train", "--config=paper.py", "--data=prepared/log"])
  ['train', '--config=paper.py', '--config.data.prepared=prepared/log']
  >>> with_config_file(["train", "--config", "hstu", "--data=log"])[1].split("cli/")[1].split("|")[0]
  'named_config_file.py:hstu'
  """
  config, rest = _taken(_CONFIG, argv)
  data, rest = _taken(_DATA, rest)
  program, *rest = rest
  if data is not None and not is_name(config):
    rest = [f"{_CONFIG}.data.prepared={data}", *rest]
  try:
    return [program, *([] if config is None else [f"{_CONFIG}={config_file(config, data)}"]), *rest]
  except ValueError as error:
    sys.exit(f"FATAL Flags parsing error: {error}")


def is_name(config: str | None) -> bool:
  """Returns whether a config is a name; files end with ".py", perhaps followed by ":argument"."""
  return config is not None and not config.partition(":")[0].endswith(".py")


def config_file(config: str, data: str | None) -> str:
  """Returns the config file that stands for a name and a folder of prepared data; files stay as they are.

  Raises:
    ValueError: a name without data.
  """
  if not is_name(config):
    return config
  if not data:
    raise ValueError(
      f"--config={config} is a name, not a file: its sizes come from the data. Give --data=FOLDER, which `jaxrec"
      " prepare` writes"
    )
  return f"{_FILE}:{config}|{os.path.abspath(data)}"


def label(config: str) -> str:
  """Returns a short name of a config file.

  >>> label("experiments/configs/abxi.py:hstu-base"), label(config_file("sasrec", "prepared/log"))
  ('abxi', 'sasrec')
  """
  path, _, argument = config.partition(":")
  return argument.partition("|")[0] if path == _FILE else os.path.splitext(os.path.basename(path))[0]


def label_with_argument(config: str) -> str:
  """Returns the label of a config with the argument of its file, which tells apart the configs that one file makes.

  >>> label_with_argument("experiments/configs/abxi.py:hstu-base"), label_with_argument(config_file("sasrec", "log"))
  ('abxi:hstu-base', 'sasrec')
  """
  path, colon, argument = config.partition(":")
  return label(config) if path == _FILE else f"{label(config)}{colon}{argument}"


def _taken(flag: str, argv: Sequence[str]) -> tuple[str | None, list[str]]:
  """Returns the last value of a flag, None without, and the other arguments."""
  value, rest, arguments = None, [], iter(argv)
  for argument in arguments:
    name, equals, text = argument.partition("=")
    if name in (flag, flag[1:]):  # absl takes one hyphen too.
      value = text if equals else next(arguments, None)
    else:
      rest.append(argument)
  return value, rest
