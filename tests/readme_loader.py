"""The loader whose code is in the README of an artifact."""


def loader(folder):
  """Returns what the loader makes of a folder, from the text of its README alone, as a user has it."""
  text = (folder / "README.md").read_text()
  namespace = {}
  exec(text.split("```python\n")[1].split("```")[0], namespace)
  return namespace["load"](folder)
