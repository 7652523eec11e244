"""What a training step changes, as one pytree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxrec.embedding import TableState

Params = Any  # A pytree of float32 arrays.


@flax.struct.dataclass
class TrainState:
  """Parameters and everything that training updates with them.

  step: updates made so far.
  params: the model's, as in `model.apply({"params": params}, ...)`.
  opt_state: state of the optimizer.
  average: exponential moving average of the parameters, or None where none is kept.
  tables: rows of the item table where it lives outside the parameters; see `jaxrec.train.item_table`.
  model_state: the model's variables other than parameters, such as batch statistics; {} without.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: optax.OptState
  average: Params | None = None
  tables: TableState | None = None
  model_state: Any = flax.struct.field(default_factory=dict)

  @property
  def evaluated(self) -> Params:
    """The parameters to evaluate and to use: the average if there is one."""
    return self.params if self.average is None else self.average


def create_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  batch: Any,
  seed: int,
  keep_average: bool = False,
  init_arguments: Callable[[Any], dict[str, Any]] = lambda batch: {},
  uniform_start: float = 0.0,
  shardings_of: Callable[[TrainState], Any] | None = None,
) -> TrainState:
  """Returns the state before the first step.

  Args:
    model: Linen module that reads such batches.
    optimizer: its state is initialised too.
    batch: any batch; parameters don't depend on its values, nor on its number of rows.
    seed: of the parameters.
    keep_average: whether a moving average is kept; it starts at the initial parameters.
    init_arguments: a batch to further arguments of `model.init`.
    uniform_start: where above 0, all parameters start uniform between minus this and this instead.
    shardings_of: shapes of the state to its shardings, over the devices of all hosts: no device then ever holds more
      than its share. None: the default device.
  """
  init, arguments = _initializer(model, optimizer, batch, seed, keep_average, init_arguments, uniform_start)
  shardings = None if shardings_of is None else shardings_of(jax.eval_shape(init, *arguments))
  # It runs once, so a CPU should compile it quickly; the values are the same.
  options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
  return jax.jit(init, out_shardings=shardings, compiler_options=options)(*arguments)


def state_shapes(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  batch: Any,
  keep_average: bool = False,
  init_arguments: Callable[[Any], dict[str, Any]] = lambda batch: {},
) -> TrainState:
  """Returns shapes and dtypes of `create_state`, whose arguments these are, without making the arrays."""
  init, arguments = _initializer(model, optimizer, batch, 0, keep_average, init_arguments)
  return jax.eval_shape(init, *arguments)


def _initializer(model, optimizer, batch, seed, keep_average, init_arguments, uniform_start=0.0):
  """Returns the function that makes a state, and its arguments: a key and one row of the batch."""

  def init(key_data, rows):
    key = jax.random.wrap_key_data(key_data)
    variables = dict(model.init(key, rows, deterministic=True, **init_arguments(rows)))
    params = variables.pop("params")
    params = _uniform(params, jax.random.fold_in(key, 1), uniform_start) if uniform_start else params
    average = jax.tree.map(jnp.copy, params) if keep_average else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average, None, variables)

  with jax.ensure_compile_time_eval():  # NumPy arrays, which several hosts may give to one program.
    arguments = jax.device_get((jax.random.key_data(jax.random.key(seed)), jax.tree.map(lambda x: x[:1], batch)))
  return init, arguments


def _uniform(params, key, bound):
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  drawn = (jax.random.uniform(k, x.shape, x.dtype, -bound, bound) for k, x in zip(keys, leaves, strict=True))
  return jax.tree.unflatten(tree, drawn)


def num_parameters(params: Params) -> int:
  """Returns how many numbers the parameters hold."""
  return sum(x.size for x in jax.tree.leaves(params))
