"""A program for 8 simulated devices: training steps and retrieval over catalogues sharded over 1 and 8 of them.

Prints a JSON line. Started by `test_sharded_catalogue.py`, because the number of devices is set when a process starts.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrec.embedding import RowAdamW, Table, Tables
from jaxrec.embedding.rounding import join
from jaxrec.embedding.row_optimizers import full_mean
from jaxrec.evaluation.catalogue import Catalogue
from jaxrec.layers.norm import l2_normalize
from jaxrec.objectives import item_losses
from jaxrec.objectives.sharded_softmax import full_softmax
from jaxrec.parallel.row_shards import RowShards

WIDTH, STEPS, TEMPERATURE, CHUNK = 4, 2, 0.7, 2
ITEMS = {"item": 19, "half": 11, "small": 5, "sampled": 9}  # each with a row of padding and one of a mask token
OPTIMIZER = RowAdamW(0.1, weight_decay=0.1)
INITIAL = jax.nn.initializers.normal(1.0)


def the_tables(num_devices, items=ITEMS):
  """Returns tables on some devices; `item` and `sampled` share an array, `half` is bfloat16, `small` is replicated."""
  wide = {"optimizer": OPTIMIZER, "initializer": INITIAL, "placement": "sharded"}
  half = {"dtype": jnp.bfloat16, "rounding": "float32"}
  extra = {"half": half, "small": {"placement": "replicated"}}
  tables = {name: Table(size + 2, WIDTH, **wide | extra.get(name, {})) for name, size in items.items()}
  return Tables(tables, Mesh(np.array(jax.devices()[:num_devices]), ("data",)))


def batch(step):
  """Returns ids of 6 rows of 3 positions, many of them equal, the mask token and padding among the inputs."""
  rng = np.random.default_rng(step)
  ids = {}
  for name, size in ITEMS.items():
    inputs = rng.integers(0, min(size, 7) + 1, (6, 3))
    inputs[0, :] = size + 1, 0, size
    ids[name] = {"input": inputs, "positive": rng.integers(1, size + 1, (6, 3))}
  ids["sampled"]["negative"] = rng.integers(1, ITEMS["sampled"] + 1, 5)
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), ids)


def scored(name, rows):
  return l2_normalize(rows) if name == "half" else rows


def query_of(inputs, weight):
  return jnp.tanh(inputs @ weight)


def sampled_loss(query, vectors, ids):
  positive, negative = (query * vectors["positive"]).sum(axis=-1), vectors["negative"]
  scores = positive, item_losses.scores_of_vectors(query, negative)
  logits = item_losses.sampled_logits(*scores, ids["positive"], ids["negative"], TEMPERATURE)
  return item_losses.sampled_softmax(*logits)


def step(tables, items, state, weight, ids):
  """Returns the new state and weight, and the losses by table `[6, 3]`."""
  rows, plan = tables.lookup(state, ids)
  catalogues = {name: tables.catalogue(state, name) for name in items if name != "sampled"}

  def total(rows, catalogues, weight):
    vectors, values = tables.vectors(rows, plan), {}
    for name, size in items.items():
      query = query_of(vectors[name]["input"], weight)
      if name == "sampled":
        values[name] = sampled_loss(query, vectors[name], ids[name])
        continue
      positive, catalogue = (scored(name, x) for x in (vectors[name]["positive"], catalogues[name]))
      values[name] = full_softmax(shards_of(tables, name), query, positive, catalogue, size, TEMPERATURE, CHUNK)
    return sum(value.mean() for value in values.values()), values

  (d_rows, d_catalogues, d_weight), values = jax.grad(total, (0, 1, 2), has_aux=True)(rows, catalogues, weight)
  gradients = tables.collect(state, plan, d_rows)
  for name, gradient in d_catalogues.items():
    gradients = tables.add_catalogue(gradients, name, gradient, items[name])
  return tables.apply(state, gradients), weight - 0.1 * d_weight, values


def dense_step(number, dense, weight, ids):
  """The same with tables as arrays on one device: gradients of all of them, and an update where a row had a part."""

  def read(name, rows):
    return rows.astype(jnp.bfloat16).astype(jnp.float32) if name == "half" else rows

  def total(whole, weight):
    values = {}
    for name, rows in whole.items():
      vectors = {k: jnp.where(i[..., None] > 0, rows[i], 0) for k, i in ids[name].items()}
      query = query_of(vectors["input"], weight)
      if name == "sampled":
        values[name] = sampled_loss(query, vectors, ids[name])
      else:
        candidates = scored(name, rows)[: ITEMS[name] + 1]
        values[name] = item_losses.full_softmax(query, candidates, ids[name]["positive"], TEMPERATURE)
    return sum(value.mean() for value in values.values()), values

  whole = {name: read(name, rows) for name, (rows, _) in dense.items()}
  (d_whole, d_weight), values = jax.grad(total, (0, 1), has_aux=True)(whole, weight)
  new = {name: dense_update(name, number, *dense[name], d_whole[name], ids[name]) for name in dense}
  return new, weight - 0.1 * d_weight, values


def dense_update(name, number, rows, slots, gradient, ids):
  used = jnp.zeros(rows.shape[0], bool)
  used = used.at[jnp.concatenate([x.reshape(-1) for x in ids.values()])].set(True)
  if name != "sampled":
    used = used.at[: ITEMS[name] + 1].set(True)
  used = used.at[0].set(False)
  new = OPTIMIZER.update(number, rows, slots, gradient, full_mean)
  choose = lambda new, old: jnp.where(used.reshape(-1, *[1] * (old.ndim - 1)), new, old)  # noqa: E731
  return jax.tree.map(choose, new, (rows, slots))


def logical(tables, state):
  """Returns, by table, float32 rows and slots in the order of ids."""
  result = {}
  for name, arrays in tables.to_logical(state)["tables"].items():
    arrays = {kind: jnp.asarray(np.asarray(x)[: ITEMS[name] + 2]) for kind, x in arrays.items()}
    rows, remainder = arrays.pop("rows"), arrays.pop("remainder", None)
    result[name] = (rows if remainder is None else join(rows, remainder)), arrays
  return result


def numbers(tree):
  return jax.tree.map(lambda x: np.asarray(x).tolist(), tree)


def training(num_devices):
  """Returns losses of each step, and weight, rows and slots after the last one."""
  tables, weight, values = the_tables(num_devices), jnp.eye(WIDTH), []
  state = tables.init(jax.random.key(0))
  jitted = jax.jit(lambda *args: step(tables, ITEMS, *args))
  for number in range(STEPS):
    state, weight, value = jitted(state, weight, batch(number))
    values.append(value)
  return numbers([values, weight, logical(tables, state)])


def dense_training():
  tables, weight, values = the_tables(1), jnp.eye(WIDTH), []
  dense, jitted = logical(tables, tables.init(jax.random.key(0))), jax.jit(dense_step)
  for number in range(STEPS):
    dense, weight, value = jitted(jnp.int32(number), dense, weight, batch(number))
    values.append(value)
  return numbers([values, weight, dense])


def retrieval_problem(kind):
  """Returns rows of 2,101 items, two rows more, and arguments; "ties": integers, so that many scores are equal."""
  rng, num_items, num_rows = np.random.default_rng(3), 2101, 6
  draw = (lambda *s: rng.integers(-2, 3, s)) if kind == "ties" else (lambda *s: rng.normal(size=s))
  rows, queries = (draw(n, WIDTH).astype(np.float32) for n in (num_items + 3, num_rows))
  rows[0], rows[num_items + 1 :] = 50 * queries[0], 50 * queries[1]  # No candidates, but they would come first.
  target = rng.integers(1, num_items + 1, num_rows).astype(np.int32)
  target[:2] = 0, num_items
  seen = rng.integers(0, num_items + 1, (num_rows, 40)).astype(np.int32)
  seen[2, 5:9] = target[2]
  seen[:, :5] = np.argsort(-queries @ rows[1 : num_items + 1].T, axis=1)[:, :5] + 1
  domain = {"item_domain": rng.integers(0, 3, num_items + 1), "domain": rng.integers(0, 3, num_rows)}
  return num_items, rows, queries, target, seen, domain


def retrieved(kind, num_devices):
  """Returns ranks and best items of a sharded catalogue, or of one array where `num_devices` is None."""
  num_items, rows, queries, target, seen, domain = retrieval_problem(kind)
  of_target = {"item_domain": domain["item_domain"], "target_domain": domain["domain"]}
  if num_devices is None:
    catalogue = Catalogue(rows[: num_items + 1])
  else:
    tables = Tables(
      {"first": Table(9, WIDTH, placement="sharded"), "item": Table(num_items + 3, WIDTH, placement="sharded")},
      Mesh(np.array(jax.devices()[:num_devices]), ("data",)),
    )
    state = tables.init(jax.random.key(0))
    saved = tables.to_logical(state)
    missing = saved["tables"]["item"]["rows"].shape[0] - rows.shape[0]
    saved["tables"]["item"]["rows"] = np.pad(rows, ((0, missing), (0, 0)), constant_values=9.0)
    state = jax.device_put(tables.from_logical(saved), tables.shardings())
    catalogue = Catalogue(tables.catalogue(state, "item"), num_items, shards_of(tables, "item"))
  with_all = {"seen_items": seen, **of_target, "seen_target": "remove", "chunk_size": 128}
  _, best = catalogue.top_k(queries, 7, seen_items=seen, **domain, chunk_size=128)
  _, pooled = catalogue.top_k(queries, 7)
  negatives = np.stack([np.arange(1, 21)] * len(queries)) % num_items + 1
  return numbers(
    {
      "ranks": catalogue.target_ranks(queries, target),
      "ranks among samples": catalogue.sampled_target_ranks(queries, target, negatives),
      "ranks of a domain without seen": catalogue.target_ranks(queries, target, **with_all),
      "best": pooled,
      "best of a domain without seen": best,
    }
  )


def shards_of(tables, name):
  return RowShards(tables.mesh, tables.axes_of(name))


def collectives(num_items):
  """Returns the shapes that a step and both retrievals send between 8 devices, by operation."""
  items = {"item": num_items, "half": num_items, "small": 5, "sampled": num_items}
  tables = the_tables(8, items)
  state, ids = tables.abstract_state(), batch(0)
  program = jax.jit(lambda *args: step(tables, items, *args)).lower(state, jnp.eye(WIDTH), ids)

  def retrieve(state, queries, target, seen, item_domain):
    catalogue = Catalogue(tables.catalogue(state, "item"), num_items, shards_of(tables, "item"))
    options = {"seen_items": seen, "item_domain": item_domain}
    ranks = catalogue.target_ranks(queries, target, target_domain=target, **options)
    return ranks, catalogue.top_k(queries, 7, domain=target, **options)

  shapes = ((6, WIDTH), jnp.float32), ((6,), jnp.int32), ((6, 4), jnp.int32), ((num_items + 1,), jnp.int32)
  second = jax.jit(retrieve).lower(state, *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
  pattern = re.compile(r"= (\S.*?) (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)(?:-start)?\(")
  text = program.compile().as_text() + second.compile().as_text()
  return sorted(f"{name} {re.sub('{.*?}', '', shape)}" for shape, name in pattern.findall(text))


def main():
  assert jax.device_count() == 8
  results = {"dense": dense_training()}
  results |= {f"training {n}": training(n) for n in (1, 8)}
  for kind in ("floats", "ties"):
    results |= {f"{kind} {n}": retrieved(kind, n) for n in (None, 1, 8)}
  results |= {f"collectives {num_items}": collectives(num_items) for num_items in (1001, 3001)}
  print(json.dumps(results))


if __name__ == "__main__":
  main()
