"""The benchmark of M-FALCON: it runs, and its variants agree."""

import jax
import jax.numpy as jnp

from experiments.benchmarks import mfalcon


def test_a_small_run_times_every_variant_and_they_agree():
  records = list(mfalcon.measure(20, 10, [4, 16], 8, 1, 1))
  assert [(r["variant"], r["microbatch"]) for r in records] == [
    ("one by one", 1), ("history again", 4), ("cached", 4), ("history again", 16), ("cached", 16),
  ]  # fmt: skip
  assert all(r["largest_difference"] < 1e-5 and r["seconds"] > 0 for r in records)
  assert mfalcon.table(records).count("\n") == 6


def test_what_is_compiled_for_other_devices_is_encode_and_score():
  programs = mfalcon._programs(20, 4, 8, 1)
  encoded, scores = (jax.eval_shape(function, *arguments) for function, arguments in programs.values())
  assert list(programs) == ["encode", "score"] and scores["like"].shape == (1, 4)
  assert {x.shape[1] for x in jax.tree.leaves(encoded.cache)} == {24}
  assert {x.dtype for x in jax.tree.leaves(encoded.cache)} == {jnp.dtype(jnp.bfloat16)}
