"""What is measured beside a record: once, of the right model, on instructions that no training saw."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from notebook_functions import functions_of

from pruner_lib import load_model
from pruner_lib.data.windows import instructions
from pruner_lib.evaluation import meters
from pruner_lib.recovery.instructions import IGNORED, encode
from pruner_lib.study import load_profile, stages

TINY = load_profile("tiny")
OF_09 = functions_of("09_recovery", run=TINY.recovery)
held_out, losses_on = OF_09.held_out, OF_09.losses_on


def race(study, experiments, repeats, warmup, tokens=16):
    own = functions_of("10_efficiency", study=study, repeats=repeats, tokens=tokens)
    return pd.DataFrame(own.race(experiments, warmup))


def test_held_out_instructions_are_seen_by_no_recovery():
    recoveries = [replace(TINY.recovery, samples=8, seed=seed) for seed in range(3)]
    rows = held_out("tiny", 4, recoveries)
    seen = [row for one in recoveries for row in instructions("tiny", samples=8, seed=one.seed)]
    assert len(rows) == 4 and not any(row in seen for row in rows)
    assert held_out("tiny", 4, recoveries) == rows != held_out("tiny", 4, recoveries[:1])
    with pytest.raises(ValueError):
        held_out("tiny", 4, [replace(TINY.recovery, samples=None)])


def test_loss_of_a_response_is_that_of_the_model_itself():
    model, tokenizer = load_model("tiny")
    examples = instructions("tiny", samples=5)
    found = losses_on(model, tokenizer, examples)
    for loss, row in zip(found, encode(examples, tokenizer), strict=True):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        assert (labels == IGNORED).any()
        with torch.no_grad():
            assert loss == pytest.approx(model(ids, labels=labels).loss.item(), rel=1e-5)
            assert loss != pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-5)


def test_losses_are_measured_once_of_each_model(study, monkeypatch):
    examples = instructions("tiny", samples=3)
    response_losses = functions_of("09_recovery", study=study, run=TINY.recovery).response_losses
    kept = replace(TINY.recovery, evaluate_at=())
    asked = [TINY.dense(), TINY.experiment(), TINY.experiment(recovery=kept)]
    asked.append(TINY.experiment(recovery=replace(kept, at=2)))
    found = [response_losses(one, examples) for one in asked]
    assert len({tuple(one) for one in found}) == 4
    model, tokenizer = study.model(asked[1])
    assert found[1] == pytest.approx(losses_on(model, tokenizer, examples), rel=1e-5)
    monkeypatch.setattr(study, "model", lambda _: pytest.fail("made a model"))
    other = replace(asked[1], evaluation=replace(TINY.evaluation, windows=2))
    assert response_losses(other, examples) == found[1]
    with pytest.raises(pytest.fail.Exception, match="made a model"):
        response_losses(asked[1], examples[:2])


def test_models_are_timed_in_turns(study, monkeypatch):
    asked = {"dense": TINY.dense(), "in 8 bits": TINY.dense(int8=True)}
    calls = []
    monkeypatch.setattr(meters, "timed", lambda call, device: calls.append(call) or len(calls) / 10)
    frame = race(study, asked, repeats=3, warmup=1)
    assert len(calls) == 8 and len(set(calls)) == 2 and calls[:2] * 4 == calls
    assert frame.groupby("model").size().to_dict() == {"dense": 3, "in 8 bits": 3}
    assert frame.seconds.tolist() == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7, 0.8])  # the first round not


def test_models_too_large_to_be_held_together_are_timed_one_by_one(study, monkeypatch):
    calls = []
    monkeypatch.setattr(stages, "KEEP_BYTES", 1)
    monkeypatch.setattr(meters, "timed", lambda call, device: calls.append(call) or 0.1)
    assert len(race(study, {"dense": TINY.dense(), "pruned": TINY.experiment()}, repeats=2, warmup=0)) == 4
    assert calls[0] == calls[1] and calls[2] == calls[3]


def test_pass_that_is_timed_runs_the_model_on_as_many_tokens(study, monkeypatch):
    model, seen = load_model("tiny")[0], []
    model.register_forward_pre_hook(lambda _, args, named: seen.append(named["input_ids"]), with_kwargs=True)
    monkeypatch.setattr(study, "model", lambda _: (model, None))
    race(study, {"dense": TINY.dense()}, repeats=2, warmup=0)
    assert [ids.shape for ids in seen] == [(1, 16)] * 2 and torch.equal(*seen)
