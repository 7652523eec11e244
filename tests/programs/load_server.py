"""Sends many requests, good and bad, to a server on this machine; checks that each gets the answer that it deserves.

    python tests/programs/load_server.py --workdir=runs/shop --requests=20000 --clients=16

Starts `jaxrec serve`, mixes valid requests with malformed JSON, wrong types, unknown items, empty and long histories,
oversized bodies, slow clients and disconnects, touches the checkpoints in the middle so that the server reloads, and
ends it with SIGTERM while requests are in progress. Prints counts by kind and status, latencies, memory and the
server's own counters. Exits with 1 if an answer is not as expected. Run it by hand.
"""

import argparse
import asyncio
import collections
import json
import os
import pathlib
import random
import signal
import sys
import time

import httpx
import numpy as np
from server_process import running_server

LARGEST = 1 << 20


class Load:
  """The clients, and what they have seen."""

  def __init__(self, options, about):
    self.options, self.about = options, about
    self.random = random.Random(options.seed)
    self.seen, self.wrong = collections.Counter(), []
    self.seconds = collections.defaultdict(list)
    self.kinds = {
      "user": (60, {200}), "stranger": (20, {200}), "score": (5, {200}), "post": (6, {200}), "empty": (2, {200}),
      "unknown_items": (2, {200}), "long": (0.3, {200}), "json": (2, {400, 422}), "types": (2, {422}),
      "nobody": (1, {404}), "oversized": (0.3, {413}), "slow": (0.2, {200, 408}), "disconnect": (0.5, {None}),
    }  # fmt: skip

  async def run(self, client, count):
    names, weights = list(self.kinds), [weight for weight, _ in self.kinds.values()]
    for _ in range(count):
      kind = self.random.choices(names, weights)[0]
      start = time.perf_counter()
      try:
        status = await getattr(self, kind)(client)
      except httpx.HTTPError as error:
        status = type(error).__name__
      self.seconds[kind].append(time.perf_counter() - start)
      self.seen[kind, status] += 1
      if status not in self.kinds[kind][1] | {429}:
        self.wrong.append((kind, status))

  async def send(self, client, path, body):
    return (await client.post(path, json=body)).status_code

  def history(self, length):
    return [[self.random.choice(self.about["items"]), 1_700_000_000 + 60 * n] for n in range(length)]

  async def user(self, client):
    return await self.send(client, "/recommend", {"user": self.random.choice(self.about["users"])})

  async def stranger(self, client):
    body = {"history": self.history(self.random.randint(1, 60)), "k": self.random.choice([5, 10, 50])}
    return await self.send(client, "/recommend", body)

  async def score(self, client):
    body = {"history": self.history(5), "items": self.random.choices(self.about["items"], k=30)}
    return await self.send(client, "/score", body)

  async def post(self, client):
    event = [self.random.choice(self.about["items"]), int(time.time())]
    return await self.send(client, "/events", {"user": f"new{self.random.randint(0, 500)}", "events": [event]})

  async def empty(self, client):
    return await self.send(client, "/recommend", {"history": []})

  async def unknown_items(self, client):
    return await self.send(client, "/recommend", {"history": [["no such item", 5], ["nor this", 6]]})

  async def long(self, client):
    return await self.send(client, "/recommend", {"history": self.history(10_000)})

  async def json(self, client):
    bad = self.random.choice([b"{", b"", b'{"user": NaN', b"\xff\xfe", b"[1, 2", b'{"user": "a" "k": 1}'])
    return (await client.post("/recommend", content=bad, headers={"Content-Type": "application/json"})).status_code

  async def types(self, client):
    values = [None, [], {}, -1, 1e308, "noon", [[]], [None], [[1, 2, 3, 4]], [[{"a": 1}, 5]], True]
    body = {self.random.choice(["k", "at", "history", "domain", "allowed", "color"]): self.random.choice(values)}
    answer = await client.post("/recommend", json={"history": [["no such item", "noon"]], **body})
    good = answer.status_code == 200 and body.get("history") == []
    return 422 if good else answer.status_code

  async def nobody(self, client):
    return await self.send(client, "/recommend", {"user": f"nobody{self.random.random()}"})

  async def oversized(self, client):
    return (await client.post("/recommend", json={"user": "a" * (LARGEST + 1)})).status_code

  async def slow(self, client):
    async def content():
      for part in (b'{"history"', b": []", b"}"):
        yield part
        await asyncio.sleep(self.random.choice([0.1, 0.8]))

    headers = {"Content-Type": "application/json"}
    return (await client.post("/recommend", content=content(), headers=headers)).status_code

  async def disconnect(self, client):
    body = json.dumps({"history": self.history(20)}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", self.options.port)
    length = len(body) + self.random.choice([0, 50])
    head = f"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    writer.close()


def memory(process):
  """Returns the resident megabytes of a process."""
  lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
  return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


async def drive(options, process, base):
  async with httpx.AsyncClient(base_url=base, timeout=60) as client:
    about = (await client.get("/about")).json()
    about["items"] = [x["item"] for x in (await client.get("/items", params={"query": "", "limit": 100})).json()]
    load = Load(options, about)
    share = options.requests // options.clients // 10
    megabytes, start = [], time.perf_counter()
    for part in range(10):
      if part == 5:
        touch(options)
      await asyncio.gather(*(load.run(client, share) for _ in range(options.clients)))
      megabytes.append(round(memory(process)))
      print(f"{sum(load.seen.values()):6,} requests, {megabytes[-1]} MB, {len(load.wrong)} wrong", flush=True)
    seconds = time.perf_counter() - start
    counters = (await client.get("/metrics")).text
    version = (await client.get("/healthz")).json()["version"]
    drained = await drain(load, client, process)
  report(load, seconds, megabytes, counters, version, drained)
  return not load.wrong and drained == {200: options.clients}


def touch(options):
  """Makes the latest checkpoint look new, so that the server reloads."""
  folder = pathlib.Path(options.workdir) / options.phase / "checkpoints"
  latest = max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
  os.utime(latest)


async def drain(load, client, process):
  """Sends SIGTERM while requests with long histories are on their way, and returns the statuses of these."""
  body = {"history": load.history(9_000)}
  posts = (client.post("/recommend", json=body) for _ in range(load.options.clients))
  waiting = [asyncio.create_task(post) for post in posts]
  await asyncio.sleep(0.05)  # Some are sent, most of them not yet read.
  process.send_signal(signal.SIGTERM)
  answers = await asyncio.gather(*waiting, return_exceptions=True)
  return dict(collections.Counter(getattr(answer, "status_code", type(answer).__name__) for answer in answers))


def report(load, seconds, megabytes, counters, version, drained):
  count = sum(load.seen.values())
  print(f"{count:,} requests in {seconds:.0f} s: {count / seconds:.0f} a second, {load.options.clients} clients")
  for (kind, status), number in sorted(load.seen.items(), key=str):
    print(f"  {kind:14} {status!s:6} {number:6,}")
  for kind in ("user", "stranger", "score"):
    p50, p95, p99 = np.percentile(1000 * np.array(load.seconds[kind]), [50, 95, 99])
    print(f"  {kind:10} ms: p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}")
  print(f"megabytes: {megabytes}; version {version}; in progress at SIGTERM: {drained}; wrong: {load.wrong[:5]}")
  wanted = ("jaxrec_batch_requests_sum", "jaxrec_batch_requests_count", "jaxrec_batch_seconds_sum", "jaxrec_reloads")
  print("\n".join(line for line in counters.splitlines() if line.startswith(wanted)))


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--phase", default="select")
  parser.add_argument("--requests", type=int, default=20_000)
  parser.add_argument("--clients", type=int, default=16)
  parser.add_argument("--port", type=int, default=8765)
  parser.add_argument("--seed", type=int, default=0)
  options, rest = parser.parse_known_args()
  flags = [f"--workdir={options.workdir}", "--timeout_seconds=20", "--reload_seconds=0.2", *rest]
  with running_server(options.port, flags) as (process, base):
    is_right = asyncio.run(drive(options, process, base))
    status = process.wait(60)
  print(f"exit status of the server: {status}")
  sys.exit(not is_right or status != 0)


if __name__ == "__main__":
  main()
