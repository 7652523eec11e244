"""Sequential and generative recommendation over several domains, in JAX.

    import jaxrec
    data = jaxrec.synthetic_data()
    model = jaxrec.HSTU(num_items=data.num_items, width=64, max_positions=64, attention_length=64)

Names are loaded when they are first used, so that `import jaxrec` costs next to nothing.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
  "SequenceBatch": "jaxrec.batches",
  "CandidateBatch": "jaxrec.batches",
  "next_item_batch": "jaxrec.batches",
  "check_batch": "jaxrec.models.batch_check",
  "PreparedData": "jaxrec.data.prepared",
  "prepare": "jaxrec.data.preparation.prepare",
  "synthetic_data": "jaxrec.data.generators.synthetic",
  "TrainingOptions": "jaxrec.data.batches.training",
  "training_batches": "jaxrec.data.batches.training",
  "evaluation_batches": "jaxrec.data.batches.evaluation",
  "HSTU": "jaxrec.models",
  "SASRec": "jaxrec.models",
  "BERT4Rec": "jaxrec.models",
  "STUModel": "jaxrec.models",
  "MultiDomainHSTU": "jaxrec.models",
  "DomainEncoders": "jaxrec.models",
  "ClickThroughRanker": "jaxrec.models",
  "DecoupledEmbedding": "jaxrec.layers.ctr.decoupled",
  "HSTULayer": "jaxrec.layers.hstu",
  "STU": "jaxrec.layers.stu",
  "STULayer": "jaxrec.layers.stu",
  "SASRecLayer": "jaxrec.layers.transformer",
  "LiGRLayer": "jaxrec.layers.ligr",
  "BERT4RecLayer": "jaxrec.layers.transformer",
  "ItemObjective": "jaxrec.objectives.item",
  "RankingMetrics": "jaxrec.evaluation.metrics",
  "auc": "jaxrec.evaluation.metrics",
  "grouped_auc": "jaxrec.evaluation.metrics",
  "target_ranks": "jaxrec.evaluation.catalogue",
  "top_k_items": "jaxrec.evaluation.catalogue",
  "Table": "jaxrec.embedding",
  "Tables": "jaxrec.embedding",
  "default_config": "jaxrec.train.config",
  "Recommender": "jaxrec.serving.recommender",
  "load": "jaxrec.recommenders",
  "fit": "jaxrec.recommenders",
  "write_report": "jaxrec.analysis.run_report",
  "from_events": "jaxrec.data.preparation.from_events",
}
_MODULES = (
  "analysis",
  "batches",
  "cli",
  "data",
  "embedding",
  "evaluation",
  "layers",
  "models",
  "multi_objective",
  "objectives",
  "parallel",
  "serving",
  "train",
)

__all__ = ["__version__", *_HOMES, *_MODULES]


def __getattr__(name: str):
  if name in _MODULES:
    return importlib.import_module(f"jaxrec.{name}")
  if name in _HOMES:
    return getattr(importlib.import_module(_HOMES[name]), name)
  raise AttributeError(f"module 'jaxrec' has no attribute {name!r}; it has {sorted(__all__)}")


def __dir__() -> list[str]:
  return sorted(__all__)
