"""Start of a program: memory and cache settings that JAX needs before its import, flags, one-line flag errors, signals,
and the life of a program that another one started."""

from __future__ import annotations

import errno
import glob
import importlib
import logging
import os
import platform
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from jaxrec.cli.compile_cache import use_compilation_cache

_KEEP = 1 << 32  # Bytes: blocks up to this size are allocated on the heap, which glibc does not return to the kernel.
_TUNABLES = f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={_KEEP}:glibc.malloc.trim_threshold={_KEEP}"
_VARIABLE = "GLIBC_TUNABLES"
_DEVICE_FILES = ("nvidia[0-9]*", "accel*", "vfio/[0-9]*", "kfd", "dxg")  # NVIDIA, TPU, TPU, AMD, GPUs in Windows.
_PARENT = "JAXREC_PARENT_PIPE"  # Number of a pipe's end that a child reads; the parent holds the other one.
_ADVICE = {
  errno.ENOSPC: "the disk is full: free some space, then give the same command again; it resumes",
  errno.EDQUOT: "the quota is used up: free some space, then give the same command again; it resumes",
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

  A module may have `rewrite_arguments(argv)`, which is applied before flags are parsed, and `hidden_flags(argv)`, the
  names that `--help` leaves out.

  Args:
    module: dotted name such as "jaxrec.cli.train".
  """
  restart_with_huge_pages()
  end_with_parent()
  use_compilation_cache()
  use_cpu_without_accelerator()
  program = importlib.import_module(module)
  from absl import app
  from absl import logging as absl_logging

  signal.signal(signal.SIGTERM, _exit_cleanly)  # Not before: extension modules crash if their import is interrupted.
  absl_logging.get_absl_handler().addFilter(is_of_interest)
  program.define_flags()
  if {"--help", "-help", "-h"} & set(sys.argv[1:]):
    print(help_text(program, getattr(program, "hidden_flags", set)(sys.argv)))
    return
  sys.argv = getattr(program, "rewrite_arguments", list)(sys.argv)  # Config flags look for overrides in sys.argv.
  app.run(program.main, flags_parser=parse_flags)


def help_text(program: ModuleType, hidden: Collection[str] = ()) -> str:
  """Returns what a program does, and its flags with default and help.

  Args:
    program: its module; the flags are defined.
    hidden: names of flags to leave out.
  """
  from absl import flags

  lines = [program.__doc__.strip(), "", "Flags:"]
  for flag in flags.FLAGS.get_key_flags_for_module(program.__name__):
    if flag.name not in hidden:
      shown = "" if flag.default in (None, "", []) else f" (default {flag.default})"
      text = f"{flag.help}{shown}"
      lines.append(textwrap.fill(f"--{flag.name}: {text}", 110, initial_indent="  ", subsequent_indent="      "))
  return "\n".join(lines)


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags with absl, but exits with a one-line error instead of a traceback on an unknown config setting."""
  from absl import app, flags

  try:
    rest = app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError) as error:
    text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
    sys.exit(f"FATAL Flags parsing error: --config has no such setting: {text}")
  config = flags.FLAGS.config if "config" in flags.FLAGS else None
  if config is not None and not isinstance(config, str):
    from jaxrec.cli.config_argument import check_names  # Only programs with a config pay for this import.

    try:
      check_names(config)
    except ValueError as error:
      sys.exit(f"FATAL Flags parsing error: {error}")
  return rest


def describe(error: BaseException) -> str:
  """Returns the text of an error of the caller or of the system, for a program that ends with it.

  Characters of raw data that do not print are escaped.

  >>> describe(ValueError("k=0 must be at least 1"))
  'ValueError: k=0 must be at least 1'
  >>> describe(OSError(errno.EROFS, "Read-only file system", "runs/a"))
  "OSError: [Errno 30] Read-only file system: 'runs/a'; nothing can be written there: choose another folder"
  """
  from jaxrec.data.printable import printable

  text = printable(f"{type(error).__name__}: {error}", keep="\n")
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


def use_cpu_without_accelerator() -> None:
  """Sets `JAX_PLATFORMS=cpu` on Linux machines without a device file of a GPU or TPU, unless it is set.

  Otherwise installed plug-ins of GPUs and TPUs look for their devices at each start and print what they don't find.
  """
  has_device = any(glob.glob(f"/dev/{pattern}") for pattern in _DEVICE_FILES)
  if platform.system() == "Linux" and not has_device:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def is_of_interest(record: logging.LogRecord) -> bool:
  """Whether a log record is shown: of those of Orbax, a dozen for each checkpoint, only errors without a traceback.

  Exceptions of its threads are raised again where `jaxrec.train.checkpoint` waits for them.
  """
  return "orbax" not in record.pathname or (record.levelno >= logging.ERROR and not record.exc_info)


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
