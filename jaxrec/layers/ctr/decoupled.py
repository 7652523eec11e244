"""Embeddings of events with separate tables for attention and for representation (DARE).

A single table receives conflicting gradients: attention moves related events closer, representation separates events
that differ, and the gradients of representation dominate. `DecoupledEmbedding` has a table for each role; for
comparison it can also share one table, or use three or four.

Source: DARE, arXiv 2410.02604.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TABLES = ("decoupled", "shared", "three", "four")
PROJECTIONS = ("none", "per_field", "joint")
AGES = ("concat", "add")
SIDES = ("target", "history")
FIELDS = ("item", "category", "age")


class FieldWidths(NamedTuple):
  """Embedding width of each field of an event; 0: the field is not used."""

  item: int
  category: int
  age: int


class Roles(NamedTuple):
  """Vectors of the same events in each role: for attention (q or k) and for representation (u or v)."""

  attention: Float[Array, "... M"]
  representation: Float[Array, "... M"]


class FieldEmbedding(nn.Module):
  """Concatenates vectors of item, category and age, each from its own table; row 0 is padding (for ages: now).

  num_items, num_categories: ids are 1..V and 1..C.
  widths: width of each field.
  max_age: older events have the age `max_age`.
  init_scale: standard deviation of the initial tables.

  >>> import jax
  >>> embedding = FieldEmbedding(num_items=9, num_categories=3, widths=FieldWidths(item=4, category=2, age=1))
  >>> item, category, age = jnp.array([[5, 3]]), jnp.array([[1, 3]]), jnp.array([[2, 1]])
  >>> vectors, params = embedding.init_with_output(jax.random.key(0), item, category, age)
  >>> vectors.shape
  (1, 2, 7)
  """

  num_items: int
  num_categories: int
  widths: FieldWidths
  max_age: int = 200
  init_scale: float = 0.01

  @nn.compact
  def __call__(
    self, item: Int[Array, "..."], category: Int[Array, "..."], age: Int[Array, "..."]
  ) -> Float[Array, "... M"]:
    init = nn.initializers.normal(self.init_scale)
    parts = []
    for name, ids, last in zip(
      FIELDS, (item, category, age), (self.num_items, self.num_categories, self.max_age), strict=True
    ):
      if width := getattr(self.widths, name):
        table = self.param(f"{name}_table", init, (last + 1, width), jnp.float32)
        parts.append(jnp.take(table, ids, axis=0, mode="clip"))
    return jnp.concatenate(parts, axis=-1)  # [..., M]


class DecoupledEmbedding(nn.Module):
  """Vectors for attention and for representation, of candidates (side "target") or of events (side "history").

  num_items, num_categories: ids are 1..V and 1..C; 0 is padding.
  widths: width of each field.
  attention_widths: width of each field in attention, which sets the cost of a search; None: `widths`.
  tables: "decoupled" (DARE): one set of tables for attention and one for representation; "shared" (TWIN): one set for
    both; "three": as "decoupled", but candidates and events have different sets for attention; "four" (TWIN-4E): one
    set per role and side.
  projection: linear maps of the embeddings, one per role and side. "none"; "per_field": one map per field without
    bias, which the published scripts run as "TWIN w/ proj."; "joint": one map of all fields with bias.
  max_age, init_scale: see `FieldEmbedding`.
  attention_init_scale: standard deviation of the initial tables of attention; None: `init_scale`.
  projection_init_scale: standard deviation of the initial maps; None: 1 / sqrt(inputs) (LeCun), as in Flax.
  age_mode: "concat": the age is one more part of a vector, as in the published scripts; "add": it is added to item and
    category, and must be as wide as both together. Joint maps read the sum, maps per field its terms.

  Source: DARE, arXiv 2410.02604, and its baselines; its public code for "three", "joint" and "add".

  Raises:
    ValueError: from `init`, an unknown option, or two widths for one table.

  >>> import jax
  >>> embedding = DecoupledEmbedding(num_items=9, num_categories=3, widths=FieldWidths(4, 2, 1))
  >>> item, category, age = jnp.array([[5, 3]]), jnp.array([[1, 3]]), jnp.array([[2, 1]])
  >>> (k, v), params = embedding.init_with_output(jax.random.key(0), item, category, age, side="history")
  >>> k.shape, v.shape, sorted(params["params"])
  ((1, 2, 7), (1, 2, 7), ['lookup_attention', 'lookup_representation'])
  """

  num_items: int
  num_categories: int
  widths: FieldWidths
  attention_widths: FieldWidths | None = None
  tables: str = "decoupled"
  projection: str = "none"
  max_age: int = 200
  init_scale: float = 0.01
  age_mode: str = "concat"
  attention_init_scale: float | None = None
  projection_init_scale: float | None = None

  def setup(self):
    for name, known in (("tables", TABLES), ("projection", PROJECTIONS), ("age_mode", AGES)):
      if getattr(self, name) not in known:
        raise ValueError(f"self.{name}={getattr(self, name)!r} is not one of {known}")
    attention_widths, widths = by_role = [self._widths_of(role) for role in Roles._fields]
    if self.tables == "shared" and attention_widths != widths:
      raise ValueError(f"{attention_widths=} must be {widths=} if tables='shared': there is one table for both")
    if self.age_mode == "add":
      _check_sums(*by_role)
    self._check_scales()
    pairs = [(role, side) for role in Roles._fields for side in SIDES]
    self.lookup = {self._table(role, side): self._fields(role) for role, side in pairs}
    if self.projection != "none":
      self.projections = {f"{role}_{side}": self._projection(self._widths_of(role)) for role, side in pairs}

  def __call__(
    self, item: Int[Array, "..."], category: Int[Array, "..."], age: Int[Array, "..."], side: str = "history"
  ) -> Roles:
    """Returns the vectors `[..., M]` of both roles; M is the sum of the widths, without that of an added age.

    Args:
      item, category, age: ids of the events, all of one shape.
      side: "target": candidates, whose age is 0; "history": events.

    Raises:
      ValueError: an unknown side.
    """
    if side not in SIDES:
      raise ValueError(f"{side=} is not one of {SIDES}")
    names = Roles(*(self._table(role, side) for role in Roles._fields))
    vectors = {name: self.lookup[name](item, category, age) for name in dict.fromkeys(names)}
    return Roles(*(self._mapped(role, side, vectors[name]) for role, name in names._asdict().items()))

  def attention_vectors(
    self, item: Int[Array, "..."], category: Int[Array, "..."], age: Int[Array, "..."], side: str = "history"
  ) -> Float[Array, "... M"]:
    """Returns the vectors for attention only, which are all that a search reads."""
    return self(item, category, age, side).attention

  def _widths_of(self, role):
    return FieldWidths(*(self.attention_widths if role == "attention" and self.attention_widths else self.widths))

  def _table(self, role, side):
    """The name of the tables of a role on a side."""
    if self.tables == "shared":
      return "shared"
    by_side = self.tables == "four" or (self.tables == "three" and role == "attention")
    return f"{role}_{side}" if by_side else role

  def _fields(self, role):
    is_own = role == "attention" and self.attention_init_scale is not None
    scale = self.attention_init_scale if is_own else self.init_scale
    return FieldEmbedding(self.num_items, self.num_categories, self._widths_of(role), self.max_age, scale)

  def _projection(self, widths):
    if self.projection == "per_field":
      return FieldProjection(widths, self.projection_init_scale)
    width = sum(widths) - (widths.age if self.age_mode == "add" else 0)
    return nn.Dense(width, kernel_init=_map_init(self.projection_init_scale))

  def _check_scales(self):
    if self.tables == "shared" and self.attention_init_scale not in (None, self.init_scale):
      raise ValueError(
        f"{self.attention_init_scale=} must be {self.init_scale=} if tables='shared': there is one table for both roles"
      )
    if self.projection == "none" and self.projection_init_scale is not None:
      raise ValueError(f"{self.projection_init_scale=} must be None if projection='none': there are no maps")

  def _mapped(self, role, side, x):
    """The looked-up fields [..., fields] as the vector of a role."""
    if self.projection == "per_field":
      x = self.projections[f"{role}_{side}"](x)
    if self.age_mode == "add" and self._widths_of(role).age:
      x = jnp.add(*jnp.split(x, 2, axis=-1))  # [..., M]
    return self.projections[f"{role}_{side}"](x) if self.projection == "joint" else x


def _check_sums(*by_role):
  for widths in by_role:
    if widths.age not in (0, widths.item + widths.category):
      raise ValueError(f"{widths=}: with age_mode='add' the age must be as wide as item and category together, or 0")


def _map_init(scale):
  return nn.initializers.lecun_normal() if scale is None else nn.initializers.normal(scale)


class FieldProjection(nn.Module):
  """A square linear map without bias for each field of vectors that concatenate the fields.

  widths: width of each field.
  init_scale: see `DecoupledEmbedding.projection_init_scale`.

  >>> import jax
  >>> y, params = FieldProjection(FieldWidths(4, 2, 0)).init_with_output(jax.random.key(0), jnp.ones((3, 6)))
  >>> y.shape, params["params"]["category"]["kernel"].shape
  ((3, 6), (2, 2))
  """

  widths: FieldWidths
  init_scale: float | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "... M"]) -> Float[Array, "... M"]:
    parts, start, init = [], 0, _map_init(self.init_scale)
    for name, width in zip(FIELDS, self.widths, strict=True):
      if width:
        parts.append(nn.Dense(width, use_bias=False, kernel_init=init, name=name)(x[..., start : start + width]))
      start += width
    return jnp.concatenate(parts, axis=-1)  # [..., M]
