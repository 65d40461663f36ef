"""A model is loaded, cut and saved in the memory of one: seen by the system, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pruner_lib import discover, estimate, load_model, prune_, save_model, select
from pruner_lib.evaluation import meters
from pruner_lib.models.tiny import tiny_tokenizer
from tests.benchmarks.process import in_fresh_process
from tests.benchmarks.shapes import random_model, weights_mb

pytestmark = pytest.mark.slow
SIZE = "20x640"  # 263 MiB in bfloat16, 185 of them in the layers
SHARD = "40MB"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint in several shards."""
    made = tmp_path_factory.mktemp("sharded")
    random_model(SIZE).save_pretrained(made / "dense", max_shard_size=SHARD)
    tiny_tokenizer().save_pretrained(made / "dense")
    assert len(list((made / "dense").glob("*.safetensors"))) > 3
    return made


def live(folder: str, way: str) -> dict[str, float]:
    """Load, cut and save a model; give the highest resident memory of each step, MiB above the start."""
    from transformers import AutoModelForCausalLM

    tiny, _ = load_model("tiny")  # everything that has to be imported is
    prune_(tiny, plan_of(tiny)[0])
    start, peaks = fresh(), {}
    if way == "ours":
        model, tokenizer = load_model(f"{folder}/dense", dtype=torch.bfloat16)
    else:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(f"{folder}/dense", dtype=torch.bfloat16), None
        model(torch.zeros(1, 2, dtype=torch.int64))  # maps its weights only when they are used
    peaks["load"], peaks["weights"] = meters.peak_mb() - start, weights_mb(model)
    plan, axes = plan_of(model)
    fresh()
    prune_(model, plan, axes=axes)
    peaks["cut"], peaks["left"] = meters.peak_mb() - start, weights_mb(model)
    peaks["held"] = fresh() - start
    save_model(model, tokenizer, f"{folder}/pruned-{way}")
    return peaks | {"save": meters.peak_mb() - start}


def plan_of(model):
    axes = discover(model)
    return select(axes, estimate(model, axes, criterion="random"), ratio=0.5), axes


def fresh() -> float:
    """Let the peak count from here; give what is held, MiB."""
    return meters.meter("cpu")[0]


def test_load_cut_and_save_hold_one_copy(folder):
    seen = in_fresh_process(
        "tests.method.test_without_doubling:live", {"folder": str(folder), "way": "ours"}
    )[0]
    assert seen["left"] < 0.8 * seen["weights"], "something worth cutting"
    assert 0.9 < seen["load"] / seen["weights"] < 1.3, "read into memory, not mapped"
    assert seen["cut"] < 1.15 * seen["weights"], "each old weight goes before the next is cut"
    assert seen["held"] < 1.15 * seen["left"], "afterwards only the smaller model is held"
    assert seen["save"] < 1.3 * seen["left"]


def test_files_that_stay_mapped_would_hold_more(folder):
    seen = in_fresh_process(
        "tests.method.test_without_doubling:live", {"folder": str(folder), "way": "mapped"}
    )[0]
    assert seen["cut"] > 1.15 * seen["weights"] and seen["held"] > 1.15 * seen["left"]
