"""What the tests of the study share: a study of the tiny model, no figures left open."""

from __future__ import annotations

import pytest
from matplotlib import pyplot as plt

from pruner_lib.study import Study


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def study(tmp_path):
    return Study("tiny", tmp_path)
