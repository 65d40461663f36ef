"""Where a model runs: found by name, and spread by accelerate; what is not in memory is not cut."""

from __future__ import annotations

import accelerate
import pytest
import torch

from pruner_lib import discover, estimate, load_model, mask_, perplexity, prune_, select
from pruner_lib.method.offload import check_in_memory, offloaded
from pruner_lib.models.devices import find_device, in_place

IDS = torch.randint(4, 250, (3, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def in_cpu_memory():
    """A model as accelerate leaves one whose weights wait in CPU memory for their turn."""
    model, _ = load_model("tiny")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def plan_of(model):
    axes = discover(model)
    return select(axes, estimate(model, axes, IDS), ratio=0.5)


def test_auto_takes_cuda_when_there_is_one(monkeypatch):
    for there, wanted in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert find_device("auto") == wanted
    assert find_device("cpu") == "cpu"
    for wrong in ("cuda:1", "gpu"):
        with pytest.raises(ValueError, match=f"device must be auto, cpu or, with CUDA, .*, got '{wrong}'"):
            find_device(wrong)


def test_a_checkpoint_loads_onto_a_device_by_a_map(checkpoint):
    expected = load_model(checkpoint)[0](IDS).logits
    model, _ = load_model(checkpoint, device_map={"": "cpu"})
    assert torch.equal(model(IDS).logits, expected) and not offloaded(model)
    assert torch.equal(load_model(checkpoint, device_map="auto")[0](IDS).logits, expected)
    assert torch.equal(load_model(checkpoint, device="auto")[0](IDS).logits, expected)
    with pytest.raises(ValueError, match="tiny fits every device"):
        load_model("tiny", device_map="auto")


def test_a_model_that_lies_partly_on_disk_is_evaluated_but_not_cut(checkpoint, tmp_path):
    whole, _ = load_model(checkpoint)
    spread = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    spread |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    model, _ = load_model(checkpoint, device_map=spread)
    assert len(offloaded(model)) == 9 and all(".1." in name for name in offloaded(model))
    assert perplexity(model, IDS) == pytest.approx(perplexity(whole, IDS), rel=1e-6)
    for cut in (prune_, mask_):
        with pytest.raises(ValueError, match="9 weights, such as model.layers.1.*offloaded.*in_place"):
            cut(model, plan_of(whole))
    with pytest.raises(ValueError, match="'model.layers.1', are on disk"), in_place(model):
        pass


def test_weights_in_cpu_memory_are_scored_and_cut_in_place(in_cpu_memory):
    model, whole = in_cpu_memory, load_model("tiny")[0]
    assert len(offloaded(model)) == len(list(model.parameters()))
    expected = estimate(whole, discover(whole), IDS)
    with in_place(model):
        check_in_memory(model)
        found = estimate(model, discover(model), IDS)
        plan = select(discover(model), found, ratio=0.5)
        prune_(model, plan)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    prune_(whole, plan)
    assert torch.equal(model(IDS).logits, whole(IDS).logits)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in whole.parameters())


def test_a_model_whose_weights_all_wait_elsewhere_is_evaluated(in_cpu_memory):
    expected = perplexity(load_model("tiny")[0], IDS)
    assert perplexity(in_cpu_memory, IDS) == pytest.approx(expected, rel=1e-6)
    assert len(offloaded(in_cpu_memory)) == len(list(in_cpu_memory.parameters()))


def test_weights_that_wait_elsewhere_are_no_weights_to_cut(in_cpu_memory):
    plan = plan_of(load_model("tiny")[0])
    with pytest.raises(ValueError, match="offloaded to CPU memory or disk"):
        prune_(in_cpu_memory, plan)
    with pytest.raises(ValueError, match="offloaded to CPU memory or disk"):
        mask_(in_cpu_memory, plan)
    with pytest.raises(ValueError, match="offloaded to CPU memory or disk"):
        estimate(in_cpu_memory, discover(in_cpu_memory), IDS)


def test_a_model_without_weights_may_be_cut():
    whole = load_model("tiny")[0]
    plan = plan_of(whole)
    empty = prune_(load_model("tiny")[0].to("meta"), plan)
    assert sum(p.numel() for p in empty.parameters()) < sum(p.numel() for p in whole.parameters())


def test_tied_weights_stay_tied_in_place():
    model, _ = load_model("tiny")
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with in_place(model):
        assert model.lm_head.weight is model.model.embed_tokens.weight
