"""A server of `jaxrec serve` in a process of its own, for programs that send it requests."""

import contextlib
import subprocess
import sys
import time

import httpx


@contextlib.contextmanager
def running_server(port, flags):
  """Yields the process of a server that answers, and its address; kills it at the end if it runs still."""
  command = [sys.executable, "-m", "experiments.serve", f"--port={port}", *flags]
  base = f"http://127.0.0.1:{port}"
  process = subprocess.Popen(command)
  try:
    while process.poll() is None:
      try:
        httpx.get(base + "/healthz")
        break
      except httpx.TransportError:
        time.sleep(0.2)
    if process.poll() is not None:
      sys.exit(f"{' '.join(command)} exited with {process.returncode}")
    yield process, base
  finally:
    process.kill()
    process.wait()
