"""The device report: resumable, honest about what went wrong, readable."""

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import pytest
from conftest import REPOSITORY

from jaxrec.device_report import attention_checks, attention_times, journal, pages, report
from jaxrec.device_report.attention_checks import Case
from jaxrec.device_report.attention_times import Workload
from jaxrec.device_report.journal import Entry

ABOUT = {"device": "a device", "platform": "cpu", "jax": "0"}


def silent(_):
  """Says nothing."""


def test_what_was_measured_is_not_measured_again(tmp_path):
  path, calls = str(tmp_path / "report.jsonl"), []
  entries = [Entry(name, "device", lambda name=name: calls.append(name) or {"tflops": 1}) for name in ("a", "b")]
  journal.run_entries(entries[:1], path, ABOUT, silent)
  records = journal.run_entries(entries, path, ABOUT, silent)
  assert calls == ["a", "b"]
  assert [record["name"] for record in records] == ["a", "b"]


def test_a_measurement_during_which_the_process_ended_is_reported_and_not_tried_again(tmp_path):
  path = str(tmp_path / "report.jsonl")
  with open(path, "w") as file:
    file.write(json.dumps({"name": "hangs", "section": "device", "begun": True}) + "\n" + '{"name": "cut sho')
  (record,) = journal.run_entries([Entry("hangs", "device", lambda: pytest.fail("tried again"))], path, ABOUT, silent)
  assert "the process ended" in record["failed"]


def test_a_measurement_that_hangs_takes_the_process_with_it_and_the_next_run_continues(tmp_path):
  program = f"""
import time
from jaxrec.device_report import journal
entries = [journal.Entry("hangs", "device", lambda: time.sleep(60)), journal.Entry("works", "device", dict)]
print([r["name"] for r in journal.run_entries(entries, {str(tmp_path / "report.jsonl")!r}, {{}}, print, limit=0.5)])
"""
  environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
  runs = [
    subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment) for _ in range(2)
  ]
  assert runs[0].returncode != 0
  assert runs[1].returncode == 0 and "['works', 'hangs']" in runs[1].stdout


def test_failures_and_refusals_are_findings(tmp_path):
  def fail():
    raise AssertionError("relative errors over 1")

  def refuse():
    raise NotImplementedError("no such unit")

  entries = [Entry("wrong", "checks", fail), Entry("refused", "checks", refuse)]
  wrong, refused = journal.run_entries(entries, str(tmp_path / "report.jsonl"), ABOUT, silent)
  assert wrong["failed"] == "AssertionError: relative errors over 1" and refused["skipped"] == "no such unit"
  text = pages.markdown([wrong, refused])
  assert "FAILED: AssertionError" in text and "no such unit" in text


def test_after_the_deadline_the_rest_is_not_measured_and_the_next_run_measures_it(tmp_path):
  path, entries = str(tmp_path / "report.jsonl"), [Entry("late", "device", lambda: {"tflops": 1})]
  (record,) = journal.run_entries(entries, path, ABOUT, silent, deadline=0.0)
  assert record["skipped"] == journal.OUT_OF_TIME
  (record,) = journal.run_entries(entries, path, ABOUT, silent)
  assert record["tflops"] == 1


@pytest.mark.parametrize("implementation", ["xla", "dense"])
def test_a_right_implementation_passes_on_every_mask(implementation):
  case = Case(length=70, width=8, value_width=8, dtype="float32", tables="time position", activation="softmax")
  assert set(attention_checks.check(case, implementation)["errors"]) >= {"out", "d_q", "d_time_table"}


def test_a_wrong_implementation_is_caught_by_mask_and_array(monkeypatch):
  right = attention_checks.segment_attention

  def without_the_last_key(q, k, v, mask, *, implementation, **options):
    v = v if implementation == "reference" else v.at[:, -1].set(0)
    return right(q, k, v, mask, implementation=implementation, **options)

  monkeypatch.setattr(attention_checks, "segment_attention", without_the_last_key)
  with pytest.raises(AssertionError, match=r"full out .*seed|seed.*full out"):
    attention_checks.check(Case(length=40, width=8, value_width=8, dtype="float32"), "xla")


def test_nan_never_passes():
  errors = attention_checks.relative_errors({"out": jnp.array([jnp.nan])}, {"out": jnp.ones(1)})
  assert not errors["out"] <= 1


def test_pairs_are_those_of_the_mask():
  workload = Workload(24, width=4, heads=3, rows=2, domains=4)
  mask = attention_times._problem(workload)[1]
  assert workload.pairs == 3 * int(mask.to_dense(24).sum())


def test_tflops_are_of_the_useful_work():
  record = attention_times.measure(Workload(64, width=8, heads=1, dtype="float32"), "dense")
  pairs = 64 * 65 / 2
  assert record["forward_tflops"] == pytest.approx(4 * pairs * 8 / record["forward_median_ms"] / 1e9, rel=1e-3)


def test_names_are_unique_and_every_section_has_a_table():
  for quick in (True, False):
    entries = report.entries({}, quick)
    assert len({entry.name for entry in entries}) == len(entries)
    assert {entry.section for entry in entries} <= set(report.SECTIONS) == set(pages._SECTIONS)


def test_the_accelerators_lists_have_unique_names_too():
  for platform in ("gpu", "tpu"):
    for quick in (True, False):
      names = [f"{name} {w}" for w, name in report._accelerator_workloads(platform, quick)]
      assert len(set(names)) == len(names)


def test_the_program_writes_the_report_and_continues_it(tmp_path):
  command = [
    *(sys.executable, "-m", "experiments.device_report", "--quick", f"--out={tmp_path}"),
    *("--sections=checks", "--names=dense silu bfloat16 n257*"),
  ]
  for _ in range(2):
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr[-2000:]
  assert "| dense silu bfloat16 n257 d128 no bias |" in result.stdout
  assert len((tmp_path / "report.jsonl").read_text().splitlines()) == 2  # begun and finished, once
  assert "<table>" in (tmp_path / "report.html").read_text()
