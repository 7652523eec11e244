"""Huge pages for programs that compute on the CPU.

Each step of a compiled program takes its temporary arrays anew from the C library's allocator, which by default gets
them from the kernel in pages of 4 KB and gives them back afterwards. Where steps need hundreds of megabytes, these
page faults and the address translation cost a third of the time. glibc can keep the memory and ask for pages of 2 MB,
but only if an environment variable says so when the process starts.
"""

from __future__ import annotations

import os
import platform
import sys

_KEEP = 1 << 32  # bytes: blocks up to this size come from the kept heap
_TUNABLES = f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={_KEEP}:glibc.malloc.trim_threshold={_KEEP}"
_VARIABLE = "GLIBC_TUNABLES"


def restart_with_huge_pages() -> None:
  """Starts this program again, in the same process, with glibc's huge pages on; to be called first in `__main__`.

  Does nothing where the C library is not glibc, or where `GLIBC_TUNABLES` is set already (set it to anything to
  switch this off). Measured on MovieLens-1M's HSTU training step, one core: 0.37 s instead of 0.58 s.
  """
  if platform.libc_ver()[0] != "glibc" or _VARIABLE in os.environ:
    return
  os.environ[_VARIABLE] = _TUNABLES
  sys.stdout.flush()
  sys.stderr.flush()
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
