"""Attention masks as intervals: which keys a query may read, in O(N) integers.

Causal order, padding, packed sequences, domains, candidate targets, windows and contextual prefixes all say the same
thing of a query: it may read the keys of at most two half-open intervals, and perhaps its own. `IntervalMask` holds
just that, so nothing of size `[N, S]` is ever formed, and a kernel can tell from the intervals which tiles of the
attention matrix are empty.

>>> import jax.numpy as jnp
>>> mask = IntervalMask.causal(jnp.array([[1, 1, 2, 0]]))  # a row with sequences of two and of one token, and padding
>>> mask.to_dense(num_keys=4)[0].astype(int).tolist()
[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Integer, Shaped

from pallas_kernels.integers import AnyArray, as_integers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IntervalMask:
  """For each query: the keys in [start_a, end_a), those in [start_b, end_b), and its own where `include_self`.

  Intervals may be empty (start >= end). The two intervals of a query must not overlap; its own key may lie in one of
  them.

  start_a, end_a, start_b, end_b: key indices, in 0..S.
  include_self: whether the query reads its own key as well.
  own_key: index of the query's own key; None says that query i has key i, which holds unless the queries are only
    some of the tokens.

  The masks of the constructors below know that each token is read by itself or by none. What is made of their arrays,
  by `jax.tree.map` or `dataclasses.replace`, does not: there it may be otherwise.

  >>> mask = IntervalMask.causal(jnp.array([[1, 1, 2, 0]]))  # Two sequences and a padded position.
  >>> mask.to_dense(4)[0].astype(int).tolist()
  [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
  """

  start_a: Int[Array, "B N"]
  end_a: Int[Array, "B N"]
  start_b: Int[Array, "B N"]
  end_b: Int[Array, "B N"]
  include_self: Bool[Array, "B N"]
  own_key: Int[Array, "B N"] | None = None
  _reads_itself = False  # No field: a copy with other arrays does not inherit it.

  @property
  def shape(self) -> tuple[int, int]:
    """`(B, N)`: rows and queries."""
    return self.start_a.shape

  def self_index(self) -> Int[Array, "B N"]:
    """The index of the query's own key where it is read, else -1."""
    return jnp.where(self.include_self, self.own_index(), -1)  # [B, N]

  def own_index(self) -> Int[Array, "#B N"]:
    """The index of the query's own key, read or not."""
    return _index(self.start_a) if self.own_key is None else as_integers("own_key", self.own_key)

  def spans(self) -> tuple[Int[Array, "B N"], ...]:
    """`(start_a, end_a, start_b, end_b, self_index)`, what `in_spans` asks for."""
    return self.start_a, self.end_a, self.start_b, self.end_b, self.self_index()

  def to_dense(self, num_keys: int) -> Bool[Array, "B N S"]:
    """`may_attend` as an array, for tests and pictures."""
    return self.contains(jnp.arange(num_keys, dtype=jnp.int32)[None, None])  # [B, N, S]

  def contains(self, key: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether each query may read `key`, an array of key indices that broadcasts against `[B, N, 1]`."""
    return in_spans([x[..., None] for x in self.spans()], key)

  def reads_any(self, num_keys: int) -> Bool[Array, "B N"]:
    """Whether each query reads any of `num_keys` keys."""
    starts, ends = self._intervals(num_keys)
    return (starts < ends).any(axis=-1)

  def is_read(self, num_keys: int) -> Bool[Array, "B S"]:
    """Whether any query reads each of `num_keys` keys, in O(N + S)."""
    if self._reads_itself and num_keys == self.shape[1]:
      return self.reads_any(num_keys)

    def reach_of_row(start, end):
      return jnp.zeros(num_keys, jnp.int32).at[start].max(end, mode="drop")

    starts, ends = (x.reshape(x.shape[0], 3 * x.shape[1]) for x in self._intervals(num_keys))  # [B, 3N]
    # The furthest end of the intervals that start at each key, and then of those that start up to it.
    reach = jax.lax.cummax(jax.vmap(reach_of_row)(starts, ends), axis=1)  # [B, S]
    return reach > jnp.arange(num_keys, dtype=jnp.int32)[None]

  def count_keys(self, key_group: Int[Array, "B S"], num_groups: int) -> Int[Array, "B N G"]:
    """How many keys of each group 0..G - 1 each query reads, its own key not counted, in O((N + S) G)."""
    one_hot = jax.nn.one_hot(key_group, num_groups, dtype=jnp.int32)  # [B, S, G]
    before = jnp.pad(jnp.cumsum(one_hot, axis=1), ((0, 0), (1, 0), (0, 0)))  # [B, S + 1, G]

    def read_in(start, end):
      start, end = (jnp.clip(x, 0, key_group.shape[1])[..., None] for x in (start, jnp.maximum(start, end)))
      return jnp.take_along_axis(before, end, axis=1) - jnp.take_along_axis(before, start, axis=1)  # [B, N, G]

    own = jnp.broadcast_to(self.own_index(), self.shape)[..., None]
    is_counted = dataclasses.replace(self, include_self=jnp.zeros_like(self.include_self)).contains(own)  # [B, N, 1]
    own_group = jnp.take_along_axis(one_hot, jnp.clip(own, 0, key_group.shape[1] - 1), axis=1)  # [B, N, G]
    return read_in(self.start_a, self.end_a) + read_in(self.start_b, self.end_b) - jnp.where(is_counted, own_group, 0)

  def _intervals(self, num_keys):
    """Starts and ends of what each query reads of 0..num_keys, `[B, N, 3]`; empty unless start < end."""
    own = self.self_index()
    starts = jnp.stack([self.start_a, self.start_b, own], axis=-1).astype(jnp.int32)
    ends = jnp.stack([self.end_a, self.end_b, own + (own >= 0).astype(own.dtype)], axis=-1).astype(jnp.int32)
    return jnp.clip(starts, 0, num_keys), jnp.minimum(ends, num_keys)

  def limited(self, look_back: int) -> IntervalMask:
    """The same mask without the keys more than `look_back` places before the query's own key.

    Raises:
      ValueError: if `look_back` is negative.
    """
    _check_not_negative(look_back=look_back)
    first = self.own_index() - look_back
    starts = {"start_a": jnp.maximum(self.start_a, first), "start_b": jnp.maximum(self.start_b, first)}
    limited = dataclasses.replace(self, **starts)
    return _that_reads_itself(limited) if self._reads_itself else limited

  def queries(self, first: int, count: int) -> IntervalMask:
    """The mask of the `count` queries from `first` on, over the same keys (for cached keys and values)."""
    own = jnp.broadcast_to(self.own_index(), self.shape)
    return jax.tree.map(lambda x: x[:, first : first + count], dataclasses.replace(self, own_key=own))

  def take(self, index: Int[Array, "B Q"]) -> IntervalMask:
    """The mask of the queries at `index` of each row, over the same keys; that of a query outside reads nothing."""
    index, own = as_integers("index", index), jnp.broadcast_to(self.own_index(), self.shape)
    inside = index < self.shape[1]
    place = jnp.minimum(index, self.shape[1] - 1)
    taken = jax.tree.map(lambda x: jnp.take_along_axis(x, place, axis=1), dataclasses.replace(self, own_key=own))
    end_a, end_b = jnp.where(inside, taken.end_a, taken.start_a), jnp.where(inside, taken.end_b, taken.start_b)
    return dataclasses.replace(taken, end_a=end_a, end_b=end_b, include_self=taken.include_self & inside)

  @classmethod
  def causal(
    cls, sequence_id: Integer[AnyArray, "B N"], position: Integer[AnyArray, "B N"] | None = None
  ) -> IntervalMask:
    """Each token reads itself and the earlier tokens of its own sequence.

    Args:
      sequence_id: equal ids lie side by side; 0 is padding, which reads nothing and is read by nothing.
      position: where given, a token whose position does not exceed its neighbour's on the left starts a new sequence
        even if the ids are equal.

    Raises:
      ValueError: ids or positions that JAX would cut to 32 bits, here and in the other masks.
    """
    sequence_id, position = as_integers("sequence_id", sequence_id), as_integers("position", position)
    start = _run_start(_starts_run(sequence_id, position))
    index = _index(sequence_id)
    return cls._one_interval(start, index + 1, sequence_id != 0)

  @classmethod
  def full(cls, sequence_id: Integer[AnyArray, "B N"]) -> IntervalMask:
    """Each token reads all tokens of its own sequence, later ones too. Equal ids lie side by side; 0 is padding."""
    sequence_id = as_integers("sequence_id", sequence_id)
    starts = _starts_run(sequence_id, None)
    ends = jnp.concatenate([starts[:, 1:], jnp.ones_like(starts[:, :1])], axis=1)
    end = jnp.flip(_run_start(jnp.flip(ends, axis=1)), axis=1)
    return cls._one_interval(_run_start(starts), sequence_id.shape[1] - end, sequence_id != 0)

  @classmethod
  def intra_domain(
    cls,
    sequence_id: Integer[AnyArray, "B N"],
    domain_id: Integer[AnyArray, "B N"],
    position: Integer[AnyArray, "B N"] | None = None,
  ) -> IntervalMask:
    """Each token reads itself and the earlier tokens of its own sequence and domain.

    The tokens of a (sequence, domain) segment must lie side by side: see `sort_by_segment`.
    """
    sequence_id, domain_id = as_integers("sequence_id", sequence_id), as_integers("domain_id", domain_id)
    starts = _starts_run(sequence_id, as_integers("position", position)) | _starts_run(domain_id, None)
    index = _index(sequence_id)
    return cls._one_interval(_run_start(starts), index + 1, sequence_id != 0)

  @classmethod
  def hstu(
    cls,
    lengths: Integer[AnyArray, " B"],
    num_tokens: int,
    *,
    num_targets: Integer[AnyArray, " B"] | None = None,
    max_attention_length: int = 0,
    contextual_length: int = 0,
    min_full_attention_length: int = 0,
    causal: bool = True,
  ) -> IntervalMask:
    """The option grid of the production HSTU kernel, for rows `[contextual prefix | history | targets | padding]`.

    Every token reads itself. The tokens of the prefix share place 0, the history counts on from there, and all targets
    share the place after its end. A token reads the tokens of smaller places (of any other place if not `causal`), so
    that neither targets nor the tokens of the prefix see each other; but prefix tokens also read everything before the
    targets.

    Args:
      lengths: tokens in the row, prefix and targets included.
      num_tokens: N, the padded length.
      num_targets: how many of the last tokens are targets; None says that there are none.
      max_attention_length: if positive, the largest difference of places that is read.
      contextual_length: tokens in the prefix.
      min_full_attention_length: the last so many places before the targets, and the targets, ignore
        `max_attention_length`.
      causal: whether only smaller places are read.

    Raises:
      ValueError: if a length is negative.

    Source: Zhai et al. 2024, arXiv 2402.17152, section 4.5 (targets that do not see each other); the windows and the
      contextual prefix are options of the authors' released attention operators.
    """
    _check_not_negative(
      max_attention_length=max_attention_length,
      contextual_length=contextual_length,
      min_full_attention_length=min_full_attention_length,
    )
    lengths, num_targets = as_integers("lengths", lengths)[:, None], as_integers("num_targets", num_targets)
    shift = max(contextual_length - 1, 0)
    last = lengths - shift - (0 if num_targets is None else num_targets[:, None])  # [B, 1]
    index = jnp.arange(num_tokens, dtype=jnp.int32)[None]  # [1, N]
    place = jnp.broadcast_to(jnp.maximum(index - shift, 0), (lengths.shape[0], num_tokens))
    place = place if num_targets is None else jnp.minimum(place, last)  # [B, N]

    def first_index_of(x):
      """The first token at place x or later."""
      return jnp.where(x > 0, x + shift, 0)

    window = jnp.int32(max_attention_length or num_tokens)
    if min_full_attention_length:
      window = jnp.where(place >= last - min_full_attention_length, num_tokens, window)
    start_a, end_a = first_index_of(place - window), first_index_of(place)
    start_b, end_b = jnp.zeros_like(place), jnp.zeros_like(place)
    if not causal:
      start_b, end_b = first_index_of(place + 1), _end_of_window(place, window, last, lengths, shift, num_targets)
    if contextual_length:
      is_prefix = (place == 0) & (last > 0)
      start_a = jnp.where(is_prefix, 0, start_a)
      end_a = jnp.where(is_prefix, last + shift, end_a)
      start_b = jnp.where(is_prefix, jnp.maximum(start_b, last + shift), start_b)
    return _without_padding(lengths, start_a, end_a, start_b, end_b)

  @classmethod
  def _one_interval(cls, start: Array, end: Array, is_real: Array) -> IntervalMask:
    """[start, end) for real tokens and nothing for padding."""
    start = jnp.broadcast_to(start, is_real.shape).astype(jnp.int32)
    end = jnp.where(is_real, end, start).astype(jnp.int32)
    empty = jnp.zeros_like(start)
    return _that_reads_itself(cls(start, end, empty, empty, jnp.zeros(is_real.shape, bool)))


def in_spans(spans: Sequence[Int[Array, "..."]], key: Int[Array, "..."]) -> Bool[Array, "..."]:
  """Whether each query may read `key`, given the five `IntervalMask.spans` of it in shapes that broadcast with it."""
  start_a, end_a, start_b, end_b, own = spans
  return ((start_a <= key) & (key < end_a)) | ((start_b <= key) & (key < end_b)) | (key == own)


def sort_by_segment(
  sequence_id: Integer[AnyArray, "B N"], domain_id: Integer[AnyArray, "B N"]
) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
  """Returns `(order, inverse)`: a stable order in which each (sequence, domain) lies side by side, padding last.

  `permute(x, order, inverse)` sorts, `permute(x, inverse, order)` restores. Time order inside a segment is kept.

  >>> order, inverse = sort_by_segment(jnp.array([[1, 1, 1, 0]]), jnp.array([[2, 1, 2, 0]]))
  >>> order.tolist(), inverse.tolist()
  ([[1, 0, 2, 3]], [[1, 0, 2, 3]])
  """
  sequence_id, domain_id = as_integers("sequence_id", sequence_id), as_integers("domain_id", domain_id)
  # Minus one without a sign: 0 becomes the largest number, and all others stay apart.
  unsigned = jnp.uint32 if sequence_id.dtype == jnp.int32 else jnp.uint64
  sequence = jax.lax.bitcast_convert_type(sequence_id, unsigned) - unsigned(1)
  index = jnp.broadcast_to(_index(sequence_id), sequence_id.shape)
  order = jax.lax.sort((sequence, domain_id, index), dimension=1, num_keys=3)[2]  # [B, N]
  return order, jnp.argsort(order, axis=1).astype(jnp.int32)


@jax.custom_vjp
def permute(x: Shaped[Array, "B N ..."], order: Int[Array, "B N"], inverse: Int[Array, "B N"]) -> Array:
  """`x[b, order[b, n], ...]` for every row b, where `order` is a permutation and `inverse` undoes it.

  The result has the shape of x, `[B, N, ...]`. What sets it apart from `jnp.take_along_axis` is the gradient: a gather
  by `inverse`, not a slow scatter.

  >>> permute(jnp.array([[7, 8, 9]]), jnp.array([[2, 0, 1]]), jnp.array([[1, 2, 0]])).tolist()
  [[9, 7, 8]]
  """
  del inverse
  return jax.vmap(lambda row, index: row.at[index].get(mode="promise_in_bounds", unique_indices=True))(x, order)


def _permute_forward(x, order, inverse):
  return permute(x, order, inverse), (order, inverse)


def _permute_backward(residuals, d_out):
  order, inverse = residuals
  return permute(d_out, inverse, order), None, None


permute.defvjp(_permute_forward, _permute_backward)


def _check_not_negative(**lengths: int) -> None:
  for name, length in lengths.items():
    if length < 0:
      raise ValueError(f"{name}={length} must not be negative")


def _index(ids: Array) -> Int[Array, "1 N"]:
  return jnp.arange(ids.shape[1], dtype=jnp.int32)[None]


def _starts_run(ids: Array, position: Array | None) -> Bool[Array, "B N"]:
  first = jnp.ones_like(ids[:, :1], bool)
  change = ids[:, 1:] != ids[:, :-1]
  if position is not None:
    change |= position[:, 1:] <= position[:, :-1]
  return jnp.concatenate([first, change], axis=1)  # [B, N]


def _run_start(starts: Bool[Array, "B N"]) -> Int[Array, "B N"]:
  """Index of the first token of the run that each token belongs to."""
  return jax.lax.cummax(jnp.where(starts, _index(starts), 0), axis=1)


def _end_of_window(place, window, last, lengths, shift, num_targets):
  """One past the last token whose place is at most `place + window`."""
  reach = place + window
  end = jnp.minimum(reach + 1 + shift, lengths)
  if num_targets is None:
    return end
  return jnp.where(place == last, 0, jnp.where(reach >= last, lengths, end))


def _without_padding(lengths, start_a, end_a, start_b, end_b) -> IntervalMask:
  is_real = _index(start_a) < lengths  # [B, N]
  end_a = jnp.where(is_real, jnp.minimum(end_a, lengths), start_a)
  end_b = jnp.where(is_real, jnp.minimum(end_b, lengths), start_b)
  return _that_reads_itself(IntervalMask(start_a, end_a, start_b, end_b, include_self=is_real))


def _that_reads_itself(mask: IntervalMask) -> IntervalMask:
  """Marks a new mask in which each token is read by itself or by none; query i has key i."""
  object.__setattr__(mask, "_reads_itself", True)
  return mask
