"""Programs restart themselves once with huge pages and the same arguments."""

import os
import platform
import signal
import subprocess
import sys

import pytest

from jaxrec.cli import process

PROGRAM = """
import os, sys
from jaxrec.cli.process import restart_with_huge_pages
print("start", flush=True)
restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES", ""), *sys.argv[1:])
"""


def run(tmp_path, **environment):
  script = tmp_path / "program.py"
  script.write_text(PROGRAM)
  kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
  command = [sys.executable, str(script), "--config.name=a b", "x"]
  done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
  return done.stdout.splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="huge pages are enabled through glibc")
def test_a_program_restarts_once_with_its_arguments(tmp_path):
  lines = run(tmp_path, PYTHONPATH=os.getcwd())
  assert lines[:2] == ["start", "start"]
  assert len(lines) == 3
  assert "hugetlb=1" in lines[2] and lines[2].endswith("--config.name=a b x")


def test_tunables_set_by_the_user_are_kept(tmp_path):
  lines = run(tmp_path, PYTHONPATH=os.getcwd(), GLIBC_TUNABLES="glibc.malloc.check=0")
  assert lines == ["start", "glibc.malloc.check=0 --config.name=a b x"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="huge pages are enabled through glibc")
def test_benchmarks_run_with_the_memory_of_training(tmp_path):
  """Each module of experiments, also one without `start`: its times are compared with those of training."""
  (tmp_path / "sitecustomize.py").write_text('import os; print("begun", os.environ.get("GLIBC_TUNABLES", ""))')
  kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
  command = [sys.executable, "-m", "experiments.benchmarks.records"]
  environment = kept | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
  assert [("hugetlb=1" in line) for line in done.stdout.splitlines()] == [False, True]


SLOW = """
import sys, time, types
from jaxrec.cli import process
program = types.ModuleType("program")
program.define_flags = lambda: None

def main(argv):
  try:
    print("begun", flush=True)
    time.sleep(60)
  finally:
    print("cleaned up", flush=True)

program.main = main
sys.modules["program"] = program
process.start("program")
"""


def test_a_program_cleans_up_at_sigterm_and_exits_with_143(tmp_path):
  script = tmp_path / "program.py"
  script.write_text(SLOW)
  process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "begun\n"
  process.terminate()
  assert process.communicate(timeout=20)[0] == "cleaned up\n"
  assert process.returncode == 143


def test_a_signal_that_comes_during_the_imports_ends_the_program_without_python(tmp_path):
  """An exception inside the import of an extension module crashes it."""
  (tmp_path / "slow.py").write_text(
    "import signal\nsignal.raise_signal(signal.SIGTERM)\nprint('imported', flush=True)\n"
  )
  command = [sys.executable, "-c", "from jaxrec.cli import process; process.start('slow')"]
  environment = os.environ | {"PYTHONPATH": f"{os.getcwd()}{os.pathsep}{tmp_path}", "GLIBC_TUNABLES": ""}
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "", "")


@pytest.mark.skipif(platform.system() != "Linux", reason="devices are files in /dev on Linux")
@pytest.mark.parametrize(("found", "expected"), [([], "cpu"), (["/dev/nvidia0"], None)])
def test_plug_ins_look_for_devices_only_where_there_is_one(monkeypatch, found, expected):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setattr(process.glob, "glob", lambda pattern: found if "nvidia" in pattern else [])
  process.use_cpu_without_accelerator()
  assert os.environ.get("JAX_PLATFORMS") == expected


def test_a_platform_set_by_the_user_is_kept(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  process.use_cpu_without_accelerator()
  assert os.environ["JAX_PLATFORMS"] == "tpu"


def test_help_explains_the_options_of_the_named_source():
  command = [sys.executable, "-m", "jaxrec.cli", "prepare", "--source=table", "--help"]
  done = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True)
  assert done.returncode == 0
  text = " ".join(done.stdout.split())
  assert text.startswith("Converts raw data into prepared data")
  assert '--time_unit: "s", "ms", "us" or "ns" since 1970' in text
  assert "--min_user_events: keep users" in text and "--edition" not in text
