"""A training step compiled for devices that are not here; that it compiles is shown in tests/pallas_kernels."""

import pytest

from jaxrec.train import click_task
from jaxrec.train.config import default_config
from jaxrec.train.target_step import compile_training_step


def test_a_step_of_another_task_and_an_unknown_target_are_refused():
  with pytest.raises(ValueError, match="config.task='click_through' must be 'sequential'"):
    compile_training_step(click_task.default_config(), "v5e:2x2")
  with pytest.raises(ValueError, match="target='abacus' is not one of h100"):
    compile_training_step(default_config(), "abacus")
