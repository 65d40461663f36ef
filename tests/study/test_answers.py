"""What a record keeps of questions: accuracy, probability of the right answer, bits per byte, by question."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from made_questions import row

from pruner_lib import load_model
from pruner_lib.data.windows import calibration_ids
from pruner_lib.evaluation.zero_shot import zero_shot
from pruner_lib.method.depth import block_influence
from pruner_lib.study import Study, load_profile
from pruner_lib.study.records import MetricName

TINY = load_profile("tiny")
DRAWN = replace(TINY.evaluation, texts=("tiny",), windows=6, tasks=("piqa",), limit=5, seed=0)


@pytest.fixture
def study(tmp_path, monkeypatch):
    questions = tmp_path / "data" / "tasks" / "piqa.jsonl"
    questions.parent.mkdir(parents=True)
    questions.write_text("".join(json.dumps(row("piqa", number)) + "\n" for number in range(8)))
    monkeypatch.setenv("PRUNER_LIB_DATA", str(tmp_path / "data"))
    return Study("tiny", tmp_path / "results")


def test_drawn_questions_give_what_the_library_gives(study):
    score = zero_shot(*load_model("tiny"), ("piqa",), 5, seed=0)["piqa"]
    whole = study.run(TINY.dense(evaluation=DRAWN)).metrics
    right = study.run(TINY.dense(evaluation=replace(DRAWN, texts=(), right_answers_only=True))).metrics
    text, accuracy, p_right, bits = (
        MetricName("perplexity", "tiny", 16),
        *(MetricName(kind, "piqa") for kind in ("accuracy", "p_right", "bits_per_byte")),
    )
    assert list(whole) == [text, accuracy, p_right] and list(right) == [bits]
    wanted = {accuracy: score.correct, p_right: score.p_right, bits: score.bits_per_byte}
    for name, values in wanted.items():
        metric = (whole | right)[name]
        assert metric.values == pytest.approx(values, abs=1e-4) and metric.n == 5
        assert metric.value == pytest.approx(np.mean(values)) and metric.protocol["seed"] == 0
        assert metric.stderr == pytest.approx(np.std(values, ddof=1) / 5**0.5)
    assert whole[text].n == 6 and whole[text].protocol["seed"] == 0
    assert whole[text].protocol["stride"] == "one window an article"


def test_first_questions_keep_what_older_records_hold(study):
    first = replace(DRAWN, texts=(), seed=None)
    record = study.run(TINY.dense(evaluation=first))
    assert list(record.metrics) == [MetricName("accuracy", "piqa")]
    assert "seed" not in record.metrics[MetricName("accuracy", "piqa")].protocol


def test_layers_go_by_influence_or_every_second_one(study):
    few = replace(TINY.evaluation, texts=("tiny",), windows=2)
    how = {"granularity": "layer", "ratio": 0.5, "evaluation": few}
    found = {one: study.run(TINY.experiment(criterion=one, **how)) for one in ("influence", "alternate")}
    model, tokenizer = load_model("tiny")
    ids = calibration_ids("tiny", tokenizer, samples=4, length=16)
    wanted = int(block_influence(model, ids).argmax())
    assert found["influence"].plan["layers_kept"] == [wanted] and found["alternate"].plan["layers_kept"] == [
        0
    ]
    with pytest.raises(ValueError, match="criterion 'influence' ranks layers: granularity should be 'layer'"):
        TINY.experiment(criterion="influence")
