"""The page experiments/results/scaling.md, made from its lines; `results_pages.py` writes it.

    python tests/scaling_page.py law=runs/law order=runs/order

writes the lines and the plot anew from the folders of `experiments.scaling`.
"""

import json
import statistics
import sys
from pathlib import Path

from conftest import REPOSITORY

from jaxrec.analysis import scaling_report
from jaxrec.cli.text_table import text_table

LAW, ORDER = "law", "order"
METRIC = "HR@10"
KEPT = ("HR@10", "NDCG@10", "HR@50", "NDCG@50", "MRR", "count")
NAMES = {"streaming": "HSTU", "streaming_hstu_softmax": "HSTU, softmax", "streaming_sasrec": "SASRec"}
PUBLISHED = {
  "streaming_sasrec": ".0442 / .2025",
  "streaming_hstu_softmax": ".0617 / .2496",
  "streaming": ".0893 / .3170",
}

ABOUT = """\
Data: `streaming`, a Chinese restaurant process over categories (`jaxrec/data/generators/streaming_vocabulary.py`), seen
once; config: `experiments/configs/streaming.py`, without relative bias, times or dropout. Loss: log-perplexity of 4,400
held-out events over all 500 items, in nats; a uniform guess has 6.2146, one who knows the process about 3.42. The
{runs} runs of this page took {minutes} minutes on one core of a shared 2-core CPU at lowest priority (JAX {jax})."""
LAW_TEXT = """\
`--override=data.options.initial_share=1.0`, means over the seeds 42 and 1, or 42 alone; sizes are layers,
width, longest history and share of 41,800 records; plot: [scaling.png](scaling.png)."""
CAUTION = """\
The frontier is chosen by the losses that are fitted, the learning rate is the same for all sizes, and a size is one
run or two: the intervals hold the scatter around the law, not these. Fits: `jaxrec/analysis/scaling_fit.py`."""
ORDER_TEXT = """\
`initial_share=0.4`: 40% of the items are there at the beginning, all when the first held-out record comes. 2 layers,
width 32, share .3 of the records; mean ± standard deviation over seeds."""
READING = """\
## Reading

- Over three decades of compute the loss falls from that of a uniform guess to about 4 nats, along an S: nothing is
  learnt below 3e9 FLOPs, most between 1e10 and 1e11. That is no power law, and the program says so. What the law of the
  other sizes predicts for the largest run is too low.
- At one learning rate for all sizes, 4 layers of width 64 are worse than 2 with less compute, SASRec by far. A law
  needs a learning rate for each size; that was not done here.
- The order of the paper, Transformer below softmax HSTU below HSTU, is not reproduced: the three are within two
  hundredths of each other in HR@10, SASRec ahead, and SiLU attention is not above softmax. A reason that was not
  tested: the next item of this stream depends on its share among the events so far, which averages of softmax attention
  hold as well, and all records are equally long. The paper's constants are not known here, and its stream and models
  are larger."""


def scaling_page(lines: list[dict], made: str) -> str:
  """Returns `scaling.md`: the law study, its fits and verdicts, and the order of three models."""
  curves = curves_of_law(lines)
  seconds = sum(line["measured"]["seconds"] for line in lines)
  parts = [
    "# Loss against compute: HSTU and SASRec on a generated stream",
    made,
    ABOUT.format(runs=len(lines), minutes=f"{seconds / 60:.0f}", jax=lines[0]["machine"]["jax"]),
    "## The law, all items there from the beginning",
    LAW_TEXT,
    scaling_report.as_markdown(curves, METRIC),
    CAUTION,
    "## The order of three models, items appearing",
    ORDER_TEXT,
    order_table([line for line in lines if line["study"] == ORDER]),
    READING,
  ]
  return "\n\n".join(part for part in parts if part) + "\n"


def curves_of_law(lines: list[dict]) -> list[scaling_report.Curve]:
  """Returns the curves of the law study, under the names of their models."""
  law = [line for line in lines if line["study"] == LAW]
  return scaling_report.curves_of(
    [scaling_report.Run(NAMES[line["curve"]], line["measured"], line[METRIC]) for line in law]
  )


def order_table(lines: list[dict]) -> str:
  """Returns loss and hit rates of each model, beside those of the paper's stream."""
  rows = [["model", "runs", "loss", "HR@10", "HR@50", "paper, HR@10 / HR@50"]]
  for curve in PUBLISHED:
    runs = [line for line in lines if line["curve"] == curve]
    values = [[run["measured"]["loss"] for run in runs], *([run[name] for run in runs] for name in ("HR@10", "HR@50"))]
    rows.append([NAMES[curve], str(len(runs)), *map(_mean, values), PUBLISHED[curve]])
  return text_table(rows, "lr", markdown=True)


def _mean(values):
  return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


def lines_of_studies(folders: dict[str, str]) -> list[dict]:
  """Returns a line for each complete run of some studies, by the name of the study."""
  lines = []
  for study, folder in folders.items():
    for text in Path(folder, "results.jsonl").read_text().splitlines():
      result = json.loads(text)
      summary = result["summary"]
      test = {name: summary["select"]["test_of_selected"][name] for name in KEPT}
      about = {"study": study, "curve": summary["name"], "seed": result["seed"], "overrides": result["overrides"]}
      lines.append(about | {"measured": summary["scaling"], **test, "machine": summary["machine"]})
  return lines


if __name__ == "__main__":
  studies = dict(argument.split("=", 1) for argument in sys.argv[1:])
  results = REPOSITORY / "experiments" / "results"
  found = lines_of_studies(studies)
  (results / "scaling.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
  scaling_report.plot(curves_of_law(found), METRIC, str(results / "scaling.png"))
