"""Trains on prepared data that lie behind the real protocols of object stores, served by emulators on this machine.

    pip install 'moto[server,s3]' s3fs gcsfs gcp-storage-emulator
    PYTHONPATH=. python tests/programs/object_stores.py --store=s3
    PYTHONPATH=. python tests/programs/object_stores.py --store=gs

Puts 8 shards into a bucket, loads the shards of one of four hosts, trains from the URL and from the folder, and reads a
bucket that is not there. Prints as JSON how many files and bytes were copied, whether both runs have the same metrics,
and the message of the error.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import fsspec
import numpy as np

from jaxrec.data.generators.planted_transfer import planted_transfer
from jaxrec.data.prepared import COLUMNS, PreparedData


def serve_s3(folder):
  """Starts an S3 server; returns a function that stops it."""
  from moto.server import ThreadedMotoServer

  server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
  server.start()
  host, port = server.get_host_and_port()
  keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
  os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", **keys}
  return server.stop


def serve_gs(folder):
  """Starts a Google Cloud Storage server; returns a function that stops it."""
  from gcp_storage_emulator.server import create_server

  server = create_server("127.0.0.1", 9023, in_memory=False, data_dir=str(folder / "gs"))
  server.start()
  os.environ["STORAGE_EMULATOR_HOST"] = "http://127.0.0.1:9023"
  return server.stop


def trained(data, workdir):
  """Trains in another process from a folder or URL; returns the summary's metrics."""
  settings = ["config=experiments/configs/planted.py", f"config.data.prepared={data}", "config.train.num_epochs=2"]
  command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", *(f"--{text}" for text in settings)]
  found = subprocess.run(command, capture_output=True, text=True)
  if found.returncode:
    sys.exit(found.stderr[-2000:])
  selected = json.loads((workdir / "summary.json").read_text())["select"]
  return {name: selected[name] for name in ("validation", "test_of_selected")}


def main():
  """Serves, copies, trains."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--store", choices=("s3", "gs"), required=True)
  store = parser.parse_args().store
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    os.environ["JAXREC_CACHE"] = str(folder / "cache")
    stop = {"s3": serve_s3, "gs": serve_gs}[store](folder)
    try:
      data = planted_transfer(num_users=2000).save(folder / "data", shards=8)
      files = fsspec.filesystem(store)
      files.mkdir("bucket")
      for path in sorted(folder.glob("data/**/*")):
        if path.is_file():
          files.pipe_file(f"bucket/some data/{path.relative_to(folder / 'data')}", path.read_bytes())
      url = f"{store}://bucket/some data"
      part = PreparedData.load(url, (1, 4))
      copied = [path for path in part.path.rglob("*") if path.is_file()]
      record = {"store": store, "files": len(copied), "bytes": sum(path.stat().st_size for path in copied)}
      whole = PreparedData.load(url)
      record["same_columns"] = all(np.array_equal(getattr(whole, name), getattr(data, name)) for name in COLUMNS)
      record["same_metrics"] = trained(url, folder / "url") == trained(folder / "data", folder / "local")
      try:
        PreparedData.load(f"{store}://not-there/data")
      except ValueError as error:
        record["error"] = str(error)
      print(json.dumps(record))
    finally:
      stop()


if __name__ == "__main__":
  main()
