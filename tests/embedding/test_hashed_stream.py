"""A long stream of distinct 64-bit ids, hashed into a small table that is trained on it."""

import numpy as np
from programs import hashed_stream


def test_a_million_ids_load_all_rows_evenly_and_regular_ones_are_learned():
  found = hashed_stream.run(1_000_000, chunk=25_000, num_rows=1 << 14, trained=500)
  assert found["padding"] == 0  # No id is taken for padding.
  assert max(map(abs, found["uneven"])) < 4
  assert found["right"] >= 252 and found["sharing_both_rows"] == 0


def test_the_ids_of_the_stream_are_distinct_and_of_64_bits():
  ids = hashed_stream.stream(3_000_000_000, 100_000)
  assert len(np.unique(ids)) == 100_000
  assert np.mean(np.abs(ids.astype(float)) > 2**40) > 0.99


def test_ids_whose_high_words_are_dropped_are_not_learned(monkeypatch):
  def low_word(wide, fold=hashed_stream.fold_id):
    return fold(wide) * np.array([1, 0], np.uint32)

  monkeypatch.setattr(hashed_stream, "fold_id", low_word)
  found = hashed_stream.run(2_000, chunk=100, num_rows=1 << 14, trained=100)
  assert found["right"] < 160 and found["sharing_both_rows"] == 255
