"""Every exported name is documented: what a program can check of shapes, errors, units, sources and examples."""

import ast
import collections
import functools
import re

import pytest
from conftest import REPOSITORY
from test_house import source_files
from test_readme import code_blocks

from docs import papers
from docs.public_names import unique_names
from jaxrec.multi_objective import WEIGHTINGS

ARRAYS = {"AnyArray", "Array", "ndarray"}
# Names of layers, models and weightings that no paper defines, and why.
NO_SOURCE = {
  "AttentionContext": "what a layer may read, for all papers alike",
  "FeedForward": "two dense layers",
  "SequenceEmbedding": "see `embed_sequence`, which it calls",
  "SequentialModel": "what all sequential models share",
  "bidirectional_context": "a context",
  "build": "a model by its name",
  "check_batch": "a check of arguments",
  "check_options": "a check of settings",
  "fixed": "numbers that are given",
}
TIMES = re.compile(r"(^|_)(at|gap|time|times|timestamp)$")
NO_TIME = ("bool", "str")  # Annotations of options whose names end like that of a time.
MOST_USED = 30


class Documented:
  """A public class or function with its place in the source."""

  def __init__(self, public):
    self.name, self.home = public.name, public.home
    place = papers.definition(public.home)
    self.module = ast.parse((REPOSITORY / place.path).read_text())
    self.node = next(
      node for node in ast.walk(self.module) if getattr(node, "lineno", 0) == place.line and is_def(node)
    )
    self.path = place.path

  @property
  def text(self) -> str:
    return ast.get_docstring(self.node) or ""

  @property
  def functions(self) -> list[ast.FunctionDef]:
    """The function, or the public methods of the class."""
    if isinstance(self.node, ast.FunctionDef):
      return [self.node]
    known = ("__call__", "__init__", "__post_init__")
    return [node for node in self.node.body if is_def(node) and (node.name[0] != "_" or node.name in known)]

  def texts(self, function: ast.FunctionDef) -> str:
    """What is said about a function: its docstring, and for a method that of its class."""
    return f"{ast.get_docstring(function) or ''}\n{self.text}"


def is_def(node) -> bool:
  return isinstance(node, (ast.ClassDef, ast.FunctionDef))


@functools.cache
def documented() -> tuple[Documented, ...]:
  return tuple(Documented(public) for public in unique_names())


def offenders(is_wrong) -> list[str]:
  """Names, and methods of names, for which a function of both is true."""
  return [
    f"{entry.home}{'' if function is entry.node else '.' + function.name}"
    for entry in documented()
    for function in entry.functions
    if is_wrong(entry, function)
  ]


def test_every_public_name_has_a_docstring_that_opens_with_a_sentence():
  first = {entry.home: entry.text.partition("\n\n")[0] for entry in documented()}
  assert {home: text for home, text in first.items() if not text[:1].strip() or text[-1] not in ".:"} == {}


def test_every_array_of_a_public_signature_has_its_shape():
  assert offenders(lambda entry, function: has_array_without_shape(function) and not shape(entry.texts(function))) == []


def shape(text: str):
  """A shape such as `[B, N]`, or that any is accepted."""
  return re.search(r"\[[A-Z*.][\w, .*/+]*\]|any shape", text)


def has_array_without_shape(function: ast.FunctionDef) -> bool:
  arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
  annotations = [argument.annotation for argument in arguments if argument.annotation] + [function.returns]
  return any(annotation is not None and bare_array(annotation) for annotation in annotations)


def bare_array(node: ast.AST) -> bool:
  """Whether an annotation has an array outside of `Float[Array, "..."]` and its like."""
  if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
    first, *rest = node.slice.elts
    if rest and isinstance(rest[-1], ast.Constant) and isinstance(rest[-1].value, str):
      return False
  if isinstance(node, (ast.Name, ast.Attribute)) and getattr(node, "id", getattr(node, "attr", "")) in ARRAYS:
    return True
  return any(bare_array(child) for child in ast.iter_child_nodes(node))


def test_every_error_that_a_public_function_raises_itself_is_documented():
  def says_nothing(entry, function):
    return [name for name in raised(function) if not re.search(rf"Raises:(.|\n)*{name}", entry.texts(function))]

  assert offenders(says_nothing) == []


def raised(function: ast.FunctionDef) -> set[str]:
  """The exceptions that the body raises, without those of functions inside it."""
  waiting, found = list(function.body), set()
  while waiting:
    node = waiting.pop()
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
      found.add(node.exc.func.id)
    if not is_def(node):
      waiting += ast.iter_child_nodes(node)
  return found


def test_times_have_their_unit():
  def has_no_unit(entry, function):
    arguments = [*function.args.args, *function.args.kwonlyargs]
    names = [argument.arg for argument in arguments if ast.unparse(argument.annotation or function) not in NO_TIME]
    said = entry.texts(function) + (ast.get_docstring(entry.module) or "")
    return any(TIMES.search(name) for name in names) and "second" not in said

  assert offenders(has_no_unit) == []


def test_what_a_paper_defines_names_its_source():
  without = {
    entry.name
    for entry in documented()
    if entry.home.startswith(("jaxrec.layers.", "jaxrec.models.")) or entry.name in WEIGHTINGS
    if not re.search("Source:|Choice:", entry.text + (ast.get_docstring(entry.module) or ""))
  }
  assert without == set(NO_SOURCE)


def has_example(entry: Documented) -> bool:
  methods = entry.functions if isinstance(entry.node, ast.ClassDef) else []
  return ">>>" in entry.text or any(">>>" in (ast.get_docstring(method) or "") for method in methods)


def test_most_public_names_have_an_example_that_is_run():
  share = sum(map(has_example, documented())) / len(documented())
  assert share > 1 / 2


def test_the_most_used_names_have_an_example_that_is_run():
  uses = uses_of_names()
  ranked = sorted(documented(), key=lambda entry: -uses[entry.name])
  assert [entry.home for entry in ranked[:MOST_USED] if not has_example(entry)] == []


def uses_of_names() -> collections.Counter:
  """In how many files and Python blocks of pages a name is imported, or read from `jaxrec`."""
  texts = [path.read_text() for path in source_files("experiments", "jaxrec", "notebooks", "pallas_kernels", "tests")]
  pages = [path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.rglob("README.md")]
  texts += [block for page in pages for _, block in code_blocks(page, "python")]
  counts = collections.Counter()
  for text in texts:
    names = set(re.findall(r"\bjaxrec\.(\w+)", text))
    for match in re.finditer(
      r"^ *from (?:jaxrec|pallas_kernels)[\w.]* import (\([^)]*\)|.*)$", text, flags=re.MULTILINE
    ):
      names.update(re.findall(r"\w+", match[1]))
    counts.update(names)
  return counts


@pytest.mark.parametrize(
  ("annotation", "is_bare"),
  [
    ("Float[Array, 'B N']", False),
    ("Array", True),
    ("dict[str, Array]", True),
    ("tuple[Float[Array, ' B'], int]", False),
  ],
)
def test_an_array_without_a_shape_is_seen(annotation, is_bare):
  assert bare_array(ast.parse(annotation, mode="eval").body) == is_bare
