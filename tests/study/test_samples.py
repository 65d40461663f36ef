"""Texts are made once for a model, however it is measured, and shown without harm side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pruner_lib.data.windows import text_ids
from pruner_lib.evaluation.perplexity import PROMPTS, Sample, perplexity
from pruner_lib.study import load_profile
from pruner_lib.study.texts import samples_of, side_by_side

TINY = load_profile("tiny")


def test_texts_are_made_once_whatever_else_is_measured(study, monkeypatch):
    first = samples_of(study, TINY.experiment())
    assert [one.prompt for one in first] == list(PROMPTS[: TINY.prompts])
    monkeypatch.setattr(study, "model", lambda _: pytest.fail("made a model"))
    again = replace(TINY.experiment(), evaluation=replace(TINY.evaluation, windows=2))
    assert samples_of(study, again) == first
    assert len(list((study.folder / "samples").glob("*.json"))) == 1
    with pytest.raises(pytest.fail.Exception, match="made a model"):
        samples_of(study, TINY.dense())


def test_draws_and_seeds_are_texts_of_their_own(study):
    ask = TINY.experiment()
    one = samples_of(study, ask, prompts=["the dog"])
    three = samples_of(study, ask, prompts=["the dog"], draws=3)
    other = samples_of(study, ask, prompts=["the dog"], seed=5)
    assert len(three) == 3 and len({sample.text for sample in [*three, *other]}) == 4
    assert one[0].text != other[0].text


@pytest.mark.slow
def test_model_of_each_stage_writes_its_own_text_and_is_the_one_that_its_record_measured(study):
    stages = (TINY.dense(), TINY.experiment(), TINY.experiment(recovered=True))
    texts = {samples_of(study, one, prompts=["the dog"], new_tokens=24)[0].text for one in stages}
    assert len(texts) == 3
    for asked in stages:
        record = study.run(asked)
        model, tokenizer = study.model(asked)
        ids = text_ids("tiny", tokenizer, length=16, windows=4)
        assert perplexity(model, ids) == pytest.approx(record.perplexity["tiny"], rel=1e-6)
        assert sum(one.numel() for one in model.parameters()) == record.plan["parameters"]


def test_model_given_away_may_be_changed(study):
    model, _ = study.model(TINY.dense())
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    kept = study.dense("tiny").model
    assert all(weight.abs().sum() > 0 for weight in kept.parameters())


def test_table_shows_texts_beside_each_other_and_runs_no_code_of_theirs():
    samples = {
        "dense": [Sample("Say <b>", "hello <script>alert(1)</script>", 0.25, 1.0)],
        "pruned": [Sample("Say <b>", "x", 0.0, 1.0)],
    }
    html = side_by_side(samples).to_html()
    assert "&lt;script&gt;" in html and "<script>" not in html and "Say &lt;b&gt;" in html
    assert html.index("dense") < html.index("pruned") and "repeated: 25%" in html
    with pytest.raises(ValueError, match="shorter|longer|Length"):
        side_by_side(samples | {"recovered": []})
