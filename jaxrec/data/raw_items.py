"""Ids of the raw data to items 1..V."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class RawItems:
  """The items of prepared data by their ids in the raw data.

  Args:
    raw_ids: of items 1..V.
    domain_ids: domains 1..C of these items.
    domain_names: names of the domains.

  >>> items = RawItems(["7", "8", "7"], [1, 1, 2], ["book", "film"])
  >>> items.index("8"), items.index(7, "film"), items.find("9")
  (2, 3, 0)
  """

  def __init__(self, raw_ids: Iterable[str], domain_ids: Sequence[int], domain_names: Sequence[str]):
    self._domain_ids, self._domain_names = domain_ids, domain_names
    self._found: dict[str, int | list[int]] = {}  # Raw id to its item, or to its items in several domains.
    for item, raw_id in enumerate(raw_ids, 1):
      before = self._found.get(raw_id)
      both = [*(before if isinstance(before, list) else [before]), item]
      self._found[raw_id] = item if before is None else both

  def index(self, raw_id: str | int, domain: str | None = None) -> int:
    """Returns the id 1..V of an item; the arguments are those of `find`.

    Raises:
      ValueError: there is no such item, or several domains have one and none is given.
    """
    item = self.find(raw_id, domain)
    if not item:
      examples = ", ".join(map(repr, list(self._found)[:3]))
      raise ValueError(f"item {str(raw_id)!r} is not in the prepared data, which has items such as {examples}")
    return item

  def find(self, raw_id: str | int, domain: str | None = None) -> int:
    """Returns the id 1..V of an item; 0: there is no such item.

    Args:
      raw_id: as in the raw data.
      domain: name of the item's domain, needed where domains share raw ids (`item_identity="per_domain"`).

    Raises:
      ValueError: several domains have an item with this id, and none is given.
    """
    found = self._found.get(str(raw_id), 0)
    if isinstance(found, int):
      return found
    by_domain = {self._domain_names[self._domain_ids[item - 1] - 1]: item for item in found}
    if domain is None:
      raise ValueError(f"raw id {str(raw_id)!r} is an item of each of {', '.join(map(repr, by_domain))}; name a domain")
    return by_domain.get(domain, 0)
