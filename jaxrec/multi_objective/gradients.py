"""Gradients of K objectives with a shared trunk from one forward pass, and their inner products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.multi_objective.base import cosines, norms

__all__ = ["cosines", "gram_matrix", "norms", "pull_heads", "task_gradients", "upper_bound_gradient", "weighted_sum"]

Head = Callable[[Any, Any], Any]  # (activations, params) -> loss, or (loss, aux)


def task_gradients(
  trunk: Callable[[Any], Any], heads: Sequence[Head], params: Any, *, batched: bool = True
) -> tuple[Float[Array, "K"], tuple, tuple]:
  """Returns the losses, each head's aux (None without one), and K gradients like `params`, from one forward pass.

  Args:
    trunk: params -> activations, a pytree. It runs once.
    heads: K functions (activations, params) -> scalar loss or (loss, aux). Each has its own backward pass, so an
      objective pays nothing in the heads for what it does not use.
    params: pytree of floating-point arrays.
    batched: True: one backward pass of the trunk for all K cotangents, with `jax.vmap`; what it recomputes is shared,
      at K times the memory for cotangents. False: K backward passes in sequence, each only through the parts of the
      trunk that its head depends on.

  Raises:
    ValueError: a head that does not return a scalar.

  >>> losses, _, grads = task_gradients(lambda p: 2 * p, [lambda z, p: z**2, lambda z, p: z + p], jnp.array(3.0))
  >>> losses.tolist(), [grad.item() for grad in grads]  # (2 p)^2 and 3 p at p = 3
  ([36.0, 9.0], [24.0, 3.0])
  """
  losses, aux, cotangents, pull, uses = _pull_heads(trunk, heads, params)
  if not batched:
    return losses, aux, tuple(pull(cotangent, use) for cotangent, use in zip(cotangents, uses, strict=True))
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cotangents)
  grads = jax.vmap(pull)(stacked)
  return losses, aux, tuple(jax.tree.map(lambda x, k=k: x[k], grads) for k in range(len(heads)))


def upper_bound_gradient(
  trunk: Callable[[Any], Any],
  heads: Sequence[Head],
  params: Any,
  weigh: Callable[[Float[Array, "K K"], Float[Array, "K"]], tuple[Float[Array, "K"], Any]],
) -> tuple[Float[Array, "K"], tuple, Any, Float[Array, "K"], Any]:
  """Returns losses, each head's aux, one combined gradient like `params`, the weights, and the second value of `weigh`.

  The upper bound of MGDA: weights come from the gradients with respect to the shared activations, so that one backward
  pass of the trunk serves all K objectives. The combined gradient includes the heads' direct use of `params`.

  Args:
    trunk: params -> activations, a pytree.
    heads: K functions (activations, params) -> scalar loss or (loss, aux).
    params: pytree of floating-point arrays.
    weigh: (gram, losses) -> (weights, anything), e.g. `lambda g, l: weighting.update(g, l, state, key)`.

  Source: Sener & Koltun 2018 (arXiv 1810.04650), section 3.3, MGDA-UB.

  >>> equal = lambda gram, losses: (jnp.array([0.5, 0.5]), None)
  >>> heads = [lambda z, p: z**2, lambda z, p: z + p]
  >>> upper_bound_gradient(lambda p: 2 * p, heads, jnp.array(3.0), equal)[2].item()  # (24 + 3) / 2
  13.5
  """
  losses, aux, cotangents, pull = pull_heads(trunk, heads, params)
  weights, rest = weigh(gram_matrix([activations for activations, _ in cotangents]), losses)
  return losses, aux, pull(weighted_sum(weights, cotangents)), weights, rest


def pull_heads(
  trunk: Callable[[Any], Any], heads: Sequence[Head], params: Any
) -> tuple[Float[Array, "K"], tuple, tuple, Callable[[Any], Any]]:
  """Returns the losses, each head's aux, K cotangents, and the function that pulls a cotangent back to `params`.

  A cotangent is a pair: the gradient with respect to the trunk's floating-point activations (a list), and the gradient
  with respect to the head's direct use of `params`. Cotangents may be added and scaled before they are pulled back.

  Args:
    trunk: params -> activations, a pytree.
    heads: K functions (activations, params) -> scalar loss or (loss, aux).
    params: pytree of floating-point arrays.
  """
  return _pull_heads(trunk, heads, params)[:4]


def _pull_heads(trunk, heads, params):
  """Returns the results of `pull_heads`, and for each head which activations it uses, a second argument of `pull`."""
  activations, pull_trunk, rebuild = _forward(trunk, params)

  def head_of_floats(head):
    def call(floats, params):
      result = head(rebuild(floats), params)
      return result if isinstance(result, tuple) else (result, None)

    return call

  losses, cotangents, aux, uses = [], [], [], []
  for head in heads:
    uses.append(_is_used(head_of_floats(head), activations, params))
    loss, pull_head, extra = jax.vjp(head_of_floats(head), activations, params, has_aux=True)
    if jnp.shape(loss) != ():
      raise ValueError(f"head {len(losses)} must return a scalar loss, but its shape is {jnp.shape(loss)}")
    losses.append(loss)
    cotangents.append(pull_head(jnp.ones_like(loss)))
    aux.append(extra)

  def pull(cotangent, use=None):
    to_activations, to_params = cotangent
    return jax.tree.map(jnp.add, pull_trunk(to_activations, use), to_params)

  return jnp.stack(losses), tuple(aux), tuple(cotangents), pull, tuple(uses)


def _is_used(head, activations, params) -> list[bool]:
  """Returns which activations the head reads; the cotangents of the others are always zero."""
  jaxpr = jax.make_jaxpr(head)(activations, params).jaxpr
  read = {id(atom) for equation in jaxpr.eqns for atom in equation.invars} | {id(atom) for atom in jaxpr.outvars}
  return [id(variable) in read for variable in jaxpr.invars[: len(activations)]]


def _forward(trunk, params):
  """Runs the trunk; returns its floating-point leaves, their pullback, and the function from them to its output."""
  structure, is_float = None, None

  def floats_and_rest(params):
    nonlocal structure, is_float
    leaves, structure = jax.tree.flatten(trunk(params))
    is_float = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
    floats = [leaf for leaf, yes in zip(leaves, is_float, strict=True) if yes]
    return floats, [leaf for leaf, yes in zip(leaves, is_float, strict=True) if not yes]

  floats, push, rest = jax.linearize(floats_and_rest, params, has_aux=True)

  def pull(cotangents, use=None):
    """Transposes only the path to the used activations; `jax.vjp` does not skip cotangents that are zero."""
    which = [i for i in range(len(floats)) if use is None or use[i]]

    def push_used(tangent):
      pushed = push(tangent)
      return [pushed[i] for i in which]

    back = jax.linear_transpose(push_used, params)
    return back([cotangents[i] for i in which])[0]

  def rebuild(floats):
    first, second = iter(floats), iter(rest)
    return jax.tree.unflatten(structure, [next(first) if yes else next(second) for yes in is_float])

  return floats, pull, rebuild


def gram_matrix(
  grads: Sequence[Any],
  axis_name: str | Sequence[str] | None = None,
  select: Any = None,
  path: int | None = None,
) -> Float[Array, "K K"]:
  """Returns the inner products of K gradients in float32 (float64 where a leaf is float64).

  Args:
    grads: K pytrees of one structure.
    axis_name: mesh axes over which each gradient is sharded, inside `shard_map`: inner products of the shards are
      summed. None for replicated gradients. Gradients of parts of a batch must be summed before: inner products of sums
      are not sums of inner products.
    select: the leaves to include: a function from a gradient to a pytree of them, or a pytree of bools like a gradient.
    path: index of an objective: only the numbers that its gradient moves are included, those where it is not zero. The
      parameters that an objective cannot reach make its cosine with the others smaller. None: all.

  >>> grads = [{"table": jnp.ones(2), "w": jnp.array([3.0])}, {"table": jnp.ones(2), "w": jnp.array([-1.0])}]
  >>> gram_matrix(grads).tolist()
  [[11.0, -1.0], [-1.0, 3.0]]
  >>> gram_matrix(grads, select=lambda grad: grad["w"]).tolist()
  [[9.0, -3.0], [-3.0, 1.0]]
  >>> gram_matrix([jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0])], path=1).tolist()
  [[9.0, 3.0], [3.0, 1.0]]
  """
  leaves = [jax.tree.leaves(_selected(grad, select)) for grad in grads]
  if path is not None:
    is_moved = [leaf != 0 for leaf in leaves[path]]
    leaves = [[jnp.where(is_in, x, 0) for is_in, x in zip(is_moved, of_one, strict=True)] for of_one in leaves]
  dtype = _at_least_float32(*(leaf.dtype for leaf in leaves[0]))
  products = {
    (i, j): sum((_inner(a, b, dtype) for a, b in zip(leaves[i], leaves[j], strict=True)), jnp.zeros((), dtype))
    for i in range(len(grads))
    for j in range(i + 1)
  }
  rows = [[products[max(i, j), min(i, j)] for j in range(len(grads))] for i in range(len(grads))]
  gram = jnp.stack([jnp.stack(row) for row in rows])  # [K, K]
  return gram if axis_name is None else jax.lax.psum(gram, axis_name)


def _selected(grad, select):
  if select is None:
    return grad
  if callable(select):
    return select(grad)
  return jax.tree.map(lambda enters, leaf: leaf if enters else None, select, grad)


def _at_least_float32(*dtypes):
  """`jnp.promote_types` with float32, which is an error under strict promotion."""
  return jnp.float64 if jnp.float64 in dtypes else jnp.float32


def _inner(a, b, dtype):
  """Returns the inner product of two arrays; `tensordot`, because flattening would gather a sharded array."""
  return jnp.tensordot(a.astype(dtype), b.astype(dtype), axes=a.ndim, precision="highest")


def weighted_sum(weights: Float[Array, "K"], trees: Sequence[Any]) -> Any:
  """Returns sum_k weights[k] * trees[k], summed in the weights' dtype or a wider one, in the dtypes of the trees.

  >>> weighted_sum(jnp.array([1.0, 0.5]), [jnp.array([2.0]), jnp.array([4.0])]).tolist()
  [4.0]
  """

  def combine(*leaves):
    wide = _at_least_float32(weights.dtype, leaves[0].dtype)
    terms = (weight * leaf.astype(wide) for weight, leaf in zip(weights.astype(wide), leaves, strict=True))
    return sum(terms).astype(leaves[0].dtype)

  return jax.tree.map(combine, *trees)
