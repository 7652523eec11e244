"""Times one more event of a returning user, with and without the user's state; run it by hand.

    python tests/programs/returning_user.py --length=2048

Prints seconds (wall, processor) per request, the bytes of a state, and the largest difference of the query vectors.
"""

import argparse
import statistics
import time

import jax
import numpy as np

import jaxrec
from jaxrec.serving.incremental_recommender import with_states

DAY = 86_400


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--length", type=int, default=2048)
  parser.add_argument("--requests", type=int, default=10)
  options = parser.parse_args()
  made = recommender(options.length + options.requests)
  kept = with_states(made, 1 << 30)
  items = np.random.default_rng(0).integers(1, made.data.num_items + 1, options.length + options.requests)
  events = [(int(item), DAY * n) for n, item in enumerate(items)]
  cold = timed(lambda: kept.user_vectors(histories={"eve": events[: options.length - 1]}))
  cold = timed(lambda: kept.user_vectors(histories={"dan": events[: options.length - 1]}))
  kept.user_vectors(histories={"eve": events[: options.length]})
  made.user_vectors(histories=[events[: options.length]])
  times, difference = {"with": [], "without": [], "model, with": [], "model, without": []}, 0.0
  for n in range(options.length + 1, options.length + options.requests + 1):
    found, expected = [], []
    times["with"].append(timed(lambda n=n, out=found: out.append(kept.user_vectors(histories={"eve": events[:n]}))))
    times["without"].append(timed(lambda n=n, out=expected: out.append(made.user_vectors(histories=[events[:n]]))))
    difference = max(difference, float(np.abs(found[0] - expected[0]).max()))
  for _, batch in made._batches(made._histories(None, {"eve": events}), None, None, None):
    times["model, without"] = [timed(lambda b=batch: np.asarray(made._queries(b, [None]))) for _ in range(5)]
  state, one = kept.states.get("dan").state, np.array([1])
  times["model, with"] = [
    timed(lambda: kept._incremental.query(kept._incremental.observe(state, one, one, 9**9 * one), one, 9**9 * one))
    for _ in range(6)
  ][1:]
  for name, pairs in times.items():
    print(f"{name}: " + ", ".join(f"{statistics.median(x):.4f}" for x in zip(*pairs, strict=True)))
  print(f"first request, no state: {cold[0]:.3f}, {cold[1]:.3f}")
  print(f"bytes of a state: {kept.states.counters.bytes // kept.states.counters.users:,}; difference {difference:.1e}")


def recommender(most):
  data = jaxrec.synthetic_data(num_users=50, num_items=3696)
  model = jaxrec.HSTU(
    num_items=data.num_items, width=64, num_layers=2, num_heads=2, head_width=32, value_width=32,
    max_positions=most, attention_length=most,
  )  # fmt: skip
  batch = jaxrec.next_item_batch(np.ones((1, 4), np.int32))
  config = jaxrec.default_config()
  config.data.max_length = most
  return jaxrec.Recommender(model, jax.jit(model.init)(jax.random.key(0), batch)["params"], data, config)


def timed(function):
  start = time.perf_counter(), time.process_time()
  jax.block_until_ready(function())
  return time.perf_counter() - start[0], time.process_time() - start[1]


if __name__ == "__main__":
  main()
