"""Start of a program: memory and cache settings that JAX needs before its import, flags, one-line flag errors, signals,
and the life of a program that another one started."""

from __future__ import annotations

import errno
import importlib
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_KEEP = 1 << 32  # Bytes: blocks up to this size are allocated on the heap, which glibc does not return to the kernel.
_TUNABLES = f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={_KEEP}:glibc.malloc.trim_threshold={_KEEP}"
_VARIABLE = "GLIBC_TUNABLES"
_PARENT = "JAXREC_PARENT_PIPE"  # Number of a pipe's end that a child reads; the parent holds the other one.
_ADVICE = {
  errno.ENOSPC: "the disk is full: free some space; the same command goes on where it stopped",
  errno.EDQUOT: "the quota is used up: free some space; the same command goes on where it stopped",
  errno.EACCES: "look at the owner and the mode of it and of its folders, or choose another one",
  errno.EPERM: "look at the owner and the mode of it and of its folders, or choose another one",
  errno.EROFS: "nothing can be written there: choose another folder",
  errno.EEXIST: "something that is no folder has the name of a folder: move it, or choose another folder",
  errno.ENOTDIR: "something that is no folder has the name of a folder: move it, or choose another folder",
  errno.EISDIR: "a folder has the name of a file: move it, or choose another name",
  errno.EIO: "the disk or the network reports an error: look at it, then give the same command again",
}


def start(module: str) -> None:
  """Runs the program in a module with `main(argv)` and `define_flags()`. Call it before JAX is imported.

  Args:
    module: dotted name such as "jaxrec.cli.train".
  """
  restart_with_huge_pages()
  signal.signal(signal.SIGTERM, _exit_cleanly)
  end_with_parent()
  use_compilation_cache()
  program = importlib.import_module(module)
  from absl import app

  program.define_flags()
  app.run(program.main, flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags with absl, but exits with a one-line error instead of a traceback on an unknown config setting."""
  from absl import app

  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError) as error:
    text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
    sys.exit(f"FATAL Flags parsing error: --config has no such setting: {text}")


def describe(error: BaseException) -> str:
  """Returns the text of an error of the caller or of the system, for a program that ends with it.

  >>> describe(ValueError("k=0 must be at least 1"))
  'ValueError: k=0 must be at least 1'
  >>> describe(OSError(errno.EROFS, "Read-only file system", "runs/a"))
  "OSError: [Errno 30] Read-only file system: 'runs/a'; nothing can be written there: choose another folder"
  """
  text = f"{type(error).__name__}: {error}"
  advice = _ADVICE.get(error.errno) if isinstance(error, OSError) else None
  return f"{text}; {advice}" if advice else text


def restart_with_huge_pages() -> None:
  """Restarts this program in the same process with glibc's huge pages enabled.

  Each step of a compiled program allocates its temporary arrays with the C library, which by default maps them in pages
  of 4 KB and unmaps them after the step. If a step needs hundreds of megabytes, page faults and address translation
  take a third of the time. glibc can keep the memory and use pages of 2 MB instead, but only if an environment variable
  is set when the process starts.

  Does nothing if the C library is not glibc or `GLIBC_TUNABLES` is already set; set it to any value to disable the
  restart. Measured on one core, HSTU training step on MovieLens-1M: 0.37 s with huge pages, 0.58 s without.
  """
  if platform.libc_ver()[0] != "glibc" or _VARIABLE in os.environ:
    return
  os.environ[_VARIABLE] = _TUNABLES
  sys.stdout.flush()
  sys.stderr.flush()
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def use_compilation_cache() -> None:
  """Caches compiled programs in `$JAXREC_CACHE/jax` (default ~/.cache/jaxrec/jax), unless JAX's variables are set."""
  root = os.environ.get("JAXREC_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "jaxrec")
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(root, "jax"))
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


@contextmanager
def child_process(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen]:
  """Yields a process that ends when this one does, however this one ends; its program calls `start`.

  The child reads a pipe whose other end this process holds and never writes to: the kernel closes it at our death, also
  by SIGKILL.

  Args:
    command: program and arguments.
    **options: of `subprocess.Popen`.
  """
  reading, writing = os.pipe()
  try:
    with open(reading, "rb"):
      environment = {**os.environ, _PARENT: str(reading)}
      child = subprocess.Popen(command, env=environment, pass_fds=[reading], **options)
  except BaseException:
    os.close(writing)
    raise
  try:
    yield child
  finally:
    os.close(writing)  # Ends a child that still runs.
    child.wait()


def end_with_parent() -> None:
  """Makes this process end with the one that started it by `child_process`; does nothing in others."""
  pipe = os.environ.pop(_PARENT, None)  # Programs that this one starts are not children of that parent.
  if pipe is not None:
    threading.Thread(target=_wait_for_parent, args=[int(pipe)], daemon=True).start()


def _wait_for_parent(pipe):
  os.read(pipe, 1)  # Returns at the parent's end; nothing is ever written.
  print("the program that started this one has ended: stopping at once", file=sys.stderr, flush=True)
  os.kill(os.getpid(), signal.SIGKILL)  # As a crash: runs resume from their last checkpoint.


def _exit_cleanly(number, frame):
  """Ends the program as an exception does, so that temporary files are removed; a second signal ends it at once."""
  signal.signal(number, signal.SIG_DFL)
  sys.exit(128 + number)
