"""What JAX lacks: kernels in programs for several platforms, and gradients that say that they have no gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_INSTEAD = "use implementation='reference' or 'dense', or for jax.jvp of jax.grad (Hessian-vector products) 'xla'"


def kernel_call(platform: str, kernel: Callable[..., Any], *arrays: Any) -> Any:
  """Returns `kernel(*arrays)`, lowered for one platform.

  Args:
    platform: "tpu" or "cuda". A program for several platforms has a branch for each of them, but JAX lowers each branch
      for all platforms, and a kernel cannot be.
    kernel: a function of arrays that calls a kernel.
    *arrays: pytrees of arrays.
  """
  jaxpr, shapes = jax.make_jaxpr(kernel, return_shape=True)(*arrays)
  results = _kernel_p.bind(*jaxpr.consts, *jax.tree.leaves(arrays), jaxpr=jaxpr.jaxpr, platform=platform)
  return jax.tree.unflatten(jax.tree.structure(shapes), results)


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


def _evaluate(*operands, jaxpr, platform):
  del platform
  num_consts = len(jaxpr.constvars)
  return jax.core.eval_jaxpr(jaxpr, operands[:num_consts], *operands[num_consts:])


def _lower(context, *operands, jaxpr, platform):
  lower = mlir.lower_fun(functools.partial(_evaluate, jaxpr=jaxpr, platform=platform))
  return lower(context.replace(platforms=(platform,)), *operands)


_kernel_p.def_impl(functools.partial(jax.jit, static_argnames=("jaxpr", "platform"))(_evaluate))
_kernel_p.def_abstract_eval(lambda *_, jaxpr, platform: [x.aval for x in jaxpr.outvars])
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
