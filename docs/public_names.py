"""The public names of the packages: what `__all__` of a package lists, and what each name leads to."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any, NamedTuple

PACKAGES = ("jaxrec", "pallas_kernels")


class PublicName(NamedTuple):
  """A name that a package exports.

  package: the dotted name of the package.
  name: as it is exported.
  value: what it is.
  """

  package: str
  name: str
  value: Any

  @property
  def home(self) -> str:
    """The dotted name by which the definition is found; for values that are no class or function, the exported one."""
    if self.is_documented:
      return f"{self.value.__module__}.{self.value.__qualname__}"
    return f"{self.package}.{self.name}"

  @property
  def is_documented(self) -> bool:
    """Whether it is a class or a function, which has a docstring of its own."""
    return inspect.isclass(self.value) or (callable(self.value) and hasattr(self.value, "__qualname__"))


def public_names() -> list[PublicName]:
  """Returns the names of `__all__` of every package of ours, modules and dunders left out, in the order of packages."""
  return [
    PublicName(package.__name__, name, value)
    for package in packages()
    for name in package.__all__
    if not name.startswith("__") and not isinstance(value := getattr(package, name), ModuleType)
  ]


def unique_names() -> list[PublicName]:
  """Returns the public classes and functions, each once: under the package that is nearest to its definition."""
  nearest = {}
  for public in public_names():
    if public.is_documented and len(public.package) >= len(nearest.get(public.home, public).package):
      nearest[public.home] = public
  return list(nearest.values())


def packages() -> list[ModuleType]:
  """Returns the packages that have `__all__`."""
  found = []
  for top in PACKAGES:
    module = importlib.import_module(top)
    inner = pkgutil.walk_packages(module.__path__, f"{top}.")
    names = [top, *sorted(name for _, name, is_package in inner if is_package and ".server" not in name)]
    found += [package for name in names if hasattr(package := importlib.import_module(name), "__all__")]
  return found
