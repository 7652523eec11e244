"""Recommendation models; `build` makes a sequential model from a config, `jaxrec.models.ctr.build` a click model.

| name in a config | class | |
|---|---|---|
| hstu | `HSTU` | pointwise SiLU attention with time and position bias |
| stu | `STUModel` | the production variant of the HSTU layer |
| sasrec | `SASRec` | causal softmax transformer; with `layer="ligr"` that of eSASRec |
| bert4rec | `BERT4Rec` | bidirectional softmax transformer, trained on masked items |
| domain_encoders | `DomainEncoders` | AutoCDSR+: encoders of domains with bottleneck tokens, below a `BERT4Rec` |
| multi_domain_hstu | `MultiDomainHSTU` | HSTU with attention inside each domain |
| ranking | `RankingModel` | generative ranking of events with actions; built by `jaxrec.models.ranking.build` |
| dare, twin, ... | `ClickThroughRanker` | click-through ranking; names in `jaxrec.models.ctr.VARIANTS` |
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxrec.models.bert4rec import BERT4Rec
from jaxrec.models.ctr import ClickHead, ClickThroughRanker
from jaxrec.models.domain_encoders import DomainEncoders
from jaxrec.models.fields import check_fields
from jaxrec.models.hstu import HSTU
from jaxrec.models.multi_domain_hstu import MultiDomainHSTU, MultiDomainHSTULayer
from jaxrec.models.ranking import RankingModel
from jaxrec.models.sasrec import SASRec
from jaxrec.models.sequential import SequentialModel
from jaxrec.models.stu import STUModel

MODELS: dict[str, type[SequentialModel]] = {
  "hstu": HSTU, "stu": STUModel, "sasrec": SASRec, "bert4rec": BERT4Rec,
  "domain_encoders": DomainEncoders, "multi_domain_hstu": MultiDomainHSTU,
}  # fmt: skip

__all__ = [
  "BERT4Rec", "ClickHead", "ClickThroughRanker", "DomainEncoders", "HSTU", "MODELS", "MultiDomainHSTU",
  "MultiDomainHSTULayer", "RankingModel", "SASRec", "STUModel", "SequentialModel", "build", "check_options",
]  # fmt: skip


def build(config: Mapping, *, num_items: int, **overrides) -> SequentialModel:
  """Returns the model `config["name"]`, with the other entries of `config` as its fields.

  Args:
    config: "name" and fields of the model's class.
    num_items: V.
    **overrides: more fields, e.g. `dtype`.

  Raises:
    ValueError: an unknown model or field, with the known ones, or a value of another type.

  >>> build({"name": "sasrec", "width": 8, "max_positions": 4}, num_items=9).num_rows
  10
  """
  options = {**config, **overrides}
  check_options(options)
  name = options.pop("name")
  return MODELS[name](num_items=num_items, **options)


def check_options(config: Mapping) -> None:
  """Raises unless a config names a model and has fields of its class.

  Raises:
    ValueError: as of `build`.
  """
  name = config.get("name")
  if name not in MODELS:
    raise ValueError(f"model {name!r} is not one of {sorted(MODELS)}")
  check_fields(f"model {name!r}", MODELS[name], config)
