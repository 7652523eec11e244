"""What the checks of whole models share: outputs, what their parts put out, and gradients, in one compiled function."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np

from golden_checks.compile import quick_jit
from golden_checks.golden_file import GoldenFile
from jaxrec.layers.item_embedding import ItemEmbedding

ITEM_TABLE = "_embedding_module._item_emb.weight"
POSITION_TABLE = "_input_features_preproc._pos_emb.weight"


def outputs_and_gradients(golden: GoldenFile, dtype: type, forward: Callable) -> dict:
  """Returns `out/encoded`, `out/loss`, what `forward` adds, and the gradients of parameters and of the looked-up items.

  Args:
    forward: (params by reference name, shift) -> (output, more results by name); adds `shift` to the looked-up items.
  """
  params, cotangent = golden.params(dtype), golden.inputs(dtype)["cotangent"]
  shift = np.zeros(golden.arrays["out/past_embeddings"].shape, dtype)

  @quick_jit
  def run(params, shift, cotangent):
    out, pull_back, more = jax.vjp(forward, params, shift, has_aux=True)
    return out, more, pull_back(cotangent)

  out, more, (param_grads, item_grad) = run(params, shift, cotangent)
  out = np.asarray(out)
  last = golden.arrays["in/past_lengths"] - 1
  results = {
    "out/encoded": out,
    "out/loss": (out.astype(np.float64) * cotangent).sum(),
    "grad/past_embeddings": item_grad,
  }
  results["out/current_embeddings"] = np.take_along_axis(out, last[:, None, None], axis=1)[:, 0]
  return results | dict(more) | {f"grad/{name}": grad for name, grad in param_grads.items()}


def apply_with_intermediates(model: nn.Module, params, batch, shift):
  """Returns the model's output and what its submodules returned by name; `shift` is added to the looked-up items."""

  def add_shift(function, args, kwargs, context):
    out = function(*args, **kwargs)
    return out + shift if isinstance(context.module, ItemEmbedding) and context.method_name == "__call__" else out

  with nn.intercept_methods(add_shift):
    out, state = model.apply({"params": params}, batch, True, capture_intermediates=True, mutable=["intermediates"])
  submodules = {name: value for name, value in state["intermediates"].items() if name != "__call__"}
  return out, {name: value["__call__"][0] for name, value in submodules.items() if "__call__" in value}
