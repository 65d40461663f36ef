"""Known answers of the reference code (commit 128a07d) on an MHA twin of SmolLM2-135M-Instruct.

In the twin the rows of every KV head are repeated for its three query heads, so that there are nine of each
and the logits are those of the original. `known_answers.json` lists what the reference removed from layers
4 to 27 of 30.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pruner_lib import discover, load_model, prune_, select
from pruner_lib.data.windows import calibration_ids, text_ids
from pruner_lib.evaluation.perplexity import perplexity_result
from pruner_lib.method.importance import aggregate, estimate_members

pytestmark = pytest.mark.slow
KNOWN = json.loads((Path(__file__).parents[1] / "support" / "known_answers.json").read_text())
STORED = json.loads((Path(__file__).parents[1] / "support" / "window_losses.json").read_text())
EVERY = 8  # one window in so many is measured again
WINDOW, MEAN = 0.01, 1e-3  # nats by which the loss of a window, and the mean of them, may differ
FLIPS = 2  # MLP channels of a whole model whose order may follow the order of summation


@pytest.fixture(scope="module")
def twin_and_tokenizer():
    """That it computes what the original does is seen in `test_models`."""
    return load_model("smollm2-135m-mha")


@pytest.fixture(scope="module")
def axes(twin_and_tokenizer):
    return discover(twin_and_tokenizer[0])


@pytest.fixture(scope="module")
def plans(twin_and_tokenizer, axes):
    twin, tokenizer = twin_and_tokenizer
    block = axes.of_kind("attention", "mlp")
    ids = calibration_ids("bookcorpus", tokenizer, samples=10, length=64)
    members = estimate_members(twin, block, ids, criteria=list(KNOWN))
    return {
        name: select(
            axes, aggregate(block, members[name], "sum"), ratio=0.25, protect_first=4, protect_last=2
        )
        for name in KNOWN
    }


def _removed(plan, axis: str) -> set[int]:
    return set(range(plan.n_groups[axis])) - set(plan.keep[axis].tolist())


@pytest.mark.parametrize("name", KNOWN)
def test_kept_groups_are_those_of_the_reference(plans, name):
    flips = 0
    for layer in range(30):
        known = KNOWN[name]["removed"].get(str(layer), {"attention": [], "mlp": []})
        assert _removed(plans[name], f"layers.{layer}.attention") == set(known["attention"])
        flips += len(_removed(plans[name], f"layers.{layer}.mlp") - set(known["mlp"]))
    assert flips <= FLIPS


def test_criteria_choose_differently(plans):
    """The opposite: the known answers of one criterion are not those of another."""
    differing = {
        layer
        for layer in range(4, 28)
        if not torch.equal(
            plans["l2"].keep[f"layers.{layer}.attention"], plans["element1"].keep[f"layers.{layer}.attention"]
        )
    }
    assert len(differing) > 12


def test_taylor_keeps_what_magnitude_destroys(twin_and_tokenizer, plans):
    """The published number to its fourth digit, over 128 windows; every eighth of them is measured here.

    The losses of all windows are a property of these weights, this text and what the reference removed: they
    lie in `window_losses.json`, and any other cut, text or loss is seen on the windows that are measured.
    """
    twin, tokenizer = twin_and_tokenizer
    ids = text_ids("wiki", tokenizer, length=128, windows=128)
    assert hashlib.sha256(ids.numpy().tobytes()).hexdigest() == STORED["sha256_of_ids"]
    some = ids[::EVERY]  # (16, 128)
    measured = {"dense": perplexity_result(twin, some[:4]).nll}  # (windows,) mean loss of a token
    for name, n in {"element1": 16, "element2": 4, "l2": 4}.items():
        pruned = prune_(copy.deepcopy(twin), plans[name])
        assert sum(p.numel() for p in pruned.parameters()) == KNOWN[name]["parameters_after"]
        measured[name] = perplexity_result(pruned, some[:n]).nll
    stored = {name: np.array(STORED[name]) for name in ("element1", "element2")}
    for name, losses in stored.items():
        again = measured[name]
        assert again == pytest.approx(losses[::EVERY][: len(again)], abs=WINDOW), name
        assert again.mean() == pytest.approx(losses[::EVERY][: len(again)].mean(), abs=MEAN), name
    assert np.exp(stored["element1"].mean()) == pytest.approx(KNOWN["element1"]["perplexity_after"], rel=1e-3)

    def ratio(a: str, b: str) -> float:
        return np.exp(measured[a][:4].mean() - measured[b][:4].mean())

    assert ratio("element1", "l2") < 1 / 3 and ratio("element2", "l2") < 1 / 3
    assert ratio("dense", "element1") < 1
    both = stored["element1"][: len(stored["element2"])].mean() - stored["element2"].mean()
    assert np.exp(both) == pytest.approx(70.2 / 70.15, rel=0.05)
