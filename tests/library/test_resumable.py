"""Adapters of steps on the way are kept: each is that of the step, and a killed run keeps the same."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from test_recovery import EXAMPLES, QUICK, Stop, logits, make, one_thread, score, without_time

from pruner_lib.models.load import tiny_tokenizer
from pruner_lib.recovery.recover import recover

__all__ = ["one_thread"]
KEEP = {"keep_at": [2, 4], **QUICK}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def kept(tokenizer, tmp_path_factory):
    """A run with two adapters on the way: its folder, and the logits at each step, seen in the loop."""
    folder, seen = tmp_path_factory.mktemp("kept"), {}

    def watch(model):
        seen[len(seen)] = copy.deepcopy(logits(model))
        return {}

    done = recover(make(), tokenizer, EXAMPLES, output_dir=folder, evaluate=watch, evaluate_at=[2, 4], **KEEP)
    return folder, {0: seen[0], 2: seen[1], 4: seen[2], 6: seen[3]}, done


def test_model_at_a_step_is_the_one_that_training_had_there(tokenizer, kept):
    folder, seen, done = kept
    arguments = {"output_dir": folder, "evaluate": Stop(1), "evaluate_at": [2, 4], **KEEP}
    for step in (2, 4, 6):
        found = recover(make(), tokenizer, EXAMPLES, at=step, **arguments)
        assert torch.allclose(logits(found.model), seen[step], atol=1e-5)
        assert without_time(found.history) == without_time(done.history)[: step + 1]
    merged = recover(make(), tokenizer, EXAMPLES, at=2, merge=True, **arguments)
    assert torch.allclose(logits(merged.model), seen[2], atol=1e-4)
    assert not torch.allclose(seen[2], seen[6], atol=1e-3) and not torch.allclose(seen[2], seen[0], atol=1e-3)


def test_kept_adapter_is_a_standard_one(kept):
    folder, seen, _ = kept
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter",
        "adapter-2",
        "adapter-4",
        "recovery.json",
    ]
    loaded = PeftModel.from_pretrained(make(), folder / "adapter-4").eval()
    assert torch.allclose(logits(loaded), seen[4], atol=1e-5)


def test_step_that_a_fresh_run_passed_is_given_too(tokenizer, tmp_path, kept):
    found = recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, at=2, **KEEP)
    assert torch.allclose(logits(found.model), kept[1][2], atol=1e-5)
    assert found.adapter_path == tmp_path / "adapter-2" and found.history[-1]["step"] == 2


@pytest.mark.parametrize("n", [2, 3, 4])  # after step 2, after step 4, at the end
def test_interrupted_run_keeps_the_same_adapters(tokenizer, tmp_path, kept, n):
    arguments = {"output_dir": tmp_path, "evaluate_at": [2, 4], "save_steps": 3, **KEEP}
    with pytest.raises(KeyboardInterrupt):
        recover(make(), tokenizer, EXAMPLES, evaluate=Stop(n), **arguments)
    (tmp_path / "adapter-4").mkdir(exist_ok=True)  # written by a process that died before its checkpoint
    recover(make(), tokenizer, EXAMPLES, evaluate=score, **arguments)
    for name in ("adapter-2", "adapter-4", "adapter"):
        weights = [folder / name / "adapter_model.safetensors" for folder in (tmp_path, kept[0])]
        assert weights[0].read_bytes() == weights[1].read_bytes(), name
    assert not list(tmp_path.glob("checkpoint-*"))


def test_step_that_is_not_kept_is_refused_before_training(tokenizer, tmp_path):
    for change, message in [
        ({"at": 3}, r"at=3: no adapter is kept there, only at \[2, 4, 6\]"),
        ({"keep_at": [0]}, r"keep_at=\[0\]: steps from 1 to 6"),
        ({"keep_at": [7]}, r"keep_at=\[7\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path / "out", **KEEP | change)
    assert not (tmp_path / "out").exists()
