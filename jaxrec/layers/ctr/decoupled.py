"""Embeddings of events with separate tables for attention and for representation (DARE).

A single table receives conflicting gradients: attention moves related events closer, representation separates events
that differ, and the gradients of representation dominate. `DecoupledEmbedding` has a table for each role; for
comparison it can also share one table, or use four.

Source: DARE, arXiv 2410.02604.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TABLES = ("decoupled", "shared", "four")
PROJECTIONS = ("none", "per_field", "joint")
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
        table = self.param(f"{name}_table", init, (last + 1, width))
        parts.append(jnp.take(table, ids, axis=0, mode="clip"))
    return jnp.concatenate(parts, axis=-1)  # [..., M]


class DecoupledEmbedding(nn.Module):
  """Vectors for attention and for representation, of candidates (side "target") or of events (side "history").

  num_items, num_categories: ids are 1..V and 1..C; 0 is padding.
  widths: width of each field.
  attention_widths: width of each field in attention, which sets the cost of a search; None: `widths`.
  tables: "decoupled" (DARE): one set of tables for attention and one for representation; "shared" (TWIN): one set for
    both; "four" (TWIN-4E): one set per role and side.
  projection: linear maps of the embeddings, one per role and side. "none"; "per_field": one map per field without
    bias, which the published scripts run as "TWIN w/ proj."; "joint": one map of all fields with bias.
  max_age, init_scale: see `FieldEmbedding`.

  Source: DARE, arXiv 2410.02604, and its baselines.

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

  def setup(self):
    if self.tables not in TABLES:
      raise ValueError(f"{self.tables=} is not one of {TABLES}")
    if self.projection not in PROJECTIONS:
      raise ValueError(f"{self.projection=} is not one of {PROJECTIONS}")
    widths, attention_widths = FieldWidths(*self.widths), FieldWidths(*(self.attention_widths or self.widths))
    if self.tables == "shared" and attention_widths != widths:
      raise ValueError(f"{attention_widths=} must be {widths=} if tables='shared': there is one table for both")
    by_role = {"attention": attention_widths, "representation": widths}
    if self.tables == "shared":
      self.lookup = {"shared": self._fields(widths)}
    elif self.tables == "decoupled":
      self.lookup = {role: self._fields(by_role[role]) for role in by_role}
    else:
      self.lookup = {f"{role}_{side}": self._fields(by_role[role]) for role in by_role for side in SIDES}
    if self.projection != "none":
      self.projections = {f"{role}_{side}": self._projection(by_role[role]) for role in by_role for side in SIDES}

  def __call__(
    self, item: Int[Array, "..."], category: Int[Array, "..."], age: Int[Array, "..."], side: str = "history"
  ) -> Roles:
    """Returns the vectors `[..., M]` of both roles; M is the sum of the widths.

    Args:
      item, category, age: ids of the events, all of one shape.
      side: "target": candidates, whose age is 0; "history": events.

    Raises:
      ValueError: an unknown side.
    """
    if side not in SIDES:
      raise ValueError(f"{side=} is not one of {SIDES}")
    if self.tables == "shared":
      roles = Roles(*2 * (self.lookup["shared"](item, category, age),))
    else:
      suffix = f"_{side}" if self.tables == "four" else ""
      roles = Roles(*(self.lookup[f"{role}{suffix}"](item, category, age) for role in Roles._fields))
    if self.projection == "none":
      return roles
    return Roles(*(self.projections[f"{role}_{side}"](x) for role, x in zip(Roles._fields, roles, strict=True)))

  def attention_vectors(
    self, item: Int[Array, "..."], category: Int[Array, "..."], age: Int[Array, "..."], side: str = "history"
  ) -> Float[Array, "... M"]:
    """Returns the vectors for attention only, which are all that a search reads."""
    return self(item, category, age, side).attention

  def _fields(self, widths):
    return FieldEmbedding(self.num_items, self.num_categories, widths, self.max_age, self.init_scale)

  def _projection(self, widths):
    return FieldProjection(widths) if self.projection == "per_field" else nn.Dense(sum(widths))


class FieldProjection(nn.Module):
  """A square linear map without bias for each field of vectors that concatenate the fields.

  >>> import jax
  >>> y, params = FieldProjection(FieldWidths(4, 2, 0)).init_with_output(jax.random.key(0), jnp.ones((3, 6)))
  >>> y.shape, params["params"]["category"]["kernel"].shape
  ((3, 6), (2, 2))
  """

  widths: FieldWidths

  @nn.compact
  def __call__(self, x: Float[Array, "... M"]) -> Float[Array, "... M"]:
    parts, start = [], 0
    for name, width in zip(FIELDS, self.widths, strict=True):
      if width:
        parts.append(nn.Dense(width, use_bias=False, name=name)(x[..., start : start + width]))
      start += width
    return jnp.concatenate(parts, axis=-1)  # [..., M]
