"""The profile `paper` runs from end to end on stand-ins for its models, texts, instructions and questions.

The stand-ins lie in a local data directory under the names that the profile uses. What would take long (all
windows, two epochs, thousands of instructions) is made small by a file of own profiles, as a user can do it.
Two notebooks train and ask questions as they would with the real models; in the others an experiment is
loaded, scored, cut and read, but its training and its answers are made up.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import stand_ins
import torch
import yaml
from counts import put_counts
from in_process import NOTEBOOKS, execute
from stand_ins import CHATGLM, LLAMA, LLAMA_13B, VICUNA

from pruner_lib.study import measure, stages
from pruner_lib.study.profiles import load_profile
from pruner_lib.study.records import load_records, read_kept
from pruner_lib.study.results import manifest_path, results_dir

pytestmark = [pytest.mark.slow, pytest.mark.notebook]
IN_FULL = ("00_quickstart", "03_compare_methods")  # the whole way of one model; every model and method
SHORT = {"epochs": 1, "samples": 8, "batch_size": 4, "warmup_steps": 1, "cutoff": 200}
SMALL = {
    "draws": 2,
    "protect_first": 1,
    "protect_last": 1,
    "dtype": "float32",  # a CPU trains in no less
    "prompts": 2,
    "new_tokens": 8,
    "ratios": [0.0, 0.25],
    "evaluation": {"windows": 4, "tasks": ["piqa"], "limit": 4},
    "short_evaluation": {"windows": 2},
    "calibration": {"samples": 3, "length": 24},
    "calibration_study": {
        "samples": [1, 3], "lengths": [16, 24], "reference_samples": 8, "windows": 2,
        "probes": 6, "probe_samples": 2,
    },
    "recovery": SHORT | {"samples": 16, "keep_at": [1, 2]},
    "short_recovery": SHORT | {"keep_at": [1], "at": 1},
    "recovery_study": {
        "keep_at": [1, 2], "answer_at": [2], "samples": [8, 16], "draws": 1, "module_samples": 8, "few": 4,
        "watch": [1], "held_out": 8, "batch_size": 4, "warmup_steps": 1,
    },
    "method_study": {
        "methods": ["random", "l2", "element1", "channel"], "recovered": {"element1": 1},
        "limit": 4, "answer_draws": 1,
    },
    "sweep": {
        "layer_draws": 1, "group_draws": 1, "answering": ["element1"], "recovered": {"element1": 1},
        "half_protected": [1, 0],
    },
    "after": {"samples": [2, 4], "length": 24, "draws": 1},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """Point the study at the stand-ins, and make the profile small."""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "own.yaml").write_text(yaml.safe_dump({"paper": SMALL}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNER_LIB_DATA", str(stand_ins.build(folder / "data")))
        patch.setenv("PRUNER_LIB_PROFILES", str(folder / "own.yaml"))
        patch.chdir(folder)
        put_counts(results_dir("paper", folder / "made up"))
        yield folder


def untrained(model, tokenizer, examples, *, at=None, **settings):
    """Stand in for a training: scale the last matrix a little, by the number of its steps."""
    per_epoch = math.ceil(len(examples) / settings["batch_size"])
    last = at or settings["steps"] or per_epoch * settings["epochs"]
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1 - last / 100)
    rows = [
        {"step": n, "loss": 3.0 - n / 100, "seconds": 1.0 * n, "tokens": 100 * n} for n in range(last + 1)
    ]
    return SimpleNamespace(model=model, history=rows)


def unanswered(model, tokenizer, tasks, limit=None, **settings):
    """Stand in for the questions of tasks whose files are there: every second answer is right."""
    for task in tasks:
        assert (Path(os.environ["PRUNER_LIB_DATA"]) / f"tasks/{task}.jsonl").is_file()
    score = SimpleNamespace(value=0.5, stderr=0.25, n=4, correct=(1, 0, 1, 0))
    score.protocol = {"metric": "acc", "limit": limit}
    return dict.fromkeys(tasks, score)


def test_small_profile_still_names_the_papers_models_and_texts():
    profile = load_profile("paper")
    assert profile.model == LLAMA and {VICUNA, LLAMA_13B, CHATGLM} <= set(profile.method_study.models)
    assert profile.evaluation.texts == ("wikitext2", "ptb") and profile.recovery.corpus == "alpaca"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_in_the_paper_profile(path, place, capsys, monkeypatch):
    in_full = path.stem in IN_FULL
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(place / ("measured" if in_full else "made up")))
    if not in_full:
        monkeypatch.setattr(stages, "recover", untrained)
        monkeypatch.setattr(measure, "zero_shot", unanswered)
    execute(path, profile="paper")
    manifest = read_kept(manifest_path(path.stem, "paper"))
    assert manifest["status"] == "done" and manifest["outputs"]


def test_half_is_cut_between_the_layers_that_the_paper_protects_then(place):
    made = [record.experiment for record in load_records(results_dir("paper", place / "made up"))]
    halved = [one for one in made if one.ratio > 0.4 and one.target == "parameters" and one.model == LLAMA]
    ends = {one.granularity: (one.protect_first, one.protect_last) for one in halved if one.criterion == "l2"}
    assert ends == {"block": (1, 0)}
    assert {one.protect_first for one in halved if one.granularity == "channel"} <= {0}


def test_every_model_of_the_paper_was_pruned_and_measured_from_a_texts_beginning(place):
    records = load_records(results_dir("paper", place / "measured"))
    pruned = [record for record in records if record.experiment.stage == "pruned"]
    assert {record.experiment.model for record in pruned} >= {LLAMA, LLAMA_13B, VICUNA, CHATGLM}
    for record in pruned:
        assert 0 < record.plan["sparsity"] < 1 and all(m.value == m.value for m in record.metrics.values())
        begins = {metric.protocol["bos"] for metric in record.metrics.values() if "bos" in metric.protocol}
        assert begins <= {"text"}
