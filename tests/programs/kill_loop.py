"""Kills programs at random moments and starts them again: they must end, bit for bit, as undisturbed ones do.

    python tests/programs/kill_loop.py --kills=25 --seed=1 --programs=train,click,prepare,sweep

A program is killed up to `--per_round` times (SIGKILL or SIGTERM; at a random time, after a random record, or while a
checkpoint or a prepared folder is being written), then left to finish; then the next round begins in a new folder.
Compared are metrics.jsonl and summary.json (without seconds), every array of every checkpoint, prepared files, and
results and tables of sweeps. Ends with code 1 at the first difference, and keeps its folder.
"""

import argparse
import glob
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ENDINGS = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}}  # -15: before the program has a handler.
LOGGED = ("--config.train.log_every_steps=1", "--config.train.checkpoint_every_steps=2")
RAW_ROWS = 300_000


def main():
  """Runs the loop as the flags say; prints a line for each kill and a summary."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=4, help="for each program")
  parser.add_argument("--per_round", type=int, default=4)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--programs", default=",".join(PROGRAMS))
  parser.add_argument("--seconds", type=float, default=1e9, help="no round begins later than this")
  parser.add_argument("--folder", default=None, help="default: a temporary folder")
  options = parser.parse_args()
  folder, rng, start = Path(options.folder or tempfile.mkdtemp()), random.Random(options.seed), time.monotonic()
  for name in options.programs.split(","):
    command, same, moments = PROGRAMS[name]
    done, rounds, reference = 0, 0, folder / f"{name}-reference"
    begun = time.monotonic()
    finish(command, reference)
    duration = time.monotonic() - begun
    while done < options.kills and time.monotonic() - start < options.seconds:
      workdir = folder / f"{name}-{options.seed}-{rounds}"
      done += one_round(command, moments, workdir, rng, min(options.per_round, options.kills - done), duration)
      same(reference, workdir)
      rounds += 1
    print(f"{name}: {done} kills in {rounds} rounds; every round ended as the undisturbed run", flush=True)


def one_round(command, moments, workdir, rng, kills, duration):
  """Kills a program so often, lets it finish, and returns how often it was killed before its end."""
  done = 0
  for _ in range(kills):
    number, moment = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]), rng.choice(moments)
    group = rng.random() < 0.5
    process, output = start(command, workdir)
    moment(process, workdir, rng, duration)
    signalled = None
    if process.poll() is None:
      (os.killpg if group else os.kill)(process.pid, number)
      signalled = time.monotonic()
    code = process.wait()
    text = Path(output).read_text(errors="replace")
    what = f"{number.name} {moment.__name__} {'group' if group else 'process'}" if signalled else "ended before"
    print(f"  {workdir.name}: {what}: {code}", flush=True)
    if code == 0:
      assert not signalled or time.monotonic() - signalled < 1, f"the signal was not honoured\n{text[-3000:]}"
      return done
    assert code in ENDINGS[number] and "Traceback" not in text, f"{code}\n{text[-3000:]}"
    done += 1
  finish(command, workdir)
  return done


def start(command, workdir):
  """Starts a program in a process group of its own; returns the process and the file of its output."""
  workdir.parent.mkdir(parents=True, exist_ok=True)
  output = f"{workdir}.log"
  environment = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "MPLBACKEND": "agg"} | os.environ
  environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
  with open(output, "wb") as file:
    process = subprocess.Popen(
      command(workdir), cwd=REPOSITORY, env=environment, stdout=file, stderr=file, start_new_session=True
    )
  return process, output


def finish(command, workdir):
  """Runs a program to its end."""
  process, output = start(command, workdir)
  code = process.wait()
  assert code == 0, f"{code}\n{Path(output).read_text(errors='replace')[-3000:]}"


def at_a_time(process, workdir, rng, duration):
  """Waits for a part of the time that the whole run takes."""
  wait_until(process, lambda: False, rng.uniform(0, duration))


def after_a_record(process, workdir, rng, duration):
  """Waits until some more records are written."""
  target = count_records(workdir) + rng.randint(1, 12)
  wait_until(process, lambda: count_records(workdir) >= target, 3 * duration)
  time.sleep(rng.uniform(0, 0.03))


def while_writing(process, workdir, rng, duration):
  """Waits until something is being written under a temporary name, or has just been renamed."""
  before = set(temporary(workdir))
  wait_until(process, lambda: set(temporary(workdir)) - before, 2 * duration)
  time.sleep(rng.choice([0, 0.002, 0.01, 0.05]))


def while_writing_again(process, workdir, rng, duration):
  """Waits until something is being written for the second to fourth time."""
  for _ in range(rng.randint(1, 3)):
    while_writing(process, workdir, rng, duration)
  while_writing(process, workdir, rng, duration)


def wait_until(process, is_due, seconds):
  """Returns when it is due, when the process has ended, or after so many seconds."""
  end = time.monotonic() + seconds
  while process.poll() is None and time.monotonic() < end and not is_due():
    time.sleep(0.001)


def count_records(workdir):
  return sum(Path(path).read_bytes().count(b"\n") for path in glob.glob(f"{workdir}/**/metrics.jsonl", recursive=True))


def temporary(workdir):
  checkpoints = glob.glob(f"{workdir}/**/*.orbax-checkpoint-tmp*", recursive=True)
  return (
    checkpoints + glob.glob(f"{workdir.parent}/.{workdir.name}*") + glob.glob(f"{workdir}/**/*.tmp", recursive=True)
  )


def training(config, *overrides):
  def command(workdir):
    flags = [f"--config=tests/{config}.py", f"--workdir={workdir}", "--config.train.retrain=true"]
    return [sys.executable, "-m", "experiments.train", *flags, *LOGGED, *overrides]

  return command


def preparation(out):
  """Prepares a table with random events."""
  raw = out.parent / "raw.csv"
  if not raw.exists():
    rng = random.Random(0)
    raw.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{rng.randint(1, 9000)},{rng.randint(1, 2000)},{rng.randint(0, 10**8)}\n" for _ in range(RAW_ROWS))
    raw.write_text("user,item,time\n" + "".join(lines))
  flags = ["--source=table", f"--raw={raw}", "--user=user", "--item=item", "--timestamp=time", f"--out={out}"]
  return [sys.executable, "-m", "experiments.prepare", *flags, *(["--overwrite"] if out.exists() else [])]


def sweeping(out):
  flags = ["--configs=tests/tiny_run.py", "--override=train.num_epochs=1,2", "--override=train.log_every_steps=1"]
  return [
    *(sys.executable, "-m", "experiments.sweep", *flags, "--override=train.checkpoint_every_steps=2"),
    *("--seeds=1", "--metrics=HR@10", f"--out={out}"),
  ]


def same_run(reference, workdir):
  """Raises unless records, summary and all arrays of the checkpoints are the same."""
  name = "metrics.jsonl"
  assert (reference / name).read_bytes() == (workdir / name).read_bytes(), f"{workdir}/{name} differs"
  summaries = [json.loads((folder / "summary.json").read_text()) | {"seconds": 0} for folder in (reference, workdir)]
  assert summaries[0] == summaries[1], f"{workdir}/summary.json differs"
  for folder in sorted(reference.glob("*/checkpoints")):
    expected, found = arrays(folder), arrays(workdir / folder.relative_to(reference))
    assert list(expected) == list(found), f"{workdir}: {list(expected)} and {list(found)}"
    different = [key for key in expected if expected[key] != found[key]]
    assert not different, f"{workdir}: arrays differ: {different}"


def arrays(folder):
  """Returns the bytes of every array of every checkpoint of a folder."""
  import jax
  import orbax.checkpoint as ocp
  from absl import logging

  logging.set_verbosity(logging.ERROR)
  options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
  handlers = {"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()}
  found = {}
  with ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handlers) as manager:
    for step in sorted(manager.all_steps()):
      state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
      for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
        found[f"{step}{jax.tree_util.keystr(path)}"] = leaf.tobytes()
  return found


def same_sweep(reference, out):
  """Raises unless results, table and every run are the same."""
  assert (reference / "table.md").read_text() == (out / "table.md").read_text(), f"{out}/table.md differs"
  results = [[json.loads(line) for line in (folder / "results.jsonl").open()] for folder in (reference, out)]
  keys = [[(result["key"], result["overrides"]) for result in folder] for folder in results]
  assert keys[0] == keys[1], f"{out}/results.jsonl differs"
  for run in sorted((reference / "runs").iterdir()):
    same_run(run, out / "runs" / run.name)


def same_files(reference, out):
  """Raises unless a prepared folder has the same files."""
  names = [sorted(path.name for path in folder.iterdir()) for folder in (reference, out)]
  assert names[0] == names[1], f"{out}: {names}"
  different = [name for name in names[0] if (reference / name).read_bytes() != (out / name).read_bytes()]
  assert not different, f"{out}: {different} differ"


MOMENTS = (at_a_time, after_a_record, while_writing, while_writing_again)
PROGRAMS = {
  "train": (training("tiny_run"), same_run, MOMENTS),
  "click": (training("tiny_click"), same_run, MOMENTS),
  "prepare": (preparation, same_files, (at_a_time, while_writing)),
  "sweep": (sweeping, same_sweep, MOMENTS),
}

if __name__ == "__main__":
  main()
