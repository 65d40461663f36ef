"""The prediction is what a process then takes, and what would not fit is refused with a way that does."""

from __future__ import annotations

import re

import pytest
import torch
from families import build, tokens
from transformers import AutoModelForCausalLM, LlamaConfig

from pruner_lib import discover, estimate
from pruner_lib.evaluation.meters import meter
from pruner_lib.method import predict_memory as module
from pruner_lib.method.importance import estimate_members
from pruner_lib.method.predict_memory import predict_memory
from tests.benchmarks.process import in_fresh_process

ALL = ["vector", "element1", "element2", "mixed"]
LARGE = dict(hidden_size=768, intermediate_size=2048, num_attention_heads=12, vocab_size=12000)
SMALL = dict(hidden_size=640, intermediate_size=1728, num_attention_heads=10, vocab_size=9000)
CASES = {  # criteria, samples, micro_batch, checkpointing
    "all at once": (ALL, 8, None, False),
    "summed over micro-batches": (["vector"], 8, 4, False),
    "recomputed": (["element1"], 8, 4, True),
}


def measured() -> dict[str, list[float]]:
    """MiB predicted, held before, and at most during each pass; run in a process of its own."""
    rows = {}
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=8, **LARGE)).bfloat16()
    axes = discover(model)
    for number in range(3):
        held, peak = meter("cpu")
        estimate_members(model, axes, criteria=["l1", "l2"])
        rows[f"magnitudes {number}"] = [0, held, peak()]
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=8, **SMALL)).eval()
    axes = discover(model).of_kind("attention", "mlp")
    cut = {m.parameter for axis in axes.values() for m in axis.members}
    for name, (criteria, samples, *way) in CASES.items():
        held, peak = meter("cpu")
        predicted = predict_memory(model, samples, 64, criteria, *way, parameters=cut)
        ids = torch.randint(0, SMALL["vocab_size"], (samples, 64))
        estimate_members(model, axes, ids, criteria=criteria, micro_batch=way[0], checkpointing=way[1])
        rows[name] = [predicted.total / 2**20, held, peak()]
    return rows


@pytest.fixture(scope="module")
def passes() -> dict[str, list[float]]:
    return in_fresh_process("tests.method.test_budget:measured", {})[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_prediction_is_within_15_percent_of_the_peak(passes, name):
    predicted, held, measured = passes[name]
    assert predicted == pytest.approx(measured, rel=0.15)
    assert measured - held > 30, "something to predict"


@pytest.mark.slow
def test_magnitudes_of_slices_leave_no_holes(passes):
    """285 MiB of float32 weights are made slice by slice; what was freed of earlier slices is not kept."""
    for number in range(3):
        _, held, peak = passes[f"magnitudes {number}"]
        assert peak - held < 110


def test_activations_are_what_autograd_keeps():
    """By hand, for one linear model: what grows is proportional to the samples, and recomputing saves."""
    model = build("llama-mha", num_hidden_layers=6)
    one, ten = (predict_memory(model, n, 32, ALL) for n in (1, 10))
    assert ten.activations == 10 * one.activations and one.kept == ten.kept == 0
    halves = predict_memory(model, 10, 32, ALL, micro_batch=5)
    assert halves.activations == ten.activations // 2 and halves.kept > 0
    assert predict_memory(model, 10, 32, ["vector", "element2"], micro_batch=5).kept == 0
    recomputed = predict_memory(model, 10, 32, ALL, checkpointing=True)
    assert recomputed.activations < ten.activations / 2


def test_counting_needs_no_memory_and_leaves_the_model_alone():
    model = build("llama-tied").train()
    flags = [p.requires_grad for p in model.parameters()]
    predict_memory(model, 3, 8, ALL)
    assert model.training and flags == [p.requires_grad for p in model.parameters()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["element1", "vector"])
def test_what_would_not_fit_is_refused_with_a_setting_that_does(monkeypatch, criterion):
    model, ids = build("llama-mha", num_hidden_layers=8), tokens(32, 60)
    axes = discover(model).of_kind("attention", "mlp")
    wanted = {m.parameter for axis in axes.values() for m in axis.members}

    def extra(*way):
        return predict_memory(model, 32, 60, [criterion], *way, parameters=wanted).extra

    available = (extra(None, False) + extra(4, False) + 4 * min(extra(8, True), extra(2, False))) // 6
    monkeypatch.setattr(module, "available_bytes", lambda device: available)
    with pytest.raises(
        ValueError, match=r"scoring 32 samples of 60 tokens needs .* GB are available"
    ) as error:
        estimate(model, axes, ids, criterion=criterion)
    size, recompute = re.search(r"try micro_batch=(\d+|None), checkpointing=(\w+)", str(error.value)).groups()
    way = {"micro_batch": None if size == "None" else int(size), "checkpointing": recompute == "True"}
    assert extra(*way.values()) <= available < extra(None, False)
    scores = estimate(model, axes, ids, criterion=criterion, **way)
    monkeypatch.setattr(module, "available_bytes", lambda device: None)
    for name, whole in estimate(model, axes, ids, criterion=criterion).items():
        torch.testing.assert_close(scores[name], whole)


def test_what_can_never_fit_says_so(monkeypatch):
    model = build("llama-mha")
    monkeypatch.setattr(module, "available_bytes", lambda device: 1000)
    axes = discover(model)
    with pytest.raises(
        ValueError, match="a machine with more memory: even with micro_batch=1, checkpointing=True"
    ):
        estimate_members(model, axes, tokens(4, 8), criteria=["mixed"])
    assert estimate(model, axes, criterion="l1")  # needs no pass


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="lies on the meta device"):
        predict_memory(build("llama-mha").to("meta"), 2, 8, ALL)
