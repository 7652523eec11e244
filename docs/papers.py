"""The page that leads from the equations of the papers to code and tests; `papers.toml` says which belong together."""

from __future__ import annotations

import ast
import functools
import tomllib
from pathlib import PurePosixPath
from typing import NamedTuple

from docs.repository import REPOSITORY

PAPERS = REPOSITORY / "docs" / "papers.toml"
_KEYS = {"number", "says", "code", "tests", "missing", "note"}
_INTRODUCTION = """# From the papers to the code

Every equation of the four papers that is implemented, with the lines that compute it and the tests that hold them to
it, and those that are not implemented, with the reason. Numbers are the paper's own where public transcriptions give
them; the rest is named by its section or by what it defines. Where the code differs from a paper, its docstring says
so under "Choice".
"""


class Place(NamedTuple):
  """Where something is defined: a path in the repository and the number of a line."""

  path: str
  line: int


def papers() -> list[dict]:
  """Returns the papers with their equations.

  Raises:
    ValueError: an equation has unknown keys, or not exactly one of code with tests, and `missing`.
  """
  found = tomllib.loads(PAPERS.read_text())["paper"]
  for paper in found:
    for equation in paper["equation"]:
      given = set(equation)
      complete = ({"code", "tests"} <= given) != ("missing" in given) and {"number", "says"} <= given <= _KEYS
      if not complete or not all(equation[key] for key in given):
        raise ValueError(
          f"{paper['arxiv']} {equation.get('number')}: {sorted(given)}; needed are code and tests, or missing"
        )
  return found


def definition(name: str) -> Place:
  """Returns where a module, class, function or method is defined, from its dotted name.

  Raises:
    ValueError: there is no such module, or nothing of this name in it.

  >>> definition("docs.papers.Place").path
  'docs/papers.py'
  """
  parts = name.split(".")
  for count in range(len(parts), 0, -1):
    stem = REPOSITORY.joinpath(*parts[:count])
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
      if path.is_file():
        return Place(path.relative_to(REPOSITORY).as_posix(), _line(_tree(path), parts[count:], name))
  raise ValueError(f"{name!r}: there is no such module")


def place_of_test(name: str) -> Place:
  """Returns where a test is defined, from `folder/file.py::function`, relative to tests/.

  Raises:
    ValueError: there is no such file, or no such function in it.
  """
  file, _, function = name.partition("::")
  path = REPOSITORY / "tests" / file
  if not path.is_file() or not function.startswith("test_"):
    raise ValueError(f"{name!r}: there is no such test; write folder/file.py::test_function")
  return Place(f"tests/{file}", _line(_tree(path), [function], name))


@functools.cache
def _tree(path):
  return ast.parse(path.read_text())


def _line(node, names, whole):
  """The line of the definition that the names lead to, from the outer to the inner one."""
  line = 1
  for name in names:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [child for child in node.body if isinstance(child, kinds) and child.name == name]
    if not found:
      raise ValueError(f"{whole!r}: {name!r} is not defined there")
    node, line = found[-1], found[-1].lineno
  return line


def page() -> tuple[str, str]:
  """Returns the path that links of the page are relative to, and the page in Markdown."""
  parts = [_INTRODUCTION]
  for paper in papers():
    address = f"[arXiv {paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})"
    numbers = f" {paper['numbers']}" if "numbers" in paper else ""
    parts.append(f"\n## {paper['title']}\n\n{address}.{numbers}\n\n")
    parts += [_entry(equation) for equation in paper["equation"] if "code" in equation]
    missing = [f"- {e['number']}: {e['says']}. {e['missing']}\n" for e in paper["equation"] if "missing" in e]
    parts += ["**Not implemented**\n\n", *missing] if missing else []
  return "docs/pages/papers.md", "".join(parts)


def _entry(equation):
  code = [_link(name.split(".", 1)[1], definition(name)) for name in equation["code"]]
  tests = [_link(_title(name), place_of_test(name)) for name in equation["tests"]]
  note = f" ({equation['note']})" if "note" in equation else ""
  return (
    f"**{equation['number']}** {equation['says']}{note}\n\n- code: {', '.join(code)}\n- tests: {'; '.join(tests)}\n\n"
  )


def _title(name):
  """The name of a test as the sentence it is."""
  return name.partition("::")[2].removeprefix("test_").replace("_", " ")


def _link(text, place):
  shown = text if " " in text else f"`{text}`"
  return f"[{shown}, {PurePosixPath(place.path).name}:{place.line}](../../{place.path}#L{place.line})"
