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

from jaxrec.batches import SequenceBatch
from jaxrec.embedding import TableState

Params = Any  # A pytree of float32 arrays.


@flax.struct.dataclass
class TrainState:
  """Parameters and all that goes with them.

  step: updates made so far.
  params: the model's, as in `model.apply({"params": params}, ...)`.
  opt_state: of the optimizer.
  average: exponential moving average of the parameters, or None where none is kept.
  tables: rows of the item table where it is not among the parameters; see `jaxrec.embedding`.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: optax.OptState
  average: Params | None = None
  tables: TableState | None = None

  @property
  def evaluated(self) -> Params:
    """The parameters to evaluate and to use: the average if there is one."""
    return self.params if self.average is None else self.average


def create_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  batch: SequenceBatch,
  seed: int,
  keep_average: bool = False,
  with_items: bool = True,
  shardings_of: Callable[[TrainState], Any] | None = None,
) -> TrainState:
  """Returns the state before the first step.

  Args:
    model: Linen module that reads a `SequenceBatch`.
    optimizer: its state is initialised too.
    batch: any batch; parameters don't depend on its values, nor on its number of rows.
    seed: of the parameters.
    keep_average: whether a moving average is kept; it starts at the initial parameters.
    with_items: whether the item table is one of the parameters.
    shardings_of: shapes of the state to where they lie, on the devices of all hosts: no device then ever holds more
      than its share. None: the default device.
  """

  def init(key_data, one_row):
    key = jax.random.wrap_key_data(key_data)
    item = {} if with_items else {"item": jnp.zeros((*one_row.item_id.shape, model.width), model.dtype)}
    params = model.init(key, one_row, deterministic=True, **item)["params"]
    average = jax.tree.map(jnp.copy, params) if keep_average else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)

  with jax.ensure_compile_time_eval():  # NumPy arrays, which several hosts may give to one program.
    arguments = jax.device_get((jax.random.key_data(jax.random.key(seed)), jax.tree.map(lambda x: x[:1], batch)))
  layout = None if shardings_of is None else shardings_of(jax.eval_shape(init, *arguments))
  return jax.jit(init, out_shardings=layout)(*arguments)


def num_parameters(params: Params) -> int:
  """Returns how many numbers the parameters hold."""
  return sum(x.size for x in jax.tree.leaves(params))
