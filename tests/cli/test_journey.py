"""The commands of the first page, from a shop's log to tables of recommendations, one after the other."""

import csv
import importlib
import random
import shlex
import sys

import polars as pl
import pytest
from test_readme import code_blocks

from jaxrec.cli import __main__ as console

HEADER = ("user_id", "sku", "time", "shop", "name")
SHOPS = {"food": 12, "books": 20}


def write_log(path, users, events):
  """Writes events in a random order; in each shop a user buys the item after the last one."""
  draw = random.Random(0)
  rows = []
  for user in users:
    latest = {shop: draw.randrange(size) for shop, size in SHOPS.items()}
    for i in range(events):
      shop = draw.choice(list(SHOPS))
      latest[shop] = (latest[shop] + 1) % SHOPS[shop]
      rows.append((user, f"{shop[0]}{latest[shop]}", 1_700_000_000 + 3600 * i, shop, f"{shop} {latest[shop]}"))
  draw.shuffle(rows)
  with open(path, "w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([HEADER, *rows])


def commands():
  block = next(block for _, block in code_blocks("README.md", "bash") if "jaxrec prepare" in block)
  return [shlex.split(line, comments=True)[1:] for line in block.splitlines()]


@pytest.fixture
def run(call):
  def run(program, *arguments):
    extra = ["--config.train.num_epochs=1"] if program == "train" else []
    return call(importlib.import_module(f"jaxrec.cli.{program}"), *arguments, *extra)

  return run


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections loads config files so.
def test_the_commands_of_the_first_page_lead_from_a_log_to_tables(run, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_log("log.csv", [f"u{i}" for i in range(40)], events=12)
  write_log("new_users.csv", [f"new{i}" for i in range(10)], events=3)
  shown = {tuple(command): run(*command) for command in commands()}
  assert len(shown) == 6 and {command[0] for command in shown} < set(console.PROGRAMS)
  prepared, trained, evaluated, texts, table, strangers = shown.values()
  assert "Train on it: jaxrec train --config=hstu --data=data/log --workdir=runs/log" in prepared
  assert "validation  food" in trained and "best epoch 1" in trained
  assert "popularity" in evaluated
  assert texts.count("\nUser ") + texts.startswith("User ") == 5 and "food: food " in texts
  assert "40 users" in table and "10 users" in strangers
  rows = pl.read_parquet("recommendations.parquet")
  assert rows["user"].n_unique() == 40 and set(rows["domain"]) == set(SHOPS) and "food 3" in set(rows["title"])
  assert pl.read_ndjson("new_users.jsonl")["user"].n_unique() == 10


def test_the_console_command_names_its_programs(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["jaxrec", "trian"])
  with pytest.raises(SystemExit, match="usage: jaxrec {prepare,audit,certificate,train,evaluate"):
    console.main()
