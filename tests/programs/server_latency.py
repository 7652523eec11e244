"""Measures a server on this machine: times of answers and requests a second, for cold and warm users.

    python tests/programs/server_latency.py --workdir=runs/ml1m_hstu --requests=2000 --clients=1,8,64
    python tests/programs/server_latency.py --workdir=runs/ml1m_hstu --state_bytes=1000000000

Starts `jaxrec serve` and runs clients that each send a request, wait for the answer, and send the next one.

cold: the body has a history that the server has never seen, of --length events.
warm: a user of the data who has been asked for before. With --state_bytes, which goes to the server as every other
  unknown flag does, the state of such a user is kept.
returning: as warm, but before each request a new event is posted, which is not timed.

Prints a JSON line for each kind and number of clients: the 50th, 95th and 99th percentile of milliseconds, requests a
second, requests in a batch of the model, and the share of the time in which the model ran. Clients and server share the
machine.
"""

import argparse
import asyncio
import itertools
import json
import re
import time

import httpx
import numpy as np
from server_process import running_server

KINDS = "cold", "warm", "returning"


class Client:
  """One connection that is kept alive; without a library, whose time would count."""

  def __init__(self, port):
    self.port = port

  async def __aenter__(self):
    self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
    return self

  async def __aexit__(self, *_):
    self.writer.close()

  async def post(self, path, body):
    """Returns the body of the answer.

    Raises:
      RuntimeError: another status than 200.
    """
    content = json.dumps(body).encode()
    head = (
      f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    self.writer.write(head.encode() + content)
    head = await self.reader.readuntil(b"\r\n\r\n")
    answer = await self.reader.readexactly(int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1]))
    if b" 200 " not in head.split(b"\r\n")[0]:
      raise RuntimeError(f"{head.decode()}{answer.decode()}")
    return answer


class Requests:
  """The bodies of requests of each kind."""

  def __init__(self, base, length, seed):
    about = httpx.get(base + "/about").json()
    items = httpx.get(base + "/items", params={"query": "", "limit": 100}).json()
    self.items, self.users = [item["item"] for item in items], about["users"]
    self.length, self.rng, self.clock = length, np.random.default_rng(seed), itertools.count(int(time.time()))

  def body(self, kind):
    if kind == "cold":
      chosen = self.rng.choice(self.items, self.length)
      return {"history": [[str(item), next(self.clock)] for item in chosen]}
    return {"user": self.users[self.rng.integers(len(self.users))]}

  async def before(self, kind, client, body):
    """Does what is not timed."""
    if kind == "returning":
      event = [str(self.rng.choice(self.items)), next(self.clock)]
      await client.post("/events", {"user": body["user"], "events": [event]})


async def drive(port, requests, kind, clients, total):
  """Returns the seconds of each request, and those of all."""
  seconds = []

  async def one(count):
    async with Client(port) as client:
      for _ in range(count):
        body = requests.body(kind)
        await requests.before(kind, client, body)
        start = time.perf_counter()
        await client.post("/recommend", body)
        seconds.append(time.perf_counter() - start)

  start = time.perf_counter()
  await asyncio.gather(*(one(max(1, total // clients)) for _ in range(clients)))
  return np.array(seconds), time.perf_counter() - start


def counters(base):
  """Returns the sums and counts of the server's batches."""
  text = httpx.get(base + "/metrics").text
  names = ("batch_requests_sum", "batch_requests_count", "batch_seconds_sum")
  return np.array([float(re.search(rf"^jaxrec_{name} (\S+)", text, re.MULTILINE)[1]) for name in names])


def measure(port, base, options):
  """Yields a row of numbers for each kind and number of clients."""
  requests = Requests(base, options.length, options.seed)
  for kind in options.kinds:
    for clients in options.clients:
      asyncio.run(drive(port, requests, kind, clients, max(clients, len(requests.users))))  # Not counted.
      before = counters(base)
      seconds, whole = asyncio.run(drive(port, requests, kind, clients, options.requests))
      asked, batches, model = counters(base) - before
      p50, p95, p99 = np.percentile(1000 * seconds, [50, 95, 99])
      yield {
        "kind": kind, "clients": clients, "requests": len(seconds), "p50_ms": round(p50, 2), "p95_ms": round(p95, 2),
        "p99_ms": round(p99, 2), "requests_a_second": round(len(seconds) / whole, 1),
        "requests_in_a_batch": round(asked / batches, 2), "share_in_the_model": round(model / whole, 3),
      }  # fmt: skip


def main():
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("--requests", type=int, default=2000, help="for each kind and number of clients")
  parser.add_argument("--clients", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64])
  parser.add_argument("--kinds", type=lambda text: text.split(","), default=["cold", "warm"])
  parser.add_argument("--length", type=int, default=150, help="events of a cold history")
  parser.add_argument("--port", type=int, default=8766)
  parser.add_argument("--seed", type=int, default=0)
  options, flags = parser.parse_known_args()
  if unknown := set(options.kinds) - set(KINDS):
    parser.error(f"--kinds has {sorted(unknown)}; there are {KINDS}")
  with running_server(options.port, flags) as (process, base):
    for row in measure(options.port, base, options):
      print(json.dumps(row), flush=True)
    process.terminate()
    process.wait(60)


if __name__ == "__main__":
  main()
