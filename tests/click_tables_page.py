"""The page experiments/results/click_tables.md, made from its lines; `results_pages.py` writes it.

    python tests/click_tables_page.py "Taobao, an excerpt=runs/click_taobao" "Styles, width 4=runs/click_styles_4"

writes the lines of these data from the folders of `experiments.click_table`, and keeps the others.
"""

import json
import sys
import textwrap
from pathlib import Path

from conftest import REPOSITORY

from experiments.click_table import as_table

ABOUT = """\
Each model at the initial scale of its tables (with tables of their own for attention: of both, representation /
attention) that has the best AUC on validation, in the seed that chose it; then the other seeds at that scale. Test
candidates are the same for all seeds. Mean ± sample standard deviation over seeds; differences with intervals of 95%
from draws of users and seeds. "counts": logistic regression on counts of the history and popularity. "NDCG planted"
and "NDCG published": NDCG@20 of what the search finds, by the planted truth and by the measure of DARE's authors
(mutual information, scores without items); "recency" takes the latest events. What the rows are:
`jaxrec.models.ctr.VARIANTS`. Reading: [click_through.md](click_through.md)."""


def click_tables_page(lines: list[dict], made: str) -> str:
  """Returns `click_tables.md`: a table for each data set and width."""
  parts = ["# Click-through models, each at its best initial scale", made.strip(), ABOUT]
  for line in lines:
    parts += [f"## {line['data']}", _command(line), as_table(line)]
  return "\n\n".join(parts) + "\n"


def _command(line: dict) -> str:
  settings, limits = line["settings"], line["settings"]["information"]
  lists = {"variants": line["models"]} | {name: settings[name] for name in ("scales", "scale_seeds", "seeds")}
  flags = {"config_file": settings["config"], "base": settings["base"], "metric": settings["metric"]}
  flags |= {name: ",".join(map(str, values)) for name, values in lists.items()}
  flags |= {name: limits[name] for name in ("min_samples", "min_count", "max_rare")}
  if limits["first_ages"]:
    flags["first_ages"] = ",".join(map(str, limits["first_ages"]))
  given = [f"--{name}={value}" for name, value in flags.items()]
  words = ["python -m experiments.click_table", *given, *(f"--override={text}" for text in settings["overrides"])]
  command = textwrap.fill(" ".join(words), 118, subsequent_indent="    ", break_on_hyphens=False).replace("\n", " \\\n")
  ages = "their ages are counted in bins" if limits["first_ages"] else "each age is counted for itself"
  return (
    f"```bash\n{command}\n```\n\nPublished measure: categories of {limits['min_samples']} training candidates or more,"
    f" at most {limits['max_rare']} events seen less than\n{limits['min_count']} times (published: 700, 20, 50); {ages}"
    " (published: each for itself)."
  )


if __name__ == "__main__":
  path = REPOSITORY / "experiments" / "results" / "click_tables.jsonl"
  lines = {line["data"]: line for line in map(json.loads, path.read_text().splitlines())}
  for name, folder in (argument.split("=", 1) for argument in sys.argv[1:]):
    lines[name] = {"data": name} | json.loads(Path(folder, "table.json").read_text())
  path.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
