"""The notebooks as pages of the site, with the outputs and pictures that they hold."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from docs.repository import REPOSITORY


def pages() -> dict[str, tuple[str, str]]:
  """Returns name -> path of the notebook and its Markdown, with links relative to that path."""
  return {_name(path): (path.relative_to(REPOSITORY).as_posix(), _page(path)) for path in notebooks()}


def notebooks() -> list[Path]:
  """Returns the paths of the notebooks, in the order of their names."""
  return sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def write_pictures(folder: Path) -> None:
  """Writes the pictures of all notebooks under the names by which their pages show them."""
  for path in notebooks():
    for index, output in enumerate(_outputs(path)):
      if "image/png" in output:
        (folder / f"{_name(path)}_{index}.png").write_bytes(base64.b64decode(_text(output["image/png"])))


def _name(path):
  return f"notebook_{path.stem}"


def _cells(path):
  return json.loads(path.read_text())["cells"]


def _outputs(path):
  return [data for cell in _cells(path) for data in _shown(cell)]


def _shown(cell):
  """What a cell shows, as a dictionary of forms for each output; text of a stream has the form text/plain."""
  return [output.get("data", {"text/plain": output.get("text", "")}) for output in cell.get("outputs", [])]


def _page(path):
  parts, index = [], 0
  for cell in _cells(path):
    text = _text(cell["source"])
    parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    for output in _shown(cell):
      picture = f"```{{image}} {_name(path)}_{index}.png\n:alt: what the cell above draws\n```"
      parts.append(picture if "image/png" in output else f"```text\n{_text(output.get('text/plain', ''))}\n```")
      index += 1
  return "\n\n".join(parts) + "\n"


def _text(value):
  return "".join(value)
