"""What a config may set of a model: fields of its class, with values of their types."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Collection, Mapping
from typing import Any

_ACCEPTED = {"bool": bool, "int": numbers.Integral, "float": numbers.Real, "str": str}  # By annotation.


def check_fields(model: str, kind: type, options: Mapping[str, Any], taken: Collection[str] = ()) -> None:
  """Raises unless options are fields of a model's class, with values of their types.

  Args:
    model: what the error calls it.
    kind: class of the model, a dataclass.
    options: field to value; "name", which chose the class, is left out.
    taken: fields that are set elsewhere.

  Raises:
    ValueError: an unknown field, with the known ones, or a value of another type.

  >>> from jaxrec.models.hstu import HSTU
  >>> check_fields("model 'hstu'", HSTU, {"num_layers": "two"})
  Traceback (most recent call last):
  ValueError: config.model.num_layers='two' must be of type int
  """
  fields = {field.name: field for field in dataclasses.fields(kind)}
  known = set(fields) - {"parent", "name", *taken}
  options = {field: value for field, value in options.items() if field != "name"}
  if unknown := sorted(set(options) - known):
    free = "free " if taken else ""
    raise ValueError(f"{model} has no {free}field {unknown}; it has {sorted(known)}")
  for name, value in options.items():
    expected = fields[name].type
    accepted = _ACCEPTED.get(expected, object)
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected in ("int", "float")):
      raise ValueError(f"config.model.{name}={value!r} must be of type {expected}")
