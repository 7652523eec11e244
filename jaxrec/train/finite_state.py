"""Whether everything that a run saves is finite: a loss may be finite although the update after it was not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxrec.train.monitor import LOWER_RATE, NonFiniteStateError
from jaxrec.train.state import TrainState


class FiniteCheck:
  """Finds values of a state that are not finite, before it is evaluated or saved.

  A check reads the whole state once, on the devices that hold it, and waits for one number.
  """

  def __init__(self, good_step: int):
    """Starts from a state that is known to be finite.

    Args:
      good_step: updates that were made to it.
    """
    self._good_step = good_step

  def check(self, step: int, state: TrainState) -> None:
    """Raises unless parameters, optimizer state, average, item table and model state are finite.

    Args:
      step: updates that were made to the state; a step that was checked is not checked again.
      state: the same on every host.

    Raises:
      NonFiniteStateError: names the first array with such values, and the steps since the last check.
    """
    if step > self._good_step and not bool(_all_finite(state).addressable_data(0)):
      raise NonFiniteStateError(self._describe(step, state))
    self._good_step = step

  def _describe(self, step, state):
    counts = [int(count.addressable_data(0)) for count in _count_non_finite(state)]
    wrong = [(count, path, x) for count, (path, x) in zip(counts, _inexact(state), strict=True) if count]
    count, path, x = wrong[0]
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    more = f" (and {len(wrong) - 1} more arrays have such values)" if wrong[1:] else ""
    first = self._good_step + 1
    steps = f"step {step}" if step == first else f"steps {first} to {step}"
    return (
      f"{steps}: {count} of {x.size} values of {name} became NaN or infinite{more}, although the losses are finite."
      f" This state is not saved; the last checkpoint is from before and is kept. {LOWER_RATE}"
    )


@jax.jit
def _all_finite(state: TrainState) -> Bool[Array, ""]:
  """Whether no array holds NaN or infinity. A maximum is NaN if a value is; it is read at the speed of memory."""
  return jnp.stack([jnp.array(True), *(jnp.abs(x).max(initial=0) < jnp.inf for _, x in _inexact(state))]).all()


@jax.jit
def _count_non_finite(state: TrainState) -> list[Int[Array, ""]]:
  return [jnp.sum(~jnp.isfinite(x), dtype=jnp.int32) for _, x in _inexact(state)]


def _inexact(state):
  """Paths and arrays of floating-point numbers."""
  return [(path, x) for path, x in jax.tree_util.tree_leaves_with_path(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
