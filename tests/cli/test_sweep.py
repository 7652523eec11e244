"""Sweeps: which runs of a grid are started or skipped, and the table of results."""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time

import pytest
from conftest import REPOSITORY

from jaxrec.cli import process, sweep, sweep_table
from jaxrec.cli.config_argument import config_file
from jaxrec.cli.sweep import make_jobs, plan, read_results, run_jobs, write_table
from jaxrec.train import loop
from jaxrec.train.lock import FolderLock
from jaxrec.train.monitor import TableError

# ml_collections 1.1 loads config files by a deprecated function of Python.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = """
from jaxrec.train.config import default_config

def get_config():
  config = default_config()
  config.seed, config.model.width, config.optimizer.learning_rate, config.eval.ks = 0, 8, 0.1, (1, 10)
  return config
"""


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "small.py"
  path.write_text(CONFIG)
  return str(path)


def _train(job, workdir):
  """Returns a summary whose HR@10 is 0.1 times the seed, plus 0.5 if `width` is above 8."""
  value = job.seed / 10 + (job.resolved["model"]["width"] > 8) / 2
  return {"select": {"best_epoch": 3, "test": {"HR@10": value, "domain/a/HR@10": 0.0}}}


def test_a_grid_is_the_product_of_overrides_and_seeds(config):
  jobs = make_jobs([config], ["model.width=8,16", "optimizer.learning_rate=0.1,0.2"], [1, 2])
  assert [(job.resolved["model"]["width"], job.resolved["optimizer"]["learning_rate"], job.seed) for job in jobs] == [
    (width, rate, seed) for width in (8, 16) for rate in (0.1, 0.2) for seed in (1, 2)
  ]


def test_a_run_is_started_with_the_flags_of_experiments_train(config):
  (job,) = make_jobs([config], ["model.width=16"], [7])
  assert job.flags == [f"--config={config}", "--config.model.width=16", "--config.seed=7"]


def test_commas_inside_brackets_belong_to_the_value(config):
  jobs = make_jobs([config], ["eval.ks=(1,5),(1,50)"], [1])
  assert [job.resolved["eval"]["ks"] for job in jobs] == [[1, 5], [1, 50]]


def test_the_key_of_a_run_depends_on_its_resolved_config(config, tmp_path):
  before = make_jobs([config], [], [1])[0].key
  assert make_jobs([config], ["model.width=8"], [1])[0].key == before
  (tmp_path / "small.py").write_text(CONFIG.replace("0, 8", "0, 9"))
  assert make_jobs([config], [], [1])[0].key != before


@pytest.mark.parametrize(
  "overrides,seeds,message",
  [
    (["train.widht=8"], [1], "config.train.widht is unknown"),
    (["model.width=wide"], [1], "model.width=wide"),
    (["width"], [1], "must be group.key=value1,value2"),
    (["model.width=8,8"], [1], "are the same run"),
    ([], [1, 1], "are the same run"),
  ],
)
def test_an_invalid_grid_is_refused_before_any_run(config, overrides, seeds, message):
  with pytest.raises(ValueError, match=message):
    make_jobs([config], overrides, seeds)


def test_a_missing_config_file_is_refused(tmp_path):
  with pytest.raises(ValueError, match="nowhere.py"):
    make_jobs([str(tmp_path / "nowhere.py")], [], [1])


def test_complete_runs_are_skipped(config, tmp_path):
  out, started = str(tmp_path / "out"), []

  def train(job, workdir):
    started.append(job.seed)
    return _train(job, workdir)

  run_jobs(make_jobs([config], [], [1, 2]), out, train)
  run_jobs(make_jobs([config], [], [1, 2, 3]), out, train)
  assert started == [1, 2, 3]


def test_a_failed_run_is_returned_and_retried_and_stops_no_other(config, tmp_path):
  out, jobs = str(tmp_path / "out"), make_jobs([config], [], [1, 2])

  def train(job, workdir):
    if job.seed == 1 and not os.path.exists(tmp_path / "fixed"):
      raise RuntimeError("loss is NaN")
    return _train(job, workdir)

  assert [job.seed for job in run_jobs(jobs, out, train)] == [1]
  assert set(read_results(out)) == {jobs[1].key}
  (tmp_path / "fixed").touch()
  assert run_jobs(jobs, out, train) == []
  assert set(read_results(out)) == {job.key for job in jobs}


@pytest.mark.parametrize(
  "texts, message",
  [
    (["1-3"], "--seeds: '1-3' is not an integer; give integers in 0..4294967294 separated by commas: --seeds=1,2,3"),
    (["1", ""], "--seeds: '' is not an integer"),
    (["1", "-2"], "--seeds=-2 must be an integer in 0..4294967294"),
    (["4294967295"], "--seeds=4294967295 must be"),
    ([], "--seeds is empty"),
  ],
)
def test_seeds_that_are_none_are_named(texts, message):
  with pytest.raises(ValueError) as raised:
    sweep.parse_seeds(texts)
  assert str(raised.value).startswith(message)


def test_an_interrupted_run_resumes_in_its_workdir(config, tmp_path):
  jobs, folders = make_jobs([config], [], [1]), []

  def train(job, workdir):
    folders.append(workdir)
    if len(folders) == 1:
      raise sweep.Stopped("stopped")
    return _train(job, workdir)

  with pytest.raises(sweep.Stopped):
    run_jobs(jobs, str(tmp_path), train)
  run_jobs(jobs, str(tmp_path), train)
  assert folders[0] == folders[1]


def test_an_incomplete_result_is_run_again(config, tmp_path):
  out, jobs = str(tmp_path), make_jobs([config], [], [1, 2])
  run_jobs(jobs, out, _train)
  path = tmp_path / "results.jsonl"
  whole = path.read_text()
  path.write_text(whole[:-20])
  assert set(read_results(out)) == {jobs[0].key}
  run_jobs(jobs, out, _train)
  assert path.read_text() == whole


def test_an_invalid_line_in_the_middle_is_named(tmp_path):
  (tmp_path / "results.jsonl").write_text('{"key": \n{"key": "b"}\n')
  with pytest.raises(ValueError, match=r"results\.jsonl:1: not a result"):
    read_results(str(tmp_path))


def test_a_plan_lists_complete_begun_and_missing_runs(config, tmp_path):
  jobs = make_jobs([config], [], [1, 2, 3])
  run_jobs(jobs[:1], str(tmp_path), _train)
  begun = tmp_path / "runs" / jobs[1].name
  begun.mkdir()
  (begun / "config.json").write_text("{}")
  lines = plan(jobs, str(tmp_path)).splitlines()
  assert [line.split("  ")[0].strip() for line in lines[:3]] == ["complete", "begun", "to do"]
  assert lines[3] == "3 runs, 1 complete"


def test_the_table_has_mean_sample_std_and_number_of_runs(config, tmp_path):
  jobs = make_jobs([config], ["model.width=8,16"], [1, 2, 4])
  run_jobs(jobs, str(tmp_path), _train)
  table = write_table(jobs, str(tmp_path), ["HR@10"])
  std = statistics.stdev([0.1, 0.2, 0.4])
  assert table.splitlines() == [
    "| run            | n | select/test/HR@10 |",
    "|:---------------|--:|------------------:|",
    f"| model.width=8  | 3 |   {0.7 / 3:.4f} ± {std:.4f} |",
    f"| model.width=16 | 3 |   {0.7 / 3 + 0.5:.4f} ± {std:.4f} |",
  ]
  assert (tmp_path / "table.md").read_text() == table + "\n"


def test_named_configs_and_arguments_of_a_file_have_rows_of_their_own(config, tmp_path):
  names = [config_file("sasrec", "log"), config_file("hstu", "log"), f"{config}:plain", f"{config}:gate"]
  jobs = [
    sweep.Job(name, (), seed, {"data": {}, "model": {"width": 8}, "of": [name, seed]})
    for name in names
    for seed in (1, 2)
  ]
  run_jobs(jobs, str(tmp_path), _train)
  rows = write_table(jobs, str(tmp_path), ["HR@10"]).splitlines()[2:]
  assert [row.split("|")[1].strip() for row in rows] == ["sasrec", "hstu", "small:plain", "small:gate"]


def test_a_single_run_has_no_std(config, tmp_path):
  jobs = make_jobs([config], [], [3])
  run_jobs(jobs, str(tmp_path), _train)
  assert "| small | 1 |            0.3000 |" in write_table(jobs, str(tmp_path), ["HR@10"])


def test_metrics_of_a_domain_are_separate_columns():
  runs = [("a", {"test": {"HR@10": 0.5, "domain/books/HR@10": 0.25, "SHR@10": 1.0}})]
  assert list(sweep_table.summarize(runs, ["HR@10"])["a"]) == ["test/HR@10"]
  assert list(sweep_table.summarize(runs, ["domain/books/HR@10"])["a"]) == ["test/domain/books/HR@10"]


def test_a_metric_that_no_run_reports_is_refused():
  with pytest.raises(ValueError, match="metric='HR@3' is in no summary; there are test/HR@10"):
    sweep_table.summarize([("a", {"test": {"HR@10": 0.5}})], ["HR@3"])


def test_the_plot_is_a_png(tmp_path):
  pytest.importorskip("matplotlib")
  rows = sweep_table.summarize([("a", {"HR@10": 0.5}), ("a", {"HR@10": 0.7}), ("b", {"HR@10": 0.1})], ["HR@10"])
  assert sweep_table.plot(rows, str(tmp_path / "table.png"))
  assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_run_reports_the_end_of_its_output(config, tmp_path):
  (job,) = make_jobs([config], [], [1])  # Not a valid config of experiments.train.
  with pytest.raises(RuntimeError, match=r"(?s)exit code 1; the end of .*output\.log"):
    sweep.train_in_subprocess(job, str(tmp_path))


def test_a_stop_signal_reaches_the_run(tmp_path):
  script = (
    "import subprocess, sys; from jaxrec.cli.sweep import _wait;"
    "child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); sys.exit(-_wait(child))"
  )
  process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
  child = int(process.stdout.readline())
  time.sleep(0.2)
  process.terminate()
  assert process.wait(timeout=20) == signal.SIGTERM
  process.stdout.close()
  with pytest.raises(ProcessLookupError):
    os.kill(child, 0)


def test_a_stop_signal_counts_although_the_run_has_just_finished(tmp_path):
  child = subprocess.Popen(
    [sys.executable, "-c", "import signal, time; signal.signal(15, lambda *_: exit(0)); time.sleep(60)"]
  )
  time.sleep(0.5)
  for number in (signal.SIGTERM, signal.SIGINT):
    timer = threading.Timer(0.1, lambda number=number: os.kill(os.getpid(), number))
    timer.start()
    assert sweep._wait(child) == -number
    timer.join()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
  child.kill()
  child.wait()


CHILD = """
import os, sys, time
from jaxrec.cli.process import end_with_parent
end_with_parent()
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = """
import sys, time
from jaxrec.cli.process import child_process
with child_process([sys.executable, "-c", {child!r}]):
  {ending}
"""


@pytest.mark.parametrize(("ending", "code"), [("time.sleep(60)", -9), ("time.sleep(0.5); sys.exit(3)", 3)])
def test_a_child_ends_with_its_parent_however_that_ends(ending, code):
  parent = subprocess.Popen(
    [sys.executable, "-c", PARENT.format(child=CHILD, ending=ending)], stdout=subprocess.PIPE, text=True
  )
  child = int(parent.stdout.readline())
  if code == -9:
    parent.send_signal(signal.SIGKILL)
  assert parent.wait(timeout=20) == code
  assert parent.stdout.read() == ""  # Returns when the child has closed its side too.
  parent.stdout.close()
  deadline = time.time() + 10
  while time.time() < deadline and is_alive(child):
    time.sleep(0.01)
  assert not is_alive(child)


def is_alive(process_id):
  """Whether a process runs; one that nobody waits for is dead too."""
  try:
    with open(f"/proc/{process_id}/stat") as file:
      return file.read().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


def test_a_program_with_no_such_parent_is_left_alone(monkeypatch):
  threads = threading.active_count()
  process.end_with_parent()
  assert threading.active_count() == threads


def test_a_second_sweep_in_a_folder_is_refused(config, tmp_path):
  command = [sys.executable, "-m", "jaxrec.cli", "sweep", f"--configs={config}", f"--out={tmp_path / 'out'}"]
  (tmp_path / "out").mkdir()
  with FolderLock(str(tmp_path / "out")):
    done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1
  assert f"out is in use by process {os.getpid()} on " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.exhaustive
def test_programs_killed_at_random_moments_end_as_undisturbed_ones(tmp_path):
  """The tool with few kills; `test_train.py` kills single runs."""
  flags = ["--programs=prepare,sweep", "--kills=2", "--per_round=2", f"--folder={tmp_path}"]
  command = [sys.executable, "tests/programs/kill_loop.py", *flags, f"--seed={random.randrange(10**6)}"]
  done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count("every round ended as the undisturbed run") == 2


def test_an_overflow_of_a_table_fails_one_run_and_not_the_sweep(config, tmp_path, monkeypatch):
  def overflow(*_):
    raise TableError("step 3: 12 distinct rows exceeded the exchange buffer")

  monkeypatch.setattr(loop, "run", overflow)
  jobs = make_jobs([config], [], [1, 2])
  assert run_jobs(jobs, str(tmp_path), sweep.train_here) == jobs


def test_results_are_json_lines(config, tmp_path):
  jobs = make_jobs([config], ["model.width=16"], [1])
  run_jobs(jobs, str(tmp_path), _train)
  (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
  record = json.loads(line)
  assert (record["overrides"], record["seed"]) == ({"model.width": "16"}, 1)
  assert record["summary"]["select"]["test"]["HR@10"] == 0.6
