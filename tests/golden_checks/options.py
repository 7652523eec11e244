"""The options of a golden file: those that nobody reads are an error, and so are values that a check does not know."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from typing import Any


class Options(Mapping):
  """A read-only mapping that remembers which of its entries were read; mappings inside it do the same.

  >>> options = Options({"d": 4, "model": {"h": 2, "n": 5}})
  >>> options["d"], options["model"]["h"], options.get("width", 8)
  (4, 2, 8)
  >>> options.unread()
  ['model.n']
  """

  def __init__(self, values: Mapping[str, Any]):
    self._values = {name: Options(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    self._read: set[str] = set()

  def __getitem__(self, name: str) -> Any:
    self._read.add(name)
    return self._values[name]

  def __contains__(self, name: object) -> bool:
    return name in self._values

  def __iter__(self) -> Iterator[str]:
    return iter(self._values)

  def __len__(self) -> int:
    return len(self._values)

  def unread(self, needless: Collection[str] = ()) -> list[str]:
    """Returns the names of what was not read and matches none of the patterns `needless`."""
    names = []
    for name, value in self._values.items():
      if isinstance(value, Options):
        names += [f"{name}.{inner}" for inner in value.unread()]
      elif name not in self._read:
        names.append(name)
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in needless)]

  def one_of(self, name: str, choices: Mapping[Any, Any], default: Any = None) -> Any:
    """Returns what `choices` has for the value of an option, or for `default` where a file lacks the option.

    Raises:
      ValueError: a value that `choices` does not know.
    """
    value = self.get(name, default)
    if value not in choices:
      raise ValueError(f"option {name}={value!r} is not one of {list(choices)}")
    return choices[value]

  def ignore(self, *names: str) -> None:
    """Reads options that another option of the file makes meaningless."""
    self._read.update(names)

  def confirm(self, **actual: Any) -> None:
    """Compares options with what the arrays of the file say, and so reads them; an option that a file lacks is skipped.

    Raises:
      ValueError: they differ.
    """
    for name, value in actual.items():
      if name in self and self[name] != value:
        raise ValueError(f"option {name}={self[name]!r}, but the arrays of the file say {value!r}")
