"""The notebooks run on a model whose experts are stacked, and leave out what can't be done with them."""

from __future__ import annotations

import pytest
from families import build
from in_process import NOTEBOOKS, execute

from pruner_lib import load_model
from pruner_lib.study.results import results_dir

CHANGED = ("00", "04", "05", "09", "13", "17")  # those that look at single axes, and don't need many layers


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    """A folder with a small Mixtral and the tokenizer of the tiny model."""
    folder, (tiny, tokenizer) = tmp_path_factory.mktemp("mixtral"), load_model("tiny")
    sizes = {"hidden_size": 64, "intermediate_size": 1024, "num_local_experts": 2, "initializer_range": 0.02}
    build("mixtral", vocab_size=tiny.config.vocab_size, max_position_embeddings=512, **sizes).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize("number", CHANGED)
def test_notebook_runs_on_stacked_experts(number, mixtral, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(f"mine: {{like: tiny, model: {mixtral}}}")
    monkeypatch.setenv("PRUNER_LIB_PROFILES", str(tmp_path / "mine.yaml"))
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path / "results"))
    [path] = [path for path in NOTEBOOKS if path.stem.startswith(number)]
    execute(path, profile="mine")
    assert (results_dir("mine") / "notebooks" / f"{path.stem}.json").is_file()
