"""Settings groups: dataclasses whose fields carry their own range, choices and help, and the check of a config."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

OPEN = "open"  # Metadata of a group that may hold any keys; the code that reads it checks them.
_READ_IF = "read_if"


def setting(
  default: Any,
  text: str = "",
  *,
  at_least: float | None = None,
  below: float | None = None,
  choices: Sequence[str] | None = None,
  is_open: bool = False,
  read_if: tuple[str, Sequence[str]] | None = None,
) -> Any:
  """Declares a field of a settings group: its default, its help, and the values it accepts.

  Args:
    default: default value; its type is the type of the setting.
    text: help.
    at_least: smallest number accepted.
    below: numbers must be smaller.
    choices: accepted strings.
    is_open: the default is a group whose keys are checked by the code that reads it.
    read_if: another setting of the group, and the values with which this one is read; no values: unless it is empty
      or 0. None: this one is always read.
  """
  metadata = {"text": text, "at_least": at_least, "below": below, "choices": choices, OPEN: is_open, _READ_IF: read_if}
  if isinstance(default, dict):
    return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


def defaults(groups: Mapping[str, type]) -> dict[str, dict[str, Any]]:
  """Returns the default values of settings groups, by name."""
  return {name: dataclasses.asdict(group()) for name, group in groups.items()}


def check_group(name: str, values: Mapping[str, Any], group: type) -> None:
  """Raises unless a group has exactly the fields of its dataclass, with values of their types and in their ranges.

  Args:
    name: of the group, such as "config.train".
    values: setting to value.
    group: dataclass made with `setting`.

  Raises:
    ValueError: names the setting, the value and what is accepted.
  """
  fields = {field.name: field for field in dataclasses.fields(group)}
  check_names(name, values, fields)
  default = group()
  for field in fields.values():
    check_value(f"{name}.{field.name}", values[field.name], getattr(default, field.name), field.metadata)


def check_all_read(name: str, values: Mapping[str, Any], group: type) -> None:
  """Raises where a setting of a group was changed that nothing reads, as another setting says.

  Args:
    name, values, group: as of `check_group`.

  Raises:
    ValueError: names both settings.
  """
  default = dataclasses.asdict(group())
  for field in dataclasses.fields(group):
    value, read_if = values[field.name], field.metadata.get(_READ_IF)
    if read_if is None or value == default[field.name]:
      continue
    other, accepted = read_if
    if values[other] not in accepted if accepted else not values[other]:
      needed = f"one of {tuple(accepted)}" if accepted else "neither empty nor 0"
      raise ValueError(
        f"{name}.{field.name}={value!r} is read by nothing where {name}.{other}={values[other]!r}: make that"
        f" {needed}, or leave {name}.{field.name} as it is, {default[field.name]!r}"
      )


def check_names(name: str, given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
  """Raises unless both have the same keys; proposes the nearest known key.

  Raises:
    ValueError: an unknown or missing key.
  """
  for key in given.keys() - expected.keys():
    near = difflib.get_close_matches(key, list(expected), n=1, cutoff=0.5)
    hint = f"did you mean {name}.{near[0]}?" if near else f"there are {', '.join(sorted(expected))}"
    raise ValueError(f"{name}.{key} is unknown; {hint}")
  for key in expected.keys() - given.keys():
    raise ValueError(f"{name}.{key} is missing; start from the default config of the task")


def check_value(name: str, value: Any, default: Any, metadata: Mapping[str, Any]) -> None:
  """Raises unless a value has the type of the default and lies in the range of the metadata.

  Raises:
    ValueError: another type, a number outside the range, an unknown choice.
  """
  if isinstance(default, dict):
    if not isinstance(value, dict):
      raise ValueError(f"{name}={value!r} must be a group of settings")
    return
  expected = {float: (int, float), tuple: (tuple, list)}.get(type(default), type(default))
  if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(default, bool)):
    raise ValueError(f"{name}={value!r} must be of type {type(default).__name__}, for example {default!r}")
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{name}={value} must be a finite number")
  _check_range(name, value, metadata)


def _check_range(name, value, metadata):
  least, below, choices = metadata.get("at_least"), metadata.get("below"), metadata.get("choices")
  if choices is not None and value not in choices:
    raise ValueError(f"{name}={value!r} is unknown; use one of {tuple(choices)}")
  if below is not None and least is not None and not least <= value < below:
    raise ValueError(f"{name}={value} must be at least {least} and below {below}")
  if least is not None and value < least:
    raise ValueError(f"{name}={value} must {'not be negative' if least == 0 else f'be at least {least}'}")
