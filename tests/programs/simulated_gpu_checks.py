"""Puts the Hopper kernels, simulated on the CPU, through the checks of `jaxrec check`.

Outputs and gradients, all masks.

    PYTHONPATH=.:tests:tests/pallas_kernels python tests/programs/simulated_gpu_checks.py

Prints a JSON line for each problem of two rows; about a minute each. The tests simulate fewer and smaller problems.
"""

import dataclasses
import json
import os
import time

from conftest import xla_flags

os.environ["XLA_FLAGS"] = xla_flags(16)  # 16 threads: blocked ones hold theirs.

from test_gpu_attention import compile_once_for_the_whole_grid  # noqa: E402

from jaxrec.device_report import attention_checks  # noqa: E402


def main() -> None:
  """Checks the problems of `jaxrec check --quick` that the kernels can compute."""
  compile_once_for_the_whole_grid()
  for case in attention_checks.cases(quick=True):
    if case.dtype == "float32":  # Tensor cores multiply 16 bits.
      continue
    start = time.perf_counter()
    errors = attention_checks.check(dataclasses.replace(case, rows=2), "gpu", interpret=True)
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({"name": f"gpu, simulated: {case}", **errors, "seconds": seconds}), flush=True)


if __name__ == "__main__":
  main()
