"""One, two and four processes that open their own shards of eight make the same batches."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY

from jaxrec.data.prepared import PreparedData

PROGRAM = REPOSITORY / "tests" / "programs" / "shard_batches.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Data of eighty users in eight shards."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(0, 20, 80)
  data = PreparedData.from_columns(
    offsets=np.concatenate([[0], np.cumsum(lengths)]),
    item_id=rng.integers(1, 30, lengths.sum()),
    timestamp=np.concatenate([100 + np.sort(rng.integers(0, 99, n)) for n in lengths]),
  )
  return data.save(tmp_path_factory.mktemp("data") / "data", shards=8).path


def results(folder, count):
  """What each of `count` processes prints."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  command = [sys.executable, str(PROGRAM), str(folder), address, str(count)]
  pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": REPOSITORY}
  processes = [subprocess.Popen([*command, str(index)], **pipe) for index in range(count)]
  found = [process.communicate(timeout=100) for process in processes]
  assert [process.returncode for process in processes] == [0] * count, found
  return [json.loads(text.splitlines()[-1]) for text, _ in found]  # Gloo writes lines before it.


@pytest.fixture(scope="module")
def one(folder):
  """What one process prints."""
  (found,) = results(folder, 1)
  return found


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_make_the_batches_of_one(folder, one, count):
  found = results(folder, count)
  assert sum(host["events"] for host in found) == one["events"]
  assert all(host["sizes"] == one["sizes"] and host["evaluated"] == one["evaluated"] for host in found)
  assert [sum(blocks, []) for blocks in zip(*(host["rows"] for host in found), strict=True)] == one["rows"]
