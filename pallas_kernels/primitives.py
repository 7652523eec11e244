"""What JAX lacks: kernels in programs for several platforms, and gradients that say that they have no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_INSTEAD = "use implementation='reference' or 'dense', or for jax.jvp of jax.grad (Hessian-vector products) 'xla'"


def kernel_call(platform: str, kernel: Callable[..., Any], results: Any, *arrays: Any) -> Any:
  """Returns `kernel(*arrays)`, traced and lowered only in a program for one platform.

  Args:
    platform: "tpu" or "cuda". A program for several platforms has a branch for each of them, but JAX traces each branch
      in every program, which for a kernel takes longer than for the rest of a layer, and lowers each for all platforms,
      which a kernel cannot be.
    kernel: a function of arrays that calls a kernel.
    results: what it returns, as a pytree of types of arrays (`jax.typeof`).
    *arrays: its arguments, pytrees of arrays.
  """
  operands, structure = jax.tree.flatten(arrays)
  avals, structure_of_results = jax.tree.flatten(results)
  outs = _kernel_p.bind(
    *operands,
    kernel=lambda *operands: jax.tree.leaves(kernel(*jax.tree.unflatten(structure, operands))),
    avals=tuple(avals),
    platform=platform,
  )
  return jax.tree.unflatten(structure_of_results, outs)


def without_tangents(kernel: Callable[..., Any], implementation: str) -> Callable[..., Any]:
  """Returns the kernel with a derivative that is refused by name where a program needs it.

  Not where it is traced, because "auto" traces the kernels of all platforms.
  """
  call = jax.custom_jvp(lambda *arrays: kernel(*arrays))

  @call.defjvp
  def _differentiate(primals, tangents):
    results = call(*primals)
    leaves, structure = jax.tree.flatten(results)
    tangents = [x for x in jax.tree.leaves(tangents) if x.dtype != jax.dtypes.float0]
    avals = tuple(jax.typeof(x) for x in leaves)
    return results, jax.tree.unflatten(structure, _no_tangents_p.bind(*tangents, avals=avals, what=implementation))

  return call


def without_gradient(tree: Any, implementation: str) -> Any:
  """Returns a gradient as it is; reverse differentiation of it is refused by name.

  Forward differentiation of a gradient goes through.
  """
  return jax.tree.map(lambda x: _without_gradient_p.bind(x, what=implementation), tree)


def _refuse(*_, what, **__):
  raise NotImplementedError(f"implementation={what!r} has no second derivative of this kind; {_INSTEAD}")


_kernel_p = Primitive("kernel_call")
_kernel_p.multiple_results = True


def _lower(context, *operands, kernel, platform, **_):
  """Each device computes for itself: inside, no value differs along an axis of a mesh."""
  avals_in, avals_out = (
    [jax.typeof(jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in avals]
    for avals in (context.avals_in, context.avals_out)
  )
  context = context.replace(platforms=(platform,), avals_in=avals_in, avals_out=avals_out)
  return mlir.lower_fun(kernel)(context, *operands)


_kernel_p.def_impl(lambda *operands, kernel, **_: jax.jit(kernel)(*operands))
_kernel_p.def_abstract_eval(lambda *_, avals, **__: list(avals))
mlir.register_lowering(_kernel_p, _lower)

_no_tangents_p = Primitive("no_tangents")
_no_tangents_p.multiple_results = True


def _batch_no_tangents(operands, axes, *, avals, what):
  (size,) = {x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None}
  avals = tuple(aval.update(shape=(size, *aval.shape)) for aval in avals)
  return _no_tangents_p.bind(*operands, avals=avals, what=what), [0] * len(avals)


_no_tangents_p.def_impl(_refuse)
_no_tangents_p.def_abstract_eval(lambda *_, avals, what: list(avals))
mlir.register_lowering(_no_tangents_p, _refuse)
ad.deflinear2(_no_tangents_p, _refuse)
batching.primitive_batchers[_no_tangents_p] = _batch_no_tangents

_without_gradient_p = Primitive("without_gradient")
_without_gradient_p.def_impl(lambda x, **_: x)
_without_gradient_p.def_abstract_eval(lambda x, **_: x)
mlir.register_lowering(_without_gradient_p, lambda context, x, **_: [x])
ad.deflinear2(_without_gradient_p, _refuse)
batching.defvectorized(_without_gradient_p)
