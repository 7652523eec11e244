"""Which check belongs to which golden file, and which files have none, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from golden_checks import attention, autocdsr, cached, dare, hstu, losses, metrics, min_norm, sasrec, stu, time_buckets
from golden_checks.golden_file import Check, GoldenFile

# File-name prefix -> variant -> check. The longest prefix of a name wins, over both tables. Attention is checked in two
# implementations, HSTU layers in the tiled one, and models, made of them, in the dense one, which compiles faster.
CHECKS: Mapping[str, Mapping[str, Check]] = {
  "autocdsr_attention_": {"": autocdsr.attention_check("reference")},
  "autocdsr_loss": {"": autocdsr.loss_check()},
  "autocdsr_pure": {"": autocdsr.pure_check()},
  "dare_": {"": dare.check()},
  "hstu_attention_": {name: attention.check(name) for name in ("reference", "xla", "tpu")},
  "hstu_cache_": {"": cached.model_check()},
  "hstu_layer_": {"": hstu.layer_check()},
  "hstu_model_": {"": hstu.model_check()},
  "hstu_time_": {"": time_buckets.check()},
  "metrics_autocdsr_": {"": metrics.autocdsr_check()},
  "metrics_dare_": {"": metrics.dare_check()},
  "metrics_hstu_": {"": metrics.check()},
  "minnorm_": {"": min_norm.solver_check()},
  "minnorm_n2": {"": min_norm.pair_check()},
  "minnorm_normalizers": {"": min_norm.normalizer_check()},
  "minnorm_pareto_loop": {"": min_norm.step_check()},
  "minnorm_paretomtl": {"": min_norm.pareto_check()},
  "sampled_softmax_": {"": losses.loss_check()},
  "sampled_softmax_hstu_step": {"": losses.training_check()},
  "sasrec_model_": {"": sasrec.check()},
  "stu_cached_": {"": cached.stack_check()},
  "stu_layer_": {"": stu.check()},
}

# File-name prefix, or prefix:option=value of the file's config -> why no check runs and what we do instead.
EXCEPTIONS: Mapping[str, str] = {
  "dare_:use_long_seq_average=True": (
    "not shared: the plain mean of the history as one more feature, which every published script switches off"
  ),
  "dare_:model_name=projection_with_mlp": (
    "not shared: maps with hidden layers instead of linear ones, a decoupling that the authors gave up"
  ),
  "dare_:model_name=projection_large_emb_small_output": (
    "not shared: maps to narrower vectors, of which another part than the age's is taken for it; the authors gave it up"
  ),
  "hstu_:normalization=softmax_rel_bias": (
    "not shared: it merges the heads and lets future keys and padding into the denominator of the softmax; our layer's "
    "activation='softmax' normalises each head over the keys that may be attended: no position depends on a later one"
  ),
}


def checks_for(name: str) -> Mapping[str, Check]:
  """Returns variant -> check for a file name without its suffix; empty where `exception_for` has the reason.

  Raises:
    LookupError: neither table knows the name.
  """
  prefixes = [prefix for prefix in {**CHECKS, **EXCEPTIONS} if ":" not in prefix and name.startswith(prefix)]
  if not prefixes:
    raise LookupError(f"no check for golden file {name!r}: add its prefix to CHECKS or, with a reason, to EXCEPTIONS")
  return CHECKS.get(max(prefixes, key=len), {})


def exception_for(golden: GoldenFile) -> str | None:
  """Returns the reason why a file is not checked, or None."""
  for key in sorted(EXCEPTIONS, key=len, reverse=True):
    prefix, _, option = key.partition(":")
    name, _, value = option.partition("=")
    if golden.name.startswith(prefix) and (not option or str(golden.config.get(name)) == value):
      return EXCEPTIONS[key] if option or not checks_for(golden.name) else None
  return None
