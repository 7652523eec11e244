"""Settings of Sphinx. Pages are put together by `docs.build`, which starts it with the folder of pages as source."""

import inspect
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jaxrec  # noqa: E402
from docs.markdown import restructured  # noqa: E402
from docs.papers import definition  # noqa: E402
from docs.repository import source_link  # noqa: E402

project = "jaxrec"
author = "the authors of jaxrec"
release = version = jaxrec.__version__
html_title = f"jaxrec {release}"
copyright = "the authors of jaxrec. Licence: Apache-2.0"  # noqa: A001
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.linkcode"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
default_role = "py:obj"  # Single backticks of docstrings: a link where the name is known, else code.

myst_heading_anchors = 4
myst_url_schemes = {"http": None, "https": None, "site": {"url": "{{path}}#{{fragment}}"}}
# A section may begin below the level of the file it is taken from; cells of notebooks may hold more than Python.
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "notes_style"), ("Choice", "notes_style")]
python_maximum_signature_line_length = 100

html_theme = "pydata_sphinx_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
ALONE = (
  "index",
  "install",
  "quickstart",
  "your_data",
  "which_model",
  "notebooks",
  "papers",
  "limits",
  "glossary",
  "changelog",
)
html_sidebars = {name: [] for name in (*ALONE, "contributing")}  # Pages without subpages or siblings.
html_theme_options = {
  "show_toc_level": 2,
  "navigation_with_keys": False,
  "navbar_end": ["theme-switcher"],
  "footer_start": ["copyright"],
  "footer_end": [],
  "secondary_sidebar_items": ["page-toc"],
  "header_links_before_dropdown": 6,
}


def linkcode_resolve(domain, info):
  """Returns the address of the lines of a public name."""
  if domain != "py" or not info["module"]:
    return None
  value = sys.modules[info["module"]]
  for name in info["fullname"].split("."):
    value = getattr(value, name)
  value = inspect.unwrap(getattr(value, "fget", value))
  try:
    place = definition(f"{value.__module__}.{value.__qualname__}")
  except (AttributeError, ValueError):
    return None  # A value, or a method that a decorator made: nothing of that name stands in a file.
  return source_link(place.path, place.line)


def short_signature(app, what, name, obj, options, signature, returns):
  """Leaves out what every Flax module has, and writes arrays and dtypes as the code does."""
  short = re.sub(r",? ?parent: .*?, name: str \| None = None", "", signature or "")
  short = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", short).replace("~numpy.dtype", "dtype")
  arrays = re.compile(r"~?(?:jaxlib\._jax|jax|numpy)\.(?=Array|ndarray)")
  return arrays.sub("", short) if signature else signature, arrays.sub("", returns) if returns else returns


_HEAD = re.compile(r"^(Args|Attributes|Raises|Returns|Source|Choice|Terms|Yields):( .*)?$")


def write_as_sphinx_reads(app, what, name, obj, options, lines):
  """Changes a docstring in place: our sections may begin on the line of their heading, fields are a list, tables and
  code are those of Markdown."""
  lines[:] = _tables(_fields(_sections(_code([_plain(line) for line in lines]))))


def _plain(line):
  """A line whose bars and words next to code mean the same to reStructuredText; examples stay as they are."""
  is_other = line.lstrip().startswith((">>>", "...", "|")) or "``" in line
  return line if is_other else restructured(line, marks="|")


def _code(lines):
  """An indented block after a paragraph is code; below Args, Raises and their like it is none."""
  found = []
  for index, line in enumerate(lines):
    before = next((text for text in reversed(lines[:index]) if text.strip()), "")
    begins = line.startswith("    ") and not lines[index - 1].strip() and not before.startswith(" ") and index
    if begins and not _HEAD.match(before):
      found += ["", ".. code-block:: python", ""]
    found.append(line)
  return found


def _sections(lines):
  """A `Source: text` with continuation lines becomes a heading and an indented paragraph."""
  found = []
  for line in lines:
    match = _HEAD.match(line)
    if match and match[1] in ("Source", "Choice", "Terms"):
      found += ["", f"**{match[1]}:**{match[2] or ''}"]
    elif found and found[-1].startswith(("**Source:**", "**Choice:**", "**Terms:**")) and line.startswith("  "):
      found[-1] += " " + line.strip()
    else:
      found.append(line)
  return found


def _fields(lines):
  """A block of lines `name: text`, which says what the fields of a class are, becomes a list."""
  found, in_fields = [], False
  for index, line in enumerate(lines):
    match = re.match(r"^([a-z_][\w, /*]*): (.+)$", line)
    before = lines[index - 1] if index else ""
    if match and (not before.strip() or in_fields):
      found += ([] if in_fields else [""]) + [f"* ``{match[1]}``: {match[2]}"]
      in_fields = True
    elif in_fields and line.startswith("  "):
      found.append(line)
    else:
      found += [""] if in_fields and line.strip() else []
      in_fields = False
      found.append(line)
  return found


def _tables(lines):
  """A table of Markdown becomes one of reStructuredText."""
  found = []
  for line in lines:
    if not line.startswith("|"):
      found.append(line)
    elif re.fullmatch(r"[|\-: ]+", line):
      continue
    else:
      cells = [cell.strip() for cell in line.strip("|").split("|")]
      found += [] if found and found[-1].startswith("   ") else ["", ".. list-table::", ""]
      found += [f"   {'* -' if index == 0 else '  -'} {cell}" for index, cell in enumerate(cells)]
  return found


def setup(app):
  """Registers the changes of signatures and docstrings, the latter before napoleon's."""
  app.connect("autodoc-process-signature", short_signature)
  app.connect("autodoc-process-docstring", write_as_sphinx_reads, priority=100)
