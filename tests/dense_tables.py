"""A dense reference implementation of tables in NumPy, and a problem of several tables to compare it with ours.

The loss of an id is half the squared distance of its vector from a target, times 1 / 8: its gradient is the difference.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.embedding import RowAdagrad, RowAdamW, RowSGD, Table, Tables

RATE = 0.1
NORMAL = jax.nn.initializers.normal(1.0)


def problem_tables(placement="sharded", names=("item", "user", "word", "shop", "tag"), initializer=NORMAL):
  """Returns two tables of one kind and three of other kinds; 8 devices divide none of their sizes."""
  row_adamw, adamw = RowAdamW(RATE, weight_decay=0.1), RowAdamW(RATE, b2=0.99, second_moment="element")
  return {
    name: Table(num_rows, 8, optimizer=optimizer, padding_id=padding, placement=placement, initializer=initializer)
    for name, num_rows, optimizer, padding in [
      ("item", 37, RowAdagrad(RATE), 0),
      ("user", 21, RowAdagrad(RATE), 0),
      ("word", 19, row_adamw, None),
      ("shop", 13, adamw, 0),
      ("tag", 11, RowSGD(lambda step: RATE / (step + 1), weight_decay=0.1), 0),
    ]
    if name in names
  }


def batches(num_steps=4, tables=None, leave_out=True, num_rows=6):
  """Returns ids by Zipf's law, most of them duplicates; batch 1 is all padding, and batch 2 leaves a table out."""
  rng = np.random.default_rng(0)
  tables, made = tables or problem_tables(), []
  for step in range(num_steps):
    shapes = {"item": (5,), "user": (), "word": (3,), "shop": (2,), "tag": ()}
    ids = {
      name: zipf(rng, (num_rows, *shape), tables[name].num_rows) for name, shape in shapes.items() if name in tables
    }
    if step == 1:
      ids = {name: np.full_like(x, -1 if name == "word" else 0) for name, x in ids.items()}
    if step == 2 and leave_out:
      del ids["shop"]
    ids["item"] = {"seen": ids["item"], "next": ids["item"][:, -1][::-1].copy()}
    made.append((ids, jax.tree.map(lambda x: rng.normal(size=(*x.shape, 8)).astype(np.float32), ids)))
  return made


def zipf(rng, shape, num_rows):
  """Draws ids 0..num_rows - 1, the first ones often."""
  return np.minimum(rng.zipf(1.3, size=shape) - 1, num_rows - 1).astype(np.int32)


def loss(vectors, ids, targets):
  """Returns the loss of all ids; padding adds no gradient."""
  parts = jax.tree.map(lambda v, x, t: jnp.sum((v - t) ** 2 * (x >= 0)[..., None]) / 16, vectors, ids, targets)
  return sum(jax.tree.leaves(parts))


def step(tables, state, ids, targets):
  """Makes one step of `Tables`; returns the new state and the counts of the lookup."""
  rows, plan = tables.lookup(state, ids)
  gradient = jax.grad(lambda rows: loss(tables.vectors(rows, plan), ids, targets))(rows)
  return tables.update(state, plan, gradient), plan.counts


def train(tables, made, key=0):
  """Returns the state after one step per batch, and the counts of each."""
  one_step = jax.jit(lambda state, ids, targets: step(tables, state, ids, targets), donate_argnums=0)
  state, counts = tables.init(jax.random.key(key)), []
  for ids, targets in made:
    state, count = one_step(state, ids, targets)
    counts.append(jax.tree.map(int, count))
  return state, counts


def logical(tables, state):
  """Returns arrays by (table, slot), in the order of ids, without padding rows."""
  saved = jax.device_get(jax.jit(tables.to_logical)(state))["tables"]
  return {(n, slot): x[: tables.tables[n].num_rows] for n, slots in saved.items() for slot, x in slots.items()}


@dataclasses.dataclass
class Dense:
  """Tables as dense float64 arrays by (table, slot)."""

  tables: dict[str, Table]
  arrays: dict
  count: int = 0

  @classmethod
  def like(cls, tables: Tables, key=0):
    """Returns dense tables with the initial rows of `tables`."""
    initial = logical(tables, tables.init(jax.random.key(key)))
    return cls(tables.tables, {name: x.astype(np.float64) for name, x in initial.items()})

  def train(self, made):
    """Makes one step per batch; returns the arrays."""
    for ids, targets in made:
      for name, tree in ids.items():
        self.step(name, jax.tree.leaves(tree), jax.tree.leaves(targets[name]))
      self.count += 1
    return self.arrays

  def step(self, name, ids, targets):
    """Sums a dense gradient, and applies the optimizer to the rows that were looked up."""
    table, rows = self.tables[name], self.arrays[name, "rows"]
    gradient, touched = np.zeros_like(rows), np.zeros(len(rows), bool)
    for x, target in zip(ids, targets, strict=True):
      is_row = (x >= 0) & (x < table.num_rows) & (x != (-1 if table.padding_id is None else table.padding_id))
      np.add.at(gradient, x[is_row], (rows[x[is_row]] - target[is_row]) / 8)
      touched[x[is_row]] = True
    new = self.rule(name, table.optimizer, rows, gradient)
    for slot, value in new.items():
      self.arrays[name, slot] = np.where(touched.reshape(-1, *[1] * (value.ndim - 1)), value, self.arrays[name, slot])

  def rule(self, name, optimizer, w, g):
    """Returns new arrays, for all rows."""
    match optimizer:
      case RowSGD():
        return {"rows": w - optimizer.learning_rate(self.count) * (g + optimizer.weight_decay * w)}
      case RowAdagrad():
        total = self.arrays[name, "sum_of_squares"] + np.mean(g**2, axis=1)
        return {"rows": w - RATE * g / (np.sqrt(total) + 1e-8)[:, None], "sum_of_squares": total}
      case RowAdamW():
        square = np.mean(g**2, axis=1) if optimizer.second_moment == "row" else g**2
        first = 0.9 * self.arrays[name, "first_moment"] + 0.1 * g
        second = optimizer.b2 * self.arrays[name, "second_moment"] + (1 - optimizer.b2) * square
        root = np.sqrt(second / (1 - optimizer.b2 ** (self.count + 1))) + 1e-8
        move = first / (1 - 0.9 ** (self.count + 1)) / root.reshape(len(w), -1)
        return {
          "rows": w - RATE * (move + optimizer.weight_decay * w), "first_moment": first, "second_moment": second
        }  # fmt: skip


def from_zeros(tables):
  """Returns dense tables whose arrays are all zeros."""
  shapes = {(n, slot): shape for n, table in tables.items() for slot, (shape, _) in table.slots.items()}
  shapes |= {(n, "rows"): (table.width,) for n, table in tables.items()}
  return Dense(tables, {(n, slot): np.zeros((tables[n].num_rows, *shape)) for (n, slot), shape in shapes.items()})


def largest_difference(arrays, expected):
  """Returns the largest difference over all arrays of two dicts with the same names."""
  assert arrays.keys() == expected.keys()
  return max(float(np.abs(arrays[name].astype(np.float64) - expected[name]).max()) for name in expected)
