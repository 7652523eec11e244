"""Models: embeddings, an encoder and scoring vectors. `build` makes one from a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxrec.models.bert4rec import BERT4Rec
from jaxrec.models.hstu import HSTU
from jaxrec.models.multi_domain_hstu import MultiDomainHSTU
from jaxrec.models.sasrec import SASRec
from jaxrec.models.sequential import SequentialModel

MODELS: dict[str, type[SequentialModel]] = {
  "hstu": HSTU, "sasrec": SASRec, "bert4rec": BERT4Rec, "multi_domain_hstu": MultiDomainHSTU,
}  # fmt: skip

__all__ = ["BERT4Rec", "HSTU", "MODELS", "MultiDomainHSTU", "SASRec", "SequentialModel", "build"]


def build(config: Mapping, *, num_items: int, **overrides) -> SequentialModel:
  """The model `config["name"]` with the other entries of `config` as its fields.

  Args:
    config: "name" and fields of the model's class.
    num_items: V.
    **overrides: further fields, e.g. `dtype`.

  Raises:
    ValueError: for an unknown model or field, with the known ones.
  """
  options = {**config, **overrides}
  name = options.pop("name")
  if name not in MODELS:
    raise ValueError(f"model {name!r} is not one of {sorted(MODELS)}")
  known = {field.name for field in dataclasses.fields(MODELS[name])} - {"parent", "name"}
  if unknown := sorted(set(options) - known):
    raise ValueError(f"model {name!r} has no field {unknown}; it has {sorted(known)}")
  return MODELS[name](num_items=num_items, **options)
