"""The pages of experiments/results that are made from their JSON lines alone.

    python tests/results_pages.py

writes them anew; a test compares them with the lines.
"""

import json
import statistics

from click_tables_page import click_tables_page
from conftest import REPOSITORY
from scaling_page import scaling_page

from jaxrec.cli import certificate
from jaxrec.cli.audit import LEGEND, SHARES, percent
from jaxrec.cli.text_table import text_table
from jaxrec.data.audit import DOMAIN
from jaxrec.evaluation.beyond_accuracy import METRICS

RESULTS = REPOSITORY / "experiments" / "results"
MADE = "<!-- Made by `python tests/results_pages.py` from {}; change the lines or the program, not this page. -->\n"


def lines_of(name: str) -> list[dict]:
  """Returns the recorded lines of a file of experiments/results."""
  return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def audit_page(lines: list[dict]) -> str:
  """Returns `audit.md`: every data set at hand, audited by `experiments.audit`."""
  commands = [f"{i}. `python -m {line['command']}`" for i, line in enumerate(lines, 1)]
  return "\n\n".join([
    "# What the data sets are like",
    MADE.format("audit.jsonl").strip(),
    "Figures of `experiments.audit`, numbered by command (the raw data in `$JAXREC_DATA`):",
    "\n".join(commands),
    "## Sizes, ties, duplicates, leakage of time",
    "`tied`: events with the same time as the user's event before. `repeated`: the user had the item before;\n"
    "`duplicate`: at the same time. The last two columns: share of the training events that happen after the earliest\n"
    "and after the median test event.",
    _sizes(lines),
    "## Held-out events",
    "\n".join(["Of the held-out events (targets):\n", *(f"- {name}: {text}" for name, text in LEGEND.items())]),
    _targets(lines),
    "## Test events by domain",
    _domains(lines),
  ]) + "\n"  # fmt: skip


def _sizes(lines):
  header = " |users|items|events|tied|repeated|duplicate|items without training|after first test|after median test"
  rows = [header.split("|")]
  for i, line in enumerate(lines, 1):
    new = line["items"] - line["training"]["items"]
    rows.append([
      f"{i}", f"{line['users']:,}", f"{line['items']:,}", f"{line['events']:,}", percent(line["neighbours_tied"], 1),
      percent(line["repeated_items"], line["events"]), percent(line["duplicates"], line["events"]), f"{new:,}",
      percent(line["training_after_first_test"], 1), percent(line["training_after_median_test"], 1),
    ])  # fmt: skip
  return text_table(rows, "lr", markdown=True)


def _targets(lines):
  rows = [["", "split", "targets", *SHARES.values(), "later events"]]
  for i, line in enumerate(lines, 1):
    rows += [[f"{i}", split, *_cells(line[split])] for split in ("validation", "test")]
  return text_table(rows, "llr", markdown=True)


def _domains(lines):
  rows = [["", "domain", "targets", *SHARES.values(), "later events"]]
  for i, line in enumerate(lines, 1):
    for name, figures in line["test"].items():
      if name.startswith(DOMAIN) and len(line["test"]) < 60:  # Not the categories of Taobao.
        rows.append([f"{i}", name.removeprefix(DOMAIN), *_cells(figures)])
  return text_table(rows, "llr", markdown=True)


def _cells(figures):
  shares = [percent(figures[name], figures["targets"]) for name in SHARES]
  return [f"{figures['targets']:,}", *shares, percent(figures["later_training"], 1)]


PROTOCOL = {
  "split": str, "evaluated": str, "tie_order": str, "target_time": bool, "seen_items": str, "candidates": str,
  "sampled_negatives": int, "epoch_chosen_by": str, "epochs": int, "seeds": list, "hardware": str, "seconds": int,
}  # fmt: skip
"""What every line of quality.jsonl says beside its metrics; None: not recorded, or not stated by the source."""

ORIGINS = {"here": "this library", "re-run": "independent re-run", "authors": "the authors"}


def quality_page(lines: list[dict]) -> str:
  """Returns `quality.md`: results by data set, each with its protocol."""
  parts = [
    "# Quality, with the protocol of each number",
    MADE.format("quality.jsonl").strip(),
    "Full ranking, leave-one-out. Numbers compare where all columns but the ranker agree, above all the *order of\n"
    "ties*, which decides a large part of the test targets ([audit.md](audit.md)):\n"
    "\"file\" keeps the order of the file;\n"
    "\"unstable sort\" is what such a sort left, another test set; \"published lists\" is that of the 5-core lists.\n"
    "\"-\": not recorded, or not stated by the source. Seconds are those of the phase whose parameters are evaluated.",
  ]  # fmt: skip
  for data in dict.fromkeys(line["data"] for line in lines):
    chosen = [line for line in lines if line["data"] == data]
    parts += [f"## {data}", _protocols(chosen)]
    if means := seed_means(chosen):
      parts += ["Mean ± sample standard deviation over runs that differ in the seed alone:", _means(means)]
  return "\n\n".join(parts) + "\n"


def seed_means(lines: list[dict]) -> list[dict]:
  """Returns a line for each ranker of this library with several seeds: `seeds`, and mean and deviation of metrics."""
  same = ["data", "run", "ranker", *(name for name in PROTOCOL if name not in ("epochs", "seeds", "seconds"))]
  groups: dict[tuple, list[dict]] = {}
  for line in lines:
    if line["origin"] == "here" and line["seeds"]:
      groups.setdefault(tuple(line[name] for name in same), []).append(line)
  found = []
  for key, group in groups.items():
    if len(group) > 1:
      values = {name: [line[name] for line in group] for name in ("HR@10", "NDCG@10")}
      means = {name: (statistics.mean(x), statistics.stdev(x)) for name, x in values.items()}
      seeds = sorted(seed for line in group for seed in line["seeds"])
      found.append(dict(zip(same, key, strict=True)) | means | {"seeds": seeds})
  return found


def _means(found):
  rows = [["ranker", "evaluated", "target's time", "seeds", "HR@10", "NDCG@10"]]
  for line in found:
    given = "given" if line["target_time"] else "not given"
    shown = [f"{short(line[name][0])} ± {short(line[name][1])}" for name in ("HR@10", "NDCG@10")]
    rows.append([line["ranker"], line["evaluated"], given, ", ".join(map(str, line["seeds"])), *shown])
  return text_table(rows, "ll", markdown=True)


def _protocols(lines):
  rows = [[
    "ranker", "by", "evaluated", "HR@10", "NDCG@10", "target's time", "ties", "seen items", "epoch chosen by", "epochs",
    "seeds", "hardware", "seconds", "record",
  ]]  # fmt: skip
  for line in lines:
    seeds = ", ".join(map(str, line["seeds"])) if line["seeds"] else "-"
    given = "given" if line["target_time"] else "not given"
    cells = [line[name] for name in ("tie_order", "seen_items", "epoch_chosen_by", "epochs")]
    rows.append([
      line["ranker"], ORIGINS[line["origin"]], line["evaluated"], short(line["HR@10"]), short(line["NDCG@10"]), given,
      *map(_text, cells), seeds, _text(line["hardware"]), _text(line["seconds"]), line["log"],
    ])  # fmt: skip
  return text_table(rows, "l-", markdown=True)


def _text(value):
  return "-" if value is None else f"{value:,}" if isinstance(value, int) else value


def short(value: float) -> str:
  """Returns a metric as documents show it.

  >>> short(0.36421)
  '.3642'
  """
  return f"{value:.4f}".removeprefix("0")


def time_split_page(lines: list[dict]) -> str:
  """Returns `time_split.md`: models and baselines on all events after a cut, by data set."""
  names = [*("HR@10", "NDCG@10"), *("cold/HR@10", "cold/count"), *(f"{name}@10" for name in METRICS)]
  parts = [
    "# After a global cut in time: models and popularity",
    MADE.format("time_split.jsonl").strip(),
    "`split=by_time`: the events from the 90% quantile of the times on are for validation, those from the 95%\n"
    "quantile on for test. Every event of a split is a target, with everything before it\n"
    "as history (`eval.targets=all`); full\n"
    "ranking without seen items. `popularity_7d` counts the events of the last 7 days before the split only. Cold\n"
    "targets have no event before the split. Models are trained on what is before the validation events, read no time\n"
    "of the target, and their epoch is chosen on the validation events; one seed. Lines of popularity come from\n"
    "`jaxrec.train.sequence_task.evaluate_baselines(config, data, split)` with `eval.beyond_accuracy=10`, those of\n"
    "models from `--config.data.options=\"{'split': 'by_time'}\" --config.eval.targets=all` and\n"
    "`--config.data.request_time=last_event`.",
  ]
  for data in dict.fromkeys(line["data"] for line in lines):
    rows = [["split", "ranker", "targets", "of new users", "left out", *names]]
    for line in lines:
      if line["data"] == data:
        counts = (f"{line[name]:,}" for name in ("count", "new_users", "without_history"))
        cells = [_number(line.get(name)) for name in names]
        rows.append([line["split"], line["ranker"], *counts, *cells])
    parts += [f"## {data}", text_table(rows, "llr", markdown=True)]
  return "\n\n".join(parts) + "\n"


def _number(value):
  return "-" if value is None else f"{value:,}" if isinstance(value, int) else short(value)


def certificate_page(lines: list[dict]) -> str:
  """Returns `certificates.md`: whether other domains do harm, by data set."""
  parts = [
    "# Is there negative transfer?",
    MADE.format("certificates.jsonl").strip(),
    "Ranks within the domain of the target, which knowing that domain cannot improve; standard errors and intervals\n"
    "from draws of users and seeds, paired.\n\n"
    "- `merged`: attention among all events.\n"
    "- `intra`: attention inside each domain only; no event reads another domain, although the next may be of it.\n"
    "- `apart`: a user's events of each domain are a history of their own. As many steps as `merged`, except on Food\n"
    "  and Kitchen, where it had twice as many, with half of the events in each.\n"
    "- `single`: a model for each domain, trained on its events alone.\n"
    "- `target_domain`: as `merged`; the domain of the target is an input.\n\n"
    "Removing negative transfer gains at most what `apart`, `intra` or `single` is above `merged`.",
  ]
  for line in lines:
    text = certificate.report(line, line["k"])
    said = "\n".join(certificate.verdicts(line["differences"]) + certificate.unfinished(line.get("trainings", {})))
    about = f"{line['encoder']}, {line['split']} targets, on {line['hardware']}: `python -m {line['command']}`"
    parts += [f"## {line['data']}", about, f"```text\n{text}\n```", said]
  return "\n\n".join(parts) + "\n"


def input_page(lines: list[dict]) -> str:
  """Returns `input_pipeline_cpu.md`: how fast batches are made, and how fast the `pod` configuration needs them."""
  first = lines[0]
  rows = [["variant", "million tokens a second", "of a core", "examples a second", "ms a batch"]]
  for line in lines:
    speeds = [f"{line[name] / 1e6:.1f}" for name in ("tokens_per_second", "tokens_per_core_second")]
    rows.append([line["variant"], *speeds, f"{line['examples_per_second']:,}", f"{line['milliseconds']:.1f}"])
  per_core = next(line for line in lines if line["variant"] == "8 shards")["tokens_per_core_second"]
  slow = next(50e6 / line["tokens_per_second"] for line in lines if line["variant"] == "store of 50 MB/s")
  flop, need = pod_flop_per_token(), V5P_FLOP_PER_SECOND / pod_flop_per_token()
  return "\n\n".join([
    "# Making training batches, on one CPU",
    MADE.format("input_pipeline_cpu.jsonl").strip(),
    f"`python -m experiments.benchmarks.input_pipeline`: {first['events']:,} events of log-normal histories, packed\n"
    f"into batches of {first['rows']} rows of {first['length']:,} positions; {first['batches']} batches are timed."
    " \"of a core\" divides by the\nprocessor seconds of the process that reads the batches: for worker processes it"
    " is what receiving costs. An example is\na history. Other programs ran on both cores of the machine: compare the"
    " columns \"of a core\".",
    text_table(rows, "lr", markdown=True),
    "\"store of S MB/s\": the columns are memory-mapped over a mount that gives S megabytes a second, in pages of"
    " 4 KiB, and\nnone is kept: each epoch reads everything again, one history after another; \"of a core\" counts"
    " what simulating the store\ntakes too. Copied first (a URL in `--data`), data are read at the speed of"
    " \"8 shards\". \"put\": ready batches are put on the\ndevice, a CPU.",
    "## What the `pod` configuration needs",
    "\n".join([
      f"- A token costs {flop / 1e9:.2f} GFLOP: 6 for each of the 5.2 million weights of 24 layers (projections of"
      " queries, keys, values and",
      "  gates, and of the output), 6 x 1,024 x 1,024 for the causal attention of each layer, 6 x 512 x 1,024 for the"
      " sampled softmax.",
      f"- A v5p chip has {V5P_FLOP_PER_SECOND / 1e12:.0f} TFLOP/s in bfloat16. At its peak, which no step reaches, it"
      f" would train {need:,.0f} tokens a second,",
      f"  a step of one row of 1,024 every {1024 / need * 1000:.1f} ms. A host of 4 chips: {4 * need / 1e6:.1f} million"
      " tokens a second.",
      f"- One core of the machine above makes {per_core / 1e6:.1f} million tokens a second from shards: it feeds"
      f" {per_core / need:.0f} chips at their peak; a host",
      f"  of 4 chips needs {4 * need / per_core:.2f} cores, the pod of 4,096 chips {4096 * need / per_core:.0f} cores"
      " on its 1,024 hosts.",
      f"- An event has 16 bytes in the columns that a batch reads, {4 * need * 16 / 1e6:.0f} MB/s for a host; over a"
      f" mount {slow:.0f} bytes in whole pages,",
      f"  {4 * need * slow / 1e6:.0f} MB/s. Copy the shards of a host first.",
    ]),
    "So one thread that works ahead, as the training loop has it, is enough, and worker processes are not used: they"
    " add the\ncost of sending batches. The loop puts the batch of step n + 1 on the device while step n is computed:"
    " it waits for the\nscalars of the step before only. Nothing on this page has run beside a TPU.",
  ]) + "\n"  # fmt: skip


V5P_FLOP_PER_SECOND = 459e12  # In bfloat16, as published.


def pod_flop_per_token() -> float:
  """Returns the floating-point operations of a training step for a token at `experiments/configs/pod.py`."""
  layers, width, length, negatives = 24, 1024, 1024, 512
  weights = 5 * width * width  # Of a layer: queries, keys, values, gates and output, 8 heads of width 128 each.
  attention = 2 * length * width  # Scores and values, half of the positions.
  return 3 * (layers * (2 * weights + attention) + 2 * negatives * width)


PAGES = {
  "click_tables.md": lambda: click_tables_page(lines_of("click_tables.jsonl"), MADE.format("click_tables.jsonl")),
  "input_pipeline_cpu.md": lambda: input_page(lines_of("input_pipeline_cpu.jsonl")),
  "time_split.md": lambda: time_split_page(lines_of("time_split.jsonl")),
  "certificates.md": lambda: certificate_page(lines_of("certificates.jsonl")),
  "quality.md": lambda: quality_page(lines_of("quality.jsonl")),
  "audit.md": lambda: audit_page(lines_of("audit.jsonl")),
  "scaling.md": lambda: scaling_page(lines_of("scaling.jsonl"), MADE.format("scaling.jsonl").strip()),
}


if __name__ == "__main__":
  for name, page in PAGES.items():
    (RESULTS / name).write_text(page())
