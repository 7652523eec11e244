"""`minnorm_*`: min-norm weights, normalizers, Pareto MTL, and the step of AutoCDSR made of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks.compile import quick_jit
from golden_checks.golden_file import Check, GoldenFile
from jaxrec.multi_objective import gram_matrix, min_norm_weights, task_gradients
from jaxrec.multi_objective.base import normalizers
from jaxrec.multi_objective.gradients import weighted_sum
from jaxrec.multi_objective.pareto_mtl import pareto, pareto_weights

_NOT_COMPUTED = {
  "out/init_*": "the reference's first guess; our solver starts elsewhere",
  "out/??_iterations": "of the reference's loops",
  "out/??_status": "of the reference's loops",
  "out/??_cost": "the norm of the last step; that of the weights is out/??_actual_norm2",
}


def pair_check() -> Check:
  return Check(_pairs, not_computed=_NOT_COMPUTED)


def solver_check() -> Check:
  reason = (
    "stops at steps below 1e-5 or after 250, so weights are rough; that our norm is not above its norm is checked"
  )
  return Check(_solver, not_computed={**_NOT_COMPUTED, "out/??_sol": reason})


def normalizer_check() -> Check:
  return Check(_normalizers)


def pareto_check() -> Check:
  reasons = {
    "out/opposite/weights": "two opposite unit gradients: all equal weights give the same zero vector",
    "out/parallel/weights": "two parallel gradients: 0.999 and 0.001 for 1 and 0",
  }
  return Check(_pareto, reasons, {"rounding_sensitive": "cases whose weights are not compared"})


def step_check() -> Check:
  return Check(_step, not_computed={"out/linear_scalarization_total": "the value of out/loss, by construction"})


def _pairs(golden: GoldenFile, dtype: type) -> dict:
  """Weights too; the reference returns 0.001 and 0.999 for 0 and 1, and for identical vectors, where any are right."""
  results, weights = _solved(golden, dtype)
  is_clipped = np.isin(np.round(golden.arrays["out/fw_sol"], 12), (0.001, 0.999))
  return results | {f"out/{name}_sol": np.ma.array(weights, mask=is_clipped) for name in ("pg", "fw")}


def _solver(golden: GoldenFile, dtype: type) -> dict:
  return _solved(golden, dtype)[0]


def _solved(golden, dtype):
  cases = _gradients(golden.inputs(dtype))
  golden.config.confirm(n=len(cases[0]), d=golden.arrays["in/vecs"].shape[-1])
  assert len(golden.config["cases"]) == len(cases)
  gram = jnp.stack([gram_matrix(grads) for grads in cases])  # [cases, K, K]
  weights = np.asarray(quick_jit(jax.vmap(min_norm_weights))(gram), np.float64)
  return {
    "out/gram": gram,
    "out/pg_actual_norm2": _norm_confirmed(golden, "out/pg_actual_norm2", weights, dtype),
    "out/fw_actual_norm2": _norm_confirmed(golden, "out/fw_actual_norm2", weights, dtype),
  }, weights


def _gradients(inputs):
  """Returns for each case the K gradients; those of the last one consist of several arrays."""
  cases = [list(jnp.asarray(vectors)) for vectors in inputs["vecs"]]
  parts = [value for name, value in inputs.items() if name.startswith("multipart")]
  return cases + ([[list(map(jnp.asarray, parts)) for parts in zip(*parts, strict=True)]] if parts else [])


def _norm_confirmed(golden, name, weights, dtype):
  """Returns the reference's squared norms where our weights are on the simplex and theirs is not above it, else NaN."""
  reference = golden.expected(name, dtype)[0]
  gram = golden.arrays["out64/gram"]
  ours = np.einsum("ci,cij,cj->c", weights, gram, weights)
  slack = (1e-13 if dtype == np.float64 else 1e-6) * np.abs(gram).max((1, 2))
  is_feasible = (weights >= 0).all(1) & (np.abs(weights.sum(1) - 1) < 1e-6)
  return np.where(is_feasible & (ours <= reference + slack), reference, np.nan)


def _normalizers(golden: GoldenFile, dtype: type) -> dict:
  inputs = golden.inputs(dtype)
  gram, losses = gram_matrix(list(jnp.asarray(inputs["grads"]))), jnp.asarray(inputs["losses"])
  return {f"out/{name}": normalizers(gram, losses, name) for name in ("none", "l2", "loss", "loss+")}


def _pareto(golden: GoldenFile, dtype: type) -> dict:
  golden.config.confirm(cases=list(golden.config["pref_index"]))

  @quick_jit
  def weigh(inputs):
    return {
      case: pareto_weights(
        gram_matrix(list(inputs[f"{case}/grads"])),
        inputs[f"{case}/losses"],
        golden.arrays[f"in/{case}/pref_vecs"],
        index,
      )
      for case, index in golden.config["pref_index"].items()
    }

  results = weigh({name: jnp.asarray(value) for name, value in golden.inputs(dtype).items()})
  return {f"out/{case}/weights": np.asarray(weights) for case, (weights, _) in results.items()} | {
    f"out/{case}/active": np.asarray(active) for case, (_, active) in results.items()
  }


def _step(golden: GoldenFile, dtype: type) -> dict:
  """The toy network of the file, by our gradients from one forward pass and our Pareto weighting."""
  inputs = golden.inputs(dtype)
  params = {name: jnp.asarray(value) for name, value in golden.params(dtype).items()}
  enters = ["a.weight", "a.bias"] + ([] if golden.config["ignore_table"] else ["embedding_table.weight"])

  def trunk(params):
    x = params["embedding_table.weight"][inputs["x"]]
    return jnp.tanh(x @ params["a.weight"].T + params["a.bias"])

  def loss(hidden, params):
    return jnp.mean((hidden @ params["b.weight"].T + params["b.bias"] - inputs["y"]) ** 2)

  def attention(hidden, params):
    return jnp.mean(jax.nn.sigmoid(hidden) * golden.config["att_scale"])

  @quick_jit
  def step(params):
    losses, _, grads = task_gradients(trunk, [loss, attention], params)
    gram = gram_matrix(grads, select=lambda grad: [grad[name] for name in enters])
    weights, _ = pareto().update(gram, losses, (), jax.random.key(0))
    return losses, weights, weighted_sum(weights, grads)

  losses, weights, grads = step(params)
  results = {"out/loss": losses[0], "out/attention_score": losses[1], "out/coefficient": weights[1]}
  results["out/total"] = (losses * weights).sum()
  return results | {f"grad/{name}": grad for name, grad in grads.items()}
