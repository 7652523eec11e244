"""The records of a report as tables: for people, in Markdown and HTML."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Sequence
from typing import Any

Record = dict[str, Any]


def write(records: Sequence[Record], folder: str) -> None:
  """Writes report.md and report.html."""
  for name, text in (("report.md", markdown(records)), ("report.html", page(records))):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
      file.write(text)


def markdown(records: Sequence[Record]) -> str:
  """The tables in Markdown."""
  lines = [f"# Device report: {_device_of(records)}", ""]
  for title, columns, rows in _tables(records):
    lines += [f"## {title}", "", _line(columns), _line(["---"] * len(columns)), *map(_line, rows), ""]
  return "\n".join(lines)


def page(records: Sequence[Record]) -> str:
  """The tables as one HTML page that needs nothing else."""
  title = html.escape(f"Device report: {_device_of(records)}")
  parts = [
    f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
    f"<style>{_STYLE}</style><h1>{title}</h1>",
  ]
  for name, columns, rows in _tables(records):
    head = "".join(f"<th>{html.escape(x)}" for x in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(x)}" for x in row) for row in rows)
    parts.append(f"<h2>{html.escape(name)}</h2><table><tr>{head}{body}</table>")
  return "\n".join(parts) + "\n"


_STYLE = (
  "body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em}table{border-collapse:collapse}"
  "td,th{padding:.2em .7em;border-bottom:1px solid #ddd;text-align:left}"
  "td:nth-child(n+2){font-variant-numeric:tabular-nums}"
)


def _line(cells):
  return "| " + " | ".join(x.replace("|", "/") for x in cells) + " |"


def _device_of(records) -> str:
  names = {f"{r['device']} ({r['platform']}, jax {r['jax']})": None for r in records if "device" in r}
  return ", ".join(names) or "none"


def _tables(records):
  """Title, columns and rows of each section that has records."""
  peak = next((r["tflops"] for r in records if r["name"] == "product bfloat16" and "tflops" in r), None)
  for section, (title, columns, cells) in _SECTIONS.items():
    found = [r for r in records if r["section"] == section]
    if found:
      yield title, columns, [[r["name"], *_cells(r, cells, peak, len(columns) - 1)] for r in found]


def _cells(record, cells: Callable, peak, count):
  """The numbers of a record, or why it has none."""
  for key, start in (("failed", "FAILED: "), ("skipped", "")):
    if key in record:
      return [start + record[key].splitlines()[0], *[""] * (count - 1)]
  return cells(record, peak)


def _of_device(record, _):
  rate = f"{record['tflops']} TFLOPS" if "tflops" in record else f"{record['gb_per_s']} GB/s"
  return [rate, f"{record['median_ms']} ({record['least_ms']}-{record['most_ms']})"]


def _of_check(record, _):
  errors = record["errors"]
  return [f"{max(errors.values()):.1e}", ", ".join(f"{name} {x:.1e}" for name, x in errors.items())]


def _of_attention(record, peak):
  cells = []
  for part in ("forward", "backward"):
    rate = record[f"{part}_tflops"]
    share = f" ({100 * rate / peak:.0f}%)" if peak and record["dtype"] == "bfloat16" else ""
    cells += [f"{record[f'{part}_median_ms']:.4g}", f"{rate:.4g}{share}"]
  return cells


def _of_step(record, _):
  return [str(record[key]) for key in ("median_ms", "tokens", "tokens_per_s", "batch_ms", "compile_s")]


def _of_table(record, _):
  return [str(record[key]) for key in ("look_up_ms", "look_up_and_update_ms", "distinct", "rows")]


_SECTIONS: dict[str, tuple[str, list[str], Callable]] = {
  "device": ("Peaks", ["", "rate", "ms (least-most)"], _of_device),
  "checks": ("Correctness: relative errors of outputs and gradients", ["", "largest", "each"], _of_check),
  "attention": (
    "Attention: useful TFLOPS (share of the bfloat16 product's)",
    ["", "forward ms", "forward TFLOPS", "backward ms", "backward TFLOPS"],
    _of_attention,
  ),
  "steps": ("Training steps", ["", "ms", "tokens", "tokens/s", "ms to make a batch", "s to compile"], _of_step),
  "tables": ("Table updates", ["", "look-up ms", "look-up and update ms", "distinct ids", "rows"], _of_table),
}
