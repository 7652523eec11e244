"""Documents show no result that is not in a committed log, and no result without its protocol."""

import json
import re

import pytest
import results_pages
from conftest import REPOSITORY
from results_pages import PROTOCOL, RESULTS, lines_of, seed_means, short

METRIC = re.compile(r"(?<![\d.])0?(\.\d{4})(?!\d)")
# Pages with numbers that are computed from lines or published elsewhere, and which those are.
DERIVED = {
  "certificates.md": "means over seeds, and intervals from resamples",
  "click_tables.md": "means and standard deviations over seeds",
  "click_through.md": "means and standard deviations over seeds, published AUC",
  "click_through_one_scale.md": "means and standard deviations over seeds, published AUC",
  "cross_domain.md": "means and standard deviations over seeds, published metrics",
  "multi_domain.md": "means and standard deviations over seeds",
  "ranking.md": "means and standard deviations over seeds, normalized entropies as 1 - RIG",
  "search_cpu.md": "means and standard deviations over seeds",
  "scaling.md": "laws fitted to the lines, means over seeds, published metrics, a uniform guess",
  "device_h200.md": "the retrained test of two runs, whose folders stayed on the device",
}


def numbers(value):
  """Every number in what a JSON file holds."""
  if isinstance(value, dict | list):
    for part in value.values() if isinstance(value, dict) else value:
      yield from numbers(part)
  elif isinstance(value, int | float) and not isinstance(value, bool):
    yield value


@pytest.fixture(scope="module")
def recorded():
  """The numbers of all committed logs, and means and deviations of quality over seeds, as documents show them."""
  logs = [json.loads(path.read_text()) for path in RESULTS.rglob("*.json")]
  logs += [json.loads(line) for path in RESULTS.rglob("*.jsonl") for line in path.read_text().splitlines()]
  of_seeds = [
    number for line in seed_means(lines_of("quality.jsonl")) for name in ("HR@10", "NDCG@10") for number in line[name]
  ]
  return {short(number) for number in (*numbers(logs), *of_seeds)}


def test_made_pages_are_those_of_their_lines():
  for name, page in results_pages.PAGES.items():
    assert (RESULTS / name).read_text() == page(), "run `python tests/results_pages.py`"


@pytest.mark.parametrize("path", ["README.md", *sorted(f"experiments/results/{p.name}" for p in RESULTS.glob("*.md"))])
def test_metrics_of_documents_are_in_committed_logs(path, recorded):
  missing = [number for number in METRIC.findall((REPOSITORY / path).read_text()) if number not in recorded]
  assert bool(missing) == (path.split("/")[-1] in DERIVED), missing


def test_pairs_of_the_first_page_are_results_with_a_protocol():
  lines = lines_of("quality.jsonl")
  known = {(short(line["HR@10"]), short(line["NDCG@10"])) for line in lines}
  known |= {(short(line["HR@10"][0]), short(line["NDCG@10"][0])) for line in seed_means(lines)}
  section = (REPOSITORY / "README.md").read_text().split("\n## Results")[1].split("| question |")[0]
  shown = re.findall(r"(\.\d{4}) / (\.\d{4})", section)
  assert len(shown) > 20 and set(shown) <= known


def test_every_quality_line_has_its_protocol_and_its_log():
  for line in lines_of("quality.jsonl"):
    wrong = {name for name, kind in PROTOCOL.items() if not isinstance(line[name], kind | None)}
    assert not wrong, line
    if line["origin"] != "here":
      continue
    assert None not in [line[name] for name in ("tie_order", "seen_items", "epochs", "seeds")]
    path = RESULTS / line["log"]
    values = [
      json.loads(text) for text in (path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()])
    ]
    sources = [part for value in values for part in (value, *value.values()) if isinstance(part, dict)]
    metrics = {name: line[name] for name in ("HR@10", "NDCG@10", "count")}
    assert any(metrics.items() <= source.items() for source in sources), line
