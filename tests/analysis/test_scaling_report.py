"""The report of a scaling study: points are means over seeds, sentences say what the points support."""

import numpy as np
import pytest

from jaxrec.analysis import scaling_report
from jaxrec.analysis.scaling_report import Run, curves_of


def run(flops, loss, curve="hstu", share=None, quality=0.5):
  measured = {"layers": 1, "width": 8, "length": 16, "share": flops / 1e13 if share is None else share}
  return Run(curve, measured | {"flops": flops, "parameters": flops / 1e6, "loss": loss, "seconds": 1.0}, quality)


@pytest.fixture(scope="module")
def law():
  """Nine sizes of an exact law, with a rising hit rate."""
  x = np.geomspace(1e8, 1e12, 9)
  return curves_of([run(c, 2 + 3 * (c / 1e8) ** -0.2, quality=0.1 + 0.01 * np.log(c)) for c in x])[0]


def test_the_seeds_of_a_size_are_one_point():
  (curve,) = curves_of([run(1e9, 5.0), run(1e9, 4.0), run(1e8, 6.0)])
  assert [(point["flops"], point["loss"], point["seeds"]) for point in curve.points] == [(1e8, 6.0, 1), (1e9, 4.5, 2)]
  assert curve.points[1]["loss_std"] == pytest.approx(np.sqrt(0.5))


def test_each_config_is_a_curve():
  curves = curves_of([run(1e9, 5.0), run(1e9, 4.0, curve="sasrec")])
  assert [(curve.name, len(curve.points)) for curve in curves] == [("hstu", 1), ("sasrec", 1)]


def test_sentences_name_law_prediction_and_line(law):
  text = "\n".join(scaling_report.sentences(law, "HR@10"))
  assert "The points support a power law in FLOPs." in text
  assert "^-0.200, exponent between 0.200 and 0.200 (95%)" in text
  assert "an error of +0.00%" in text or "an error of -0.00%" in text
  assert "HR@10 = 0.1000 + 0.0100 ln FLOPs" in text


def test_json_has_the_exponent_with_its_interval(law):
  (found,) = scaling_report.as_json([law], "HR@10")["curves"]
  assert found["flops"]["law"]["exponent"] == pytest.approx(0.2, rel=0.01)
  low, high = found["flops"]["law"]["exponent_interval"]
  assert low <= found["flops"]["law"]["exponent"] * 1.001 and high >= found["flops"]["law"]["exponent"] * 0.999
  assert found["flops"]["reasons_against"] == [] and found["held_out"]["error"] == pytest.approx(0, abs=1e-3)


def test_the_table_marks_the_frontier():
  (curve,) = curves_of([run(1e8, 6.0), run(1e9, 6.5), run(1e10, 5.0)])
  rows = scaling_report.table([curve], "HR@10").splitlines()[2:]
  assert ["| yes |" in row for row in rows] == [True, False, True]


def test_few_points_are_reported_without_a_law():
  text = scaling_report.as_markdown(curves_of([run(1e8, 6.0), run(1e9, 5.0)]), "HR@10")
  assert "do not support a power law in FLOPs: 2 points are on the frontier" in text and "loss =" not in text
