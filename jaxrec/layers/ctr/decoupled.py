"""Embeddings of events with different tables for attention and for representation.

One table that serves both is pulled two ways: attention wants events near each other that go together, representation
wants events apart that mean different things; and the second pull is the stronger one. `DecoupledEmbedding` has the
tables apart, and, to compare with, together or split further.

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
  """How many numbers each field of an event has; 0: the field is not used."""

  item: int
  category: int
  age: int


class Roles(NamedTuple):
  """The vectors of the same events for attention (q or k) and for representation (u or v)."""

  attention: Float[Array, "... M"]
  representation: Float[Array, "... M"]


class FieldEmbedding(nn.Module):
  """The vectors of item, category and age side by side, each from its own table, row 0 for padding (or age 0: now).

  max_age: events that are older have the age `max_age`.
  init_scale: standard deviation of the tables at the start.
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
  """Vectors of events for attention and for representation; of candidates ("target") or of a history ("history").

  num_items, num_categories: ids are 1..V and 1..C; 0 is padding.
  widths: of the fields.
  attention_widths: of the fields in attention; None: as `widths`. Search costs what these are wide.
  tables: "decoupled" (DARE): one set of tables for attention and one for representation; "shared" (TWIN): one for
    both; "four" (TWIN-4E): in each role one for candidates and one for histories.
  projection: linear maps of the looked-up vectors, different for each role and side. "none"; "per_field": without a
    bias, each field by itself, which the published scripts run as "TWIN w/ proj."; "joint": with a bias, all fields
    together.

  Source: DARE, arXiv 2410.02604, and its baselines.
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
      raise ValueError(f"{attention_widths=} must be {widths=} where tables='shared': there is one table for both")
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
    """The vectors `[..., M]` of both roles, M being the sum of the widths.

    Args:
      item, category, age: ids of the events; all of one shape.
      side: "target": candidates, whose age is 0; "history": events.

    Raises:
      ValueError: another side.
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
    """The vectors for attention alone: all that a search reads."""
    return self(item, category, age, side).attention

  def _fields(self, widths):
    return FieldEmbedding(self.num_items, self.num_categories, widths, self.max_age, self.init_scale)

  def _projection(self, widths):
    return FieldProjection(widths) if self.projection == "per_field" else nn.Dense(sum(widths))


class FieldProjection(nn.Module):
  """A square linear map, without a bias, of each field of vectors that have the fields side by side."""

  widths: FieldWidths

  @nn.compact
  def __call__(self, x: Float[Array, "... M"]) -> Float[Array, "... M"]:
    parts, start = [], 0
    for name, width in zip(FIELDS, self.widths, strict=True):
      if width:
        parts.append(nn.Dense(width, use_bias=False, name=name)(x[..., start : start + width]))
      start += width
    return jnp.concatenate(parts, axis=-1)  # [..., M]
