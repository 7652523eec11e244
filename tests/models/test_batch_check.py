"""A batch that a model would read wrongly is refused with field, place and reason."""

import jax
import numpy as np
import pytest

import jaxrec
from jaxrec.data.batches.training import TrainingBatches, TrainingOptions

SIZES = dict(num_items=9, num_domains=2, width=4, max_positions=3)


def good():
  """Two sequences in the first row, one in the second."""
  batch = jaxrec.next_item_batch(
    np.array([[1, 2, 3, 0], [4, 0, 0, 0]]), timestamp=np.array([[5, 7, 1, 0], [3, 0, 0, 0]])
  )
  return batch.replace(sequence_id=np.array([[1, 1, 2, 0], [1, 0, 0, 0]]), position=np.array([[0, 1, 0, 0], [0] * 4]))


def changed(field, row, column, value, dtype=np.int64):
  array = np.array(getattr(good(), field), dtype)
  array[row, column] = value
  return good().replace(**{field: array})


def test_a_good_batch_is_returned():
  batch = good()
  assert jaxrec.check_batch(batch, jaxrec.SASRec(**SIZES)) is batch
  assert jaxrec.check_batch(batch) is batch


@pytest.mark.parametrize("task", ["next_item", "masked_item"])
def test_batches_of_the_pipeline_are_good(task):
  data = jaxrec.synthetic_data(num_users=20, num_items=24)
  options = TrainingOptions(max_length=16, row_length=32, rows_per_batch=4, task=task, mask_probability=0.5)
  model = {"next_item": jaxrec.SASRec, "masked_item": jaxrec.BERT4Rec}[task]
  jaxrec.check_batch(TrainingBatches(data, options)[0], model(num_items=24, num_domains=2, width=4, max_positions=17))


@pytest.mark.parametrize(
  ("batch", "message"),
  [
    (changed("item_id", 0, 1, 10), r"batch.item_id\[0, 1\] = 10 is outside 0..9: the model has num_items=9"),
    (changed("item_id", 0, 1, -1), r"batch.item_id\[0, 1\] = -1 must not be negative"),
    (changed("item_id", 0, 1, 2.0, np.float32), "batch.item_id.dtype=float32 must be an integer dtype"),
    (changed("sequence_id", 0, 1, 1, np.float32), "batch.sequence_id.dtype=float32"),
    (changed("target_item", 0, 0, 11), r"batch.target_item\[0, 0\] = 11 is outside 0..9"),
    (changed("position", 0, 1, 3), r"batch.position\[0, 1\] = 3 is outside 0..2: the model has max_positions=3"),
    (changed("domain_id", 1, 0, 3), r"batch.domain_id\[1, 0\] = 3 is outside 1..2: the model has num_domains=2"),
    (changed("domain_id", 1, 0, 0), r"batch.domain_id\[1, 0\] = 0 is outside 1..2"),
    (changed("sequence_id", 1, 0, 0), r"batch.sequence_id\[1, 0\] = 0 is padding, but .* count from 1"),
    (changed("sequence_id", 0, 3, 1), r"row 0: the events of a sequence must be neighbours, they are \[1, 2, 1\]"),
    (changed("timestamp", 0, 1, 4), r"batch.timestamp\[0, 1\] = 4 is earlier than the event before it"),
    (changed("timestamp", 0, 2, 1_700_000_000_000), r"1700000000000 is no time in seconds: milliseconds\?"),
    (changed("target_time", 0, 2, 1_700_000_000_000), r"batch.target_time\[0, 2\] = .*milliseconds\?"),
    (changed("target_weight", 0, 0, np.nan, np.float32), r"batch.target_weight\[0, 0\] = nan must be finite"),
    (good().replace(position=np.zeros((2, 3), np.int32)), r"batch.position.shape=\(2, 3\) must be \[B, N\]"),
    (good().replace(item_id=np.zeros(4, np.int32)), r"batch.item_id.shape=\(4,\) must be \[B, N\]"),
  ],
)
def test_what_a_model_would_misread_is_refused(batch, message):
  with pytest.raises(ValueError, match=message):
    jaxrec.check_batch(batch, jaxrec.SASRec(**SIZES))


@pytest.mark.unchecked_shapes
@pytest.mark.parametrize("batch", [{"item_id": [[1]]}, np.array([[1]])])
def test_something_else_than_a_batch_is_refused_with_how_to_make_one(batch):
  with pytest.raises(ValueError, match="it must be a SequenceBatch: jaxrec.next_item_batch"):
    jaxrec.check_batch(batch)


def test_histories_longer_than_the_divisor_of_hstu_are_refused():
  model = jaxrec.HSTU(num_items=9, width=4, max_positions=8, attention_length=1)
  with pytest.raises(ValueError, match="batch has histories of 2 events; the model has attention_length=1"):
    jaxrec.check_batch(good(), model)


def test_a_traced_batch_is_refused():
  with pytest.raises(ValueError, match="batch has no values while jit traces"):
    jax.jit(jaxrec.check_batch)(good())
