"""What the tests of the study share: a study of the tiny model, a small heap, no figures left open."""

from __future__ import annotations

import gc

import pytest
import torch
from matplotlib import pyplot as plt

from pruner_lib.study import Study


@pytest.fixture(scope="session", autouse=True)
def small_heap():
    """Leave what is imported out of the garbage collections that every evaluation begins with."""
    gc.freeze()
    torch.set_num_threads(1)  # with so small a model two threads wait for each other


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def study(tmp_path):
    return Study("tiny", tmp_path)
