"""A request to stop is honoured whenever it comes, and the run ends at the same numbers."""

import importlib
import itertools
import signal

import jax
import pytest
from absl import logging
from test_task import DomainTask, config

from jaxrec.train import loop, writers
from jaxrec.train.checkpoint import Checkpoints
from jaxrec.train.monitor import Interrupted, StopSignal


def settings():
  changed = config()
  changed.train.retrain, changed.train.num_epochs, changed.train.log_every_steps = True, 2, 1
  return changed


def train(workdir, task=DomainTask):
  return loop.run(settings(), str(workdir), make_task=task)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  train(workdir)
  return (workdir / "metrics.jsonl").read_text()


class Moments:
  """Sends a signal at the n-th of the calls that are counted, before it or after it."""

  def __init__(self, number, kind, n, after):
    self._number, self._kind, self._n, self._after, self._count = number, kind, n, after, itertools.count(1)

  def at(self, kind, call):
    if kind != self._kind or next(self._count) != self._n:
      return call()
    if not self._after:
      signal.raise_signal(self._number)
    result = call()
    if self._after:
      signal.raise_signal(self._number)
    return result

  def task(self):
    moments = self

    class Signalled(DomainTask):
      def plan(self, *arguments):
        return moments.at("plan", lambda: DomainTask.plan(self, *arguments))

      def init_state(self, *arguments):
        return moments.at("init", lambda: DomainTask.init_state(self, *arguments))

      def train_step(self, *arguments):
        step = DomainTask.train_step(self, *arguments)
        return lambda *batch: moments.at("step", lambda: step(*batch))

      def evaluate(self, state, split, mesh):
        return moments.at(f"evaluate {split}", lambda: DomainTask.evaluate(self, state, split, mesh))

    return lambda config: moments.at("data", lambda: Signalled(config))


MOMENTS = {  # Calls, and which of them the default run interrupts.
  ("data", 1): "before",  # Preparing the data.
  ("init", 1): "", ("step", 1): "before",  # Compiling.
  ("step", 4): "after",
  ("evaluate 1", 1): "", ("evaluate 1", 2): "after",  # The last validation.
  ("evaluate 2", 1): "before", ("evaluate 2", 2): "after",  # The test evaluation of each phase.
  ("init", 2): "", ("plan", 2): "before",
}  # fmt: skip


@pytest.mark.parametrize(
  ("kind", "n", "after"),
  [
    pytest.param(*call, when == "after", marks=() if when == default else pytest.mark.exhaustive)
    for call, default in MOMENTS.items()
    for when in ("before", "after")
  ],
)
def test_a_signal_stops_the_run_whenever_it_comes(whole, tmp_path, kind, n, after):
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(Interrupted) as stop:
    train(tmp_path, Moments(signal.SIGTERM, kind, n, after).task())
  assert stop.value.exit_code == 143
  assert signal.getsignal(signal.SIGTERM) == before
  assert (tmp_path / "final/checkpoints").exists() == ((kind, n) == ("evaluate 2", 2))
  train(tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == whole


@pytest.mark.parametrize("name", ["config.json", "result.json", "summary.json"])
def test_a_signal_between_the_phases_is_not_lost(whole, tmp_path, monkeypatch, name):
  write = writers.write_json

  def write_and_stop(path, value):
    write(path, value)
    if path.endswith(name):
      signal.raise_signal(signal.SIGINT)

  with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
    patch.setattr(writers, "write_json", write_and_stop)
    train(tmp_path)
  assert stop.value.exit_code == 130
  assert not (tmp_path / "final").exists() or name == "summary.json"
  train(tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == whole


def test_an_import_is_not_interrupted(tmp_path, monkeypatch):
  (tmp_path / "slow_extension.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\nis_whole = True\n")
  monkeypatch.syspath_prepend(tmp_path)

  def importing(config):
    module = importlib.import_module("slow_extension")
    (tmp_path / "imported").write_text(str(module.is_whole))
    return DomainTask(config)

  with pytest.raises(Interrupted):
    train(tmp_path / "run", importing)
  assert (tmp_path / "imported").read_text() == "True"
  assert not (tmp_path / "run/config.json").exists()


def test_a_signal_that_other_code_swallows_is_honoured_later(tmp_path):
  class Swallowing(DomainTask):
    def init_state(self, *arguments):
      try:
        signal.raise_signal(signal.SIGTERM)
      except BaseException:
        pass  # As in a finalizer, whose exceptions Python only prints.
      return super().init_state(*arguments)

  with pytest.raises(Interrupted):
    train(tmp_path, Swallowing)
  assert not list(tmp_path.glob("select/checkpoints/*"))


def test_a_signal_that_other_code_turns_into_an_error_is_a_stop(tmp_path):
  def translated(config):
    try:
      signal.raise_signal(signal.SIGTERM)
    except BaseException as error:
      raise RuntimeError("callback failed") from error

  with pytest.raises(Interrupted):
    train(tmp_path, translated)


def test_a_repeated_sigterm_does_not_interrupt_saving(whole, tmp_path, monkeypatch):
  save = Checkpoints.save

  def save_under_fire(self, *arguments):
    signal.raise_signal(signal.SIGTERM)
    save(self, *arguments)
    signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch, pytest.raises(Interrupted):
    patch.setattr(Checkpoints, "save", save_under_fire)
    train(tmp_path)
  names = [path.name for path in (tmp_path / "select/checkpoints").iterdir()]
  assert sorted(names) == ["3", "4"]  # That of 3 was being saved.
  train(tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == whole


def test_several_hosts_count_their_calls_over_phases(monkeypatch):
  """JAX's agreement names a count that must still come; steps begin again in the second phase."""
  from jax.experimental import multihost_utils

  counts = []

  def reached(count):
    counts.append(count)
    return count == 5

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
  with StopSignal() as stop:
    with stop.deferred():
      assert [stop.requested(step) for step in (1, 2)] == [False, False]
    with pytest.raises(Interrupted), stop.deferred():
      pass
  assert counts == [1, 2, 3, 4, 5]


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
  monkeypatch.setattr(logging, "warning", lambda *_: None)
  with pytest.raises(KeyboardInterrupt), StopSignal() as stop, stop.deferred():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
