"""The tables of settings in experiments/README.md, made from the dataclasses that declare the settings.

    python tests/settings_tables.py

writes them anew; a test compares them with the code.
"""

import dataclasses
import html
import re

from conftest import REPOSITORY

from jaxrec.train import click_task, config, ranking_task

PAGE = REPOSITORY / "experiments" / "README.md"
SECTION = re.compile(r"(<!-- settings: (\w+) (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
TASKS = {"sequential": config.GROUPS, "click_through": click_task.GROUPS, "ranking": ranking_task.GROUPS}


def with_tables(page: str) -> str:
  """Returns the text of a page with the table of every section `<!-- settings: TASK GROUP -->` made anew."""
  return SECTION.sub(lambda match: match[1] + table(match[2], match[3]) + match[4], page)


def table(task: str, name: str) -> str:
  """Returns the settings of a group as Markdown; of click-through those that sequential training lacks or differs in.

  >>> print(table("sequential", "parallel").splitlines()[2])
  | `data` | `-1` |  |  |
  """
  rows = rows_of(TASKS[task][name])
  if task != "sequential":
    known = rows_of(config.GROUPS[name])
    rows = [row for row in rows if row not in known]
  head = "| setting | default | accepted | meaning |\n|---|---|---|---|\n"
  return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def rows_of(group: type) -> list[list[str]]:
  """Returns name, default, accepted values and help of each setting of a group."""
  default = group()
  return [
    [
      f"`{field.name}`",
      f"`{getattr(default, field.name)!r}`",
      accepted(field.metadata),
      html.escape(field.metadata["text"], quote=False),
    ]
    for field in dataclasses.fields(group)
  ]


def accepted(metadata) -> str:
  """Returns the choices or the range of a setting; "" where any value of its type will do."""
  if metadata["choices"]:
    return ", ".join(f"`{choice}`" for choice in metadata["choices"])
  bounds = {">=": metadata["at_least"], "<": metadata["below"]}
  return ", ".join(f"{sign} {bound}" for sign, bound in bounds.items() if bound is not None)


if __name__ == "__main__":
  PAGE.write_text(with_tables(PAGE.read_text()))
