"""The method names no architecture and reads in eight lines; see also test_floors and test_interface."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import pruner_lib

LIBRARY = Path(pruner_lib.__file__).parent
METHOD = sorted((LIBRARY / "method").glob("*.py"))
WORDS = {"mt5", "glm", "opt", "gpt", "chatglm"} | {n for n in CONFIG_MAPPING_NAMES if len(n) > 3}


def _names_an_architecture(source: str) -> set[str]:
    """String constants and identifiers of the code (not its prose) that are the name of a model type."""
    tree = ast.parse(source)
    prose = {
        id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
    }
    words = {
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in prose
    }
    words |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)
    }
    return {w for w in words if w.lower().replace("-", "_") in WORDS}


def test_method_names_no_architecture():
    for path in METHOD:
        assert not _names_an_architecture(path.read_text()), path.name


def test_the_check_above_can_fail():
    assert len(METHOD) > 15
    assert _names_an_architecture("if config.model_type == 'llama': pass") == {"llama"}
    assert _names_an_architecture("'''llama is a model'''\nx = 1") == set()


def test_public_names_are_those_that_others_script_against():
    wanted = ["load_model", "discover", "estimate", "select", "prune_", "mask_", "recover", "perplexity"] + [
        "zero_shot",
        "save_model",
    ]
    assert set(wanted) <= set(pruner_lib.__all__)
    for name in pruner_lib.__all__:
        assert callable(getattr(pruner_lib, name)), name
    with pytest.raises(AttributeError, match="it offers"):
        pruner_lib.prune_model  # noqa: B018


def test_the_whole_method_in_eight_lines():
    from pruner_lib import discover, estimate, load_model, perplexity, prune_, select
    from pruner_lib.data.windows import calibration_ids, text_ids

    model, tokenizer = load_model("tiny")
    axes = discover(model)
    scores = estimate(
        model, axes, calibration_ids("tiny", tokenizer, samples=4, length=16), criterion="element1"
    )
    plan = select(axes, scores, ratio=0.5, granularity="block", scope="local")
    before = perplexity(model, text_ids("tiny", tokenizer, length=16, windows=4))
    prune_(model, plan)
    after = perplexity(model, text_ids("tiny", tokenizer, length=16, windows=4))
    assert after != before and plan.keep["layers.1.mlp"].dtype.is_floating_point is False
