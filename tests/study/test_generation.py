"""Prompts are the paper's own for its models, and repetition is compared on the same prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import yaml
from notebook_functions import functions_of

from pruner_lib.evaluation.perplexity import Sample
from pruner_lib.study.texts import PROMPTS_FILE

RATES = {"dense": 0.1, "pruned": 0.3, "recovered": 0.12}
NAMES, DRAWS = ["a", "b", "c", "d", "e"], 3
HARD = np.random.default_rng(0).normal(0, 0.05, (len(NAMES), DRAWS))  # how repetitive a prompt is for all


def made():
    noise = np.random.default_rng(1)
    return {
        model: [
            Sample(prompt, f"{model} {i} {draw}", rate + HARD[i, draw] + noise.normal(0, 0.005), 0.9)
            for i, prompt in enumerate(NAMES)
            for draw in range(DRAWS)
        ]
        for model, rate in RATES.items()
    }


OF_11 = functions_of("11_generation")
prompts_of = OF_11.prompts_of
FRAME = OF_11.frame_of(made()).assign(draw=[*range(DRAWS)] * len(NAMES) * len(RATES))


def test_models_of_the_paper_have_their_own_prompts_and_others_take_turns():
    assert [table for table, _ in prompts_of("baffo32/decapoda-research-llama-7B-hf")] == [
        "Table 11",
        *["Table 18"] * 3,
    ]
    assert prompts_of("lmsys/vicuna-7b-v1.3")[0] == ("Table 11", "10 steps to build an ios app:")
    assert [table for table, _ in prompts_of("THUDM/chatglm-6b")][1::3] == ["Table 20", "Table 21"]
    other = prompts_of("smollm2-135m")
    assert [table for table, _ in other[:5]] == ["Table 11", "Table 18", "Table 19", "Table 20", "Table 11"]
    assert len(other) == len(set(other)) == 12 and prompts_of("smollm2-135m", 3) == other[:3]
    assert all(text.isascii() for _, text in other) and not any(
        one["prompt"].isascii()
        for one in yaml.safe_load(PROMPTS_FILE.read_text(encoding="utf-8"))["Table 21"]
    )


def test_repetition_is_compared_prompt_by_prompt():
    found = OF_11.repetition(FRAME, "repetition_rate").set_index("model")
    assert found["mean"].to_dict() == pytest.approx(
        {model: rate + HARD.mean() for model, rate in RATES.items()}, abs=0.01
    )
    pruned = found.loc["pruned"]
    assert pruned.difference == pytest.approx(0.2, abs=0.01) and pruned.difference_low > 0.15
    assert pruned.difference_high - pruned.difference_low < pruned.high - pruned.low  # what is shared cancels
    assert math.isnan(found.difference["dense"]) and (found.prompts == 5).all() and (found.draws == 3).all()
    other = OF_11.repetition(FRAME, "repetition_rate", against="pruned").set_index("model")
    assert other.difference["recovered"] < 0 and math.isnan(other.difference["pruned"])


def test_sentence_is_sure_of_itself_only_outside_the_noise():
    found = OF_11.repetition(FRAME, "repetition_rate").assign(name="m", measure="repetition_rate")
    lines = OF_11.describe(found).splitlines()
    assert len(lines) == 2 and "m, pruned: **more** repetition than dense" in lines[0]
    unsure = found.assign(difference_low=-0.1, difference_high=0.1)
    assert "neither clearly more nor less" in OF_11.describe(unsure) and "**" not in OF_11.describe(unsure)
    assert "**less** variety" in OF_11.describe(
        found.assign(measure="distinct", difference_low=-0.2, difference_high=-0.1)
    )
