"""Compiling for devices that are not there: every kernel for every TPU generation, and what the schedules say."""

import functools
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import compile_check
from pallas_kernels import IntervalMask, aot, segment_attention

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("optimized")
TPUS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
WITHOUT_TPU_COMPILER = pytest.mark.skipif(aot.why_not("v6e:2x2") is not None, reason=str(aot.why_not("v6e:2x2")))


def attention(target, **options):
  """The record of a problem, as `compile_check` makes it."""
  defaults = {
    "length": 1024, "width": 128, "activation": "silu", "bias": "none", "direction": "backward", "dtype": "bfloat16",
    "heads": 2, "rows": 1,
  }  # fmt: skip
  return {"target": target} | defaults | options


@pytest.mark.filterwarnings("error")
@WITHOUT_TPU_COMPILER
def test_a_program_of_absent_devices_is_not_kept_in_the_compile_cache():
  (device, *_) = aot.target_devices("v6e:2x2")
  for _ in range(2):  # JAX cannot read it back, and warned at the second compilation.
    jax.clear_caches()
    aot.compile_for(lambda x: x @ x, [device], jax.ShapeDtypeStruct((8, 8), jnp.float32))


# Length, width, heads and tables: a second head and two tables cost the compilers time, so each is in some of them.
COMPILED = [
  (1024, 64, 2, "none"),
  (1024, 128, 2, "none"),
  (8192, 64, 1, "none"),
  (8192, 128, 1, "both"),
  (16384, 64, 1, "none"),
  (16384, 128, 1, "none"),
]


# By default each generation compiles one problem, and v6e one more with tables; `make test-all` compiles all for each.
TARGETS_AND_PROBLEMS = [
  pytest.param(
    target, *problem, marks=() if i == 0 or (target == "v6e:2x2" and problem[-1] == "both") else pytest.mark.exhaustive
  )
  for target in TPUS
  for i, problem in enumerate(COMPILED)
]


@WITHOUT_TPU_COMPILER
@pytest.mark.parametrize("target, length, width, heads, bias", TARGETS_AND_PROBLEMS)
def test_forward_and_backward_compile_for_tpus(target, length, width, heads, bias):
  problem = attention(target, length=length, width=width, heads=heads, bias=bias)
  compiled, _ = compile_check.compile_attention(problem)
  text = compiled.as_text()
  assert "silu_attention_forward" in text and "silu_attention_backward" in text
  dense = heads * length**2 * 2  # bytes of one attention matrix
  assert aot.memory_of(compiled)["temporary"] < max(dense / 4, 2**23)


@WITHOUT_TPU_COMPILER
@pytest.mark.parametrize(
  "options",
  [
    {"activation": "softmax", "bias": "time"},
    {"dtype": "float32", "length": 211, "width": 25},
    {"length": 211, "width": 50, "bias": "position"},
    {"width": 256},
  ],
  ids=str,
)
def test_other_widths_types_and_activations_compile(options):
  compile_check.compile_attention(attention("v6e:2x2", heads=1, **options))


def run_compile_check(tmp_path, *options):
  out = tmp_path / "records.jsonl"
  command = [sys.executable, "-m", "experiments.benchmarks.compile_check", f"--out={out}", *options]
  done = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
  return [json.loads(line) for line in out.read_text().splitlines()]


@WITHOUT_TPU_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize(
  "direction, blocks, least_percent, most_spills, most_far",
  [
    ("forward", "512,1024,1", 60, 0.01, 1.3),
    pytest.param("backward", "512,512,1", 50, 0.1, 1.4, marks=pytest.mark.exhaustive),
  ],
)
def test_the_matrix_unit_is_kept_busy_on_v6e(tmp_path, direction, blocks, least_percent, most_spills, most_far):
  options = ("--targets=v6e:2x2", "--lengths=4096", "--heads=1", "--biases=none,both")
  records = run_compile_check(tmp_path, *options, f"--directions={direction}", f"--blocks={blocks}")
  # The ways without a mask; far from the diagonal, chunks meet one edge of time buckets.
  (plain,), (far, near) = ([tile for tile in record["tile"] if direction in tile["kernel"]] for record in records)
  assert plain["MXU_percent"] >= least_percent
  assert plain["spills"] < most_spills * plain["bundles"]
  assert far["bundles"] <= most_far * plain["bundles"] and near["bundles"] <= 1.6 * plain["bundles"]


@WITHOUT_TPU_COMPILER
@pytest.mark.slow
def test_a_training_step_compiles_for_a_slice_of_tpus(tmp_path):
  (record,) = run_compile_check(tmp_path, "--targets=v6e:2x2", "--config=experiments/configs/demo.py")
  assert record["program"] == "training step" and record["bytes"]["temporary"] > 0


@pytest.mark.skipif(aot.why_not("b200") is not None, reason=str(aot.why_not("b200")))
@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["dense", "xla", "auto"])
def test_what_gpus_without_a_kernel_of_their_own_run_compiles_for_a_b200(implementation):
  x, ids = jax.ShapeDtypeStruct((2, 1024, 4, 64), jnp.bfloat16), jax.ShapeDtypeStruct((2, 1024), jnp.int32)

  def gradients(q, k, v, ids):
    attend = functools.partial(segment_attention, mask=IntervalMask.causal(ids), implementation=implementation)
    return jax.grad(lambda *qkv: attend(*qkv).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)

  compiled, _ = aot.compile_for(gradients, aot.target_devices("b200"), x, x, x, ids)
  assert "mosaic_gpu" not in compiled.as_text()


def test_a_target_without_its_compiler_is_refused_with_the_reason(monkeypatch):
  monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
  assert aot.why_not("v5e:2x2") == "the package libtpu is not installed; pip install 'jax[tpu]'"
  with pytest.raises(NotImplementedError, match="jax-cuda13-plugin"):
    aot.target_devices.__wrapped__("h100")
  with pytest.raises(ValueError, match="target='v5' is not one of h100, b200 or a TPU topology"):
    aot.target_devices.__wrapped__("v5")


def test_the_schedule_of_a_kernel_is_cut_where_branches_lead(tmp_path):
  units = "MXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU"
  header = f"== CAPACTIY:\n{units}\n    2     2     4     2     1     3     3     2     2     2\n== UTILIZATION:\n"
  rows = ["0 0 0 0 0 0 0 0 0 1", "2 0 4 0 0 0 0 0 0 0", "1 0 0 0 0 0 3 0 1 0"]
  (tmp_path / "17-my_attention.1-70-final_hlo-static-per-bundle-utilization.txt").write_text(header + "\n".join(rows))
  bundles = "     0   :  { a }\n   0x1 PF: > { b }\n   0x2   : > { c }\n"
  (tmp_path / "17-my_attention.1-72-final_bundles.txt").write_text(bundles)
  first, body = aot.schedule_regions(str(tmp_path), "attention")
  assert (first.bundles, first.used["SALU"]) == (1, 1)
  assert (body.bundles, body.used["MXU"], body.share("MXU"), body.used["VSTORE:SPILL"]) == (2, 3, 3 / 4, 1)
  assert aot.schedule_regions(str(tmp_path), "other") == []


def test_products_of_a_matrix_unit_with_slots_of_two_kinds_stand_for_it(tmp_path):
  """As v5e has them."""
  text = "== CAPACTIY:\nMATMUL, MATPUSH, SALU\n  4 4 2\n== UTILIZATION:\n3 1 0\n1 4 0\n"
  (tmp_path / "17-my_attention.1-70-final_hlo-static-per-bundle-utilization.txt").write_text(text)
  (tmp_path / "17-my_attention.1-72-final_bundles.txt").write_text("     0   :  { a }\n   0x1   : > { b }\n")
  (region,) = aot.schedule_regions(str(tmp_path), "attention")
  assert (region.share("MXU"), region.used["MATPUSH"]) == (4 / 8, 5)


def test_schedules_need_a_folder(tmp_path):
  with pytest.raises(ValueError, match="must be an existing folder"):
    aot.write_schedules_to(str(tmp_path / "absent"))


def test_collectives_are_counted_with_the_bytes_of_their_results():
  text = """
    %a = f32[32,4]{1,0} all-reduce(%x), replica_groups={{0,1}}
    %b = (u32[8]{0}, bf16[2,3]{1,0}) all-to-all(%y, %z), dimensions={0}
    %c = (f32[16], f32[16]) all-reduce-start(%w), channel_id=3
    %d = f32[16] all-reduce-done(%c)
    %e = f32[7] add(%u, %v), metadata={op_name="all-reduce(like)"}
  """
  found = aot.collectives_of(types.SimpleNamespace(as_text=lambda: text))
  assert found == {"all-reduce": {"count": 2, "bytes": 512 + 128}, "all-to-all": {"count": 1, "bytes": 32 + 12}}
