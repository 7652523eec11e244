"""The pages of the API reference, in reStructuredText for Sphinx's autodoc."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from docs.markdown import restructured
from docs.public_names import PublicName, packages, unique_names
from docs.repository import REPOSITORY, source_link

ROOMS = ("evaluation", "objectives", "serving", "train", "analysis", "data", "parallel")


def pages() -> dict[str, str]:
  """Returns name -> text of a page for each package with public names, and of one that lists the other modules."""
  exported = {package.__name__: [] for package in packages()}
  for public in unique_names():
    exported[public.package].append(public)
  found = {f"api_{package}": _page(package, names) for package, names in exported.items()}
  return {**found, "api_modules": _modules({public.home for public in unique_names()})}


def _page(package: str, names: list[PublicName]) -> str:
  """All public names of a package that no package inside it exports as well."""
  lines = [f"``{package}``", "=" * (len(package) + 4), "", f".. automodule:: {package}", "   :no-members:", ""]
  for public in sorted(names, key=lambda public: public.name.lower()):
    lines += [*_entry(public), ""]
  return "\n".join(lines)


def _entry(public: PublicName) -> list[str]:
  if inspect.isclass(public.value):
    members = _own_members(public.value)
    options = [f"   :members: {', '.join(members)}"] if members else ["   :no-members:"]
    return [f".. autoclass:: {public.package}.{public.name}", *options]
  return [f".. autofunction:: {public.package}.{public.name}"]


def _own_members(value: type) -> list[str]:
  """Public methods with a docstring, and `__call__`, that a class itself defines; fields stand in its docstring."""
  return [
    name
    for name, member in vars(value).items()
    if (name == "__call__" or not name.startswith("_"))
    and name != "replace"  # of every dataclass of Flax
    and (inspect.isfunction(member) or isinstance(member, (classmethod, property)))
    and getattr(member, "__doc__", None)
  ]


def _modules(exported: set[str]) -> str:
  """A list of the functions and classes that packages do not export, each with a link to its source line."""
  title = "Everything else, by module"
  introduction = "What no package exports, to be imported from its module. Names lead to the source."
  lines = [title, "=" * len(title), "", introduction, ""]
  for room in ROOMS:
    lines += [f"``jaxrec.{room}``", "-" * (len(room) + 11), ""]
    for path in sorted((REPOSITORY / "jaxrec" / room).rglob("*.py")):
      lines += _module(path, exported)
  return "\n".join(lines)


def _module(path: Path, exported: set[str]) -> list[str]:
  relative = path.relative_to(REPOSITORY).as_posix()
  module = relative.removesuffix(".py").replace("/", ".")
  rows = []
  for node in ast.parse(path.read_text()).body:
    is_public = isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")
    if is_public and f"{module}.{node.name}" not in exported:
      summary = (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ")
      address = source_link(relative, node.lineno)
      rows += [f"   * - `{node.name} <{address}>`__", f"     - {restructured(summary)}"]
  head = ["", f"``{module}``", "", ".. list-table::", "   :widths: 30 70", ""]
  return [*head, *rows, ""] if rows else []
