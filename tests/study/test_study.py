"""A study measures everything once, and one that is killed ends with the records of one that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruner_lib import load_model
from pruner_lib.data import windows
from pruner_lib.evaluation.int8 import is_quantised
from pruner_lib.study import run as module
from pruner_lib.study import stages
from pruner_lib.study.records import MetricName, records_frame
from pruner_lib.study.results import results_dir
from pruner_lib.study.run import Calibration, Recovery, load_profile, model_of, plan_of, run, run_all

TINY = load_profile("tiny")
RECOVERY = Recovery(
    "tiny", samples=4, steps=3, batch_size=2, micro_batch_size=2, warmup_steps=1, evaluate_at=(1, 2)
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An own results folder, and a second text beside the built-in one."""
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    monkeypatch.setenv("PRUNER_LIB_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "story.txt").write_text("Once there was a small network that lost a head. " * 20)
    torch.set_num_threads(1)  # with so small a model two threads wait for each other
    stages._kept.clear()  # other tests of this process may have loaded the model
    return tmp_path / "tiny"


def asked(**changes):
    evaluation = replace(TINY.evaluation, texts=("tiny", "story"))
    return TINY.experiment(evaluation=evaluation, **changes)


def outcome(record):
    """What of a record must not depend on when and how often it was tried."""
    history = [{name: value for name, value in row.items() if name != "seconds"} for row in record.history]
    return record.experiment, record.plan, record.metrics, history


def test_run_gives_a_record_with_everything_that_makes_its_numbers_comparable():
    record = run(asked(), profile="tiny")
    metric = record.metrics[MetricName("perplexity", "tiny", 16)]
    assert set(metric.protocol) == {
        "metric",
        "corpus_hash",
        "window",
        "stride",
        "bos",
        "tokenizer_hash",
        "dtype",
    }
    assert metric.n == len(metric.values) == 4 and metric.stderr > 0
    assert 0 < record.plan["sparsity"] < 0.5 and set(record.plan["kept"]) == set(
        plan_of(asked(), profile="tiny").keep
    )
    assert all(kept <= there for kept, there in record.plan["kept"].values())
    assert {"load", "discover", "estimate", "prune", "evaluate"} <= set(record.seconds)
    assert record.peak_memory_mb > 50 and record.versions["torch"] and not record.reused


def test_accuracy_keeps_every_answer_for_paired_comparisons(place):
    rows = [{"goal": "to sit", "sol1": "a chair", "sol2": "a cloud", "label": i % 2} for i in range(6)]
    questions = place.parent / "data" / "tasks" / "piqa.jsonl"
    questions.parent.mkdir()
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = replace(TINY.evaluation, texts=(), tasks=("piqa",), limit=4)
    record = run(replace(asked(), evaluation=evaluation), profile="tiny")
    metric = record.metrics[MetricName("accuracy", "piqa")]
    assert metric.n == len(metric.values) == 4 and metric.value == sum(metric.values) / 4 == 0.5
    assert {"metric": "acc", "limit": 4, "dtype": "float32"}.items() <= metric.protocol.items()
    other = run(replace(asked(), evaluation=replace(evaluation, limit=5)).dense, profile="tiny")
    with pytest.raises(ValueError, match="accuracy/piqa can't be compared: limit is"):
        records_frame([record, other])


def test_record_holds_what_the_public_calls_give():
    from pruner_lib import discover, estimate, perplexity, prune_, select
    from pruner_lib.data.windows import calibration_ids, text_ids

    model, tokenizer = load_model("tiny")
    axes = discover(model)
    ids = calibration_ids("tiny", tokenizer, samples=4, length=16)
    plan = select(axes, estimate(model, axes, ids, criterion="element1"), ratio=0.5)
    prune_(model, plan)
    expected = perplexity(model, text_ids("tiny", tokenizer, length=16, windows=4))
    record = run(asked(), profile="tiny")
    assert record.perplexity["tiny"] == pytest.approx(expected, rel=1e-6)
    assert record.plan["kept"] == {name: [len(kept), plan.n_groups[name]] for name, kept in plan.keep.items()}
    assert run(asked().dense, profile="tiny").perplexity["tiny"] != pytest.approx(expected, rel=1e-3)


def test_text_is_tokenised_once_for_many_models_and_again_in_another_data_directory(place, monkeypatch):
    texts, read = [], windows.read_corpus
    monkeypatch.setattr(windows, "read_corpus", lambda name: texts.append(name) or read(name))
    stages._windows.cache_clear()
    wanted = [asked().dense, asked(criterion="l1"), asked(criterion="l2")]
    first = run_all(wanted, profile="tiny", progress=False)
    assert sorted(texts) == ["story", "tiny"] and len({record.key for record in first}) == 3
    other = place.parent / "other"
    other.mkdir()
    (other / "story.txt").write_text("Another story, of a channel that nobody missed. " * 20)
    monkeypatch.setenv("PRUNER_LIB_DATA", str(other))
    again = run(asked().dense, profile="tiny", results_dir=place.parent / "again")
    assert texts.count("story") == 2 and again.perplexity["story"] != first[0].perplexity["story"]


def test_existing_record_is_reused_and_nothing_is_loaded(monkeypatch):
    first = run(asked(), profile="tiny")
    monkeypatch.setattr(stages, "load_dense", lambda *_: pytest.fail("loaded a model"))
    again = run(asked(), profile="tiny")
    assert again.reused and outcome(again) == outcome(first)
    with pytest.raises(pytest.fail.Exception, match="loaded a model"):
        run(asked(criterion="l2"), profile="tiny")


def test_dense_model_is_measured_once_whatever_was_asked_to_be_done_with_it(capsys):
    dense = run_all([asked(ratio=0), asked(ratio=0, criterion="l2"), asked().dense], profile="tiny")
    assert len({record.key for record in dense}) == 1 and dense[0].plan["sparsity"] == 0
    run_all([asked(criterion="l2"), asked().dense], profile="tiny")
    assert "2 experiments: 1 reused, 1 run now" in capsys.readouterr().out


def test_criteria_and_aggregations_share_one_calibration_pass(monkeypatch):
    passes, estimate = [], stages._estimate
    monkeypatch.setattr(stages, "_estimate", lambda *given: passes.append(given[2]) or estimate(*given))
    wanted = [asked(criterion=name) for name in ("vector", "element1", "element2")]
    wanted += [asked(aggregation="max"), asked(ratio=0.25), asked(dependency=False), asked(scope="global")]
    run_all(wanted, profile="tiny", progress=False)
    assert [sorted(criteria) for criteria in passes] == [["element1", "element2", "vector"]]
    run_all([asked(calibration=Calibration("tiny", 4, 16, seed=0))], profile="tiny", progress=False)
    assert len(passes) == 2


def test_one_pass_for_many_criteria_gives_the_records_of_many_passes(tmp_path):
    wanted = [asked(criterion=name) for name in ("vector", "element1", "element2", "mixed")]
    together = run_all(wanted, profile="tiny", progress=False)
    apart = [run(one, profile="tiny", results_dir=tmp_path / str(i)) for i, one in enumerate(wanted)]
    assert [one.plan for one in together] == [one.plan for one in apart]
    for one, other in zip(together, apart, strict=True):
        assert one.perplexity == pytest.approx(other.perplexity)


def test_dense_model_in_memory_is_left_as_it_was():
    before = {name: value.clone() for name, value in load_model("tiny")[0].state_dict().items()}
    run_all([asked(), asked(recovery=RECOVERY), asked(granularity="channel")], profile="tiny", progress=False)
    bench = stages.Bench(results_dir("tiny"))
    after = stages.load_dense("tiny", bench).model
    assert all(torch.equal(after.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in after.parameters())


def test_model_too_large_to_copy_gives_the_same_records(tmp_path, monkeypatch):
    wanted = [asked().dense, asked(), asked(criterion="l2")]
    copied = run_all(wanted, profile="tiny", progress=False)
    monkeypatch.setattr(stages, "KEEP_BYTES", 0)
    reloaded = run_all(wanted, profile="tiny", results_dir=tmp_path / "other", progress=False)
    assert [outcome(one) for one in reloaded] == [outcome(one) for one in copied]
    assert not stages._kept


@pytest.mark.parametrize("granularity", ["block", "channel", "layer"])
@pytest.mark.parametrize("target", ["groups", "parameters"])
def test_every_granularity_and_target_makes_the_model_smaller(granularity, target):
    ratio = 0.5 if target == "groups" else 0.2
    record = run(asked(granularity=granularity, target=target, ratio=ratio), profile="tiny")
    assert 0.05 < record.plan["sparsity"] < 0.6


KILLED = """
import os, signal, sys
from pruner_lib.study import run as module, stages
from test_study import study_of_three

where, count = sys.argv[1], 0

def mortal(function, times):
    def call(*given, **named):
        global count
        count += 1
        result = function(*given, **named)
        if count == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

if where == "estimate":
    stages._estimate = mortal(stages._estimate, 1)
elif where == "evaluate":
    module.perplexity_metric = mortal(module.perplexity_metric, 4)
elif where == "recover":
    make = stages._text_perplexities
    stages._text_perplexities = lambda *given: mortal(make(*given), 3)
module.run_all(study_of_three(), profile="tiny", progress=False)
"""


def study_of_three():
    return [asked().dense, asked(), asked(recovery=RECOVERY)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "data").mkdir()
    (folder / "data" / "story.txt").write_text("Once there was a small network that lost a head. " * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNER_LIB_DATA", str(folder / "data"))
        return run_all(study_of_three(), profile="tiny", results_dir=folder, progress=False)


@pytest.mark.parametrize(("where", "records"), [("estimate", 1), ("evaluate", 1), ("recover", 2)])
def test_killed_study_goes_on_to_the_records_of_an_uninterrupted_one(where, records, place, uninterrupted):
    root = str(Path(__file__).resolve().parents[2])
    code = [sys.executable, "-c", KILLED, where]
    died = subprocess.run(
        code,
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([root, str(Path(__file__).parent)])},
        capture_output=True,
        text=True,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    left = [path for path in (place / "records").glob("*") if not path.name.startswith(".")]
    assert len(left) == records
    for path in left:
        json.loads(path.read_text())
    resumed = run_all(study_of_three(), profile="tiny", progress=False)
    assert [one.reused for one in resumed].count(True) == records
    assert [outcome(one) for one in resumed] == [outcome(one) for one in uninterrupted]
    assert not list((place / "cache").glob("partial-*"))


def test_text_that_was_measured_before_a_stop_is_not_measured_again(monkeypatch):
    measured, measure = [], module.perplexity_metric

    def stops(text, *given):
        measured.append(text)
        if measured == ["tiny", "story"]:
            raise KeyboardInterrupt
        return measure(text, *given)

    monkeypatch.setattr(module, "perplexity_metric", stops)
    with pytest.raises(KeyboardInterrupt):
        run(asked(), profile="tiny")
    assert not list((results_dir("tiny") / "records").glob("*"))
    run(asked(), profile="tiny")
    assert measured == ["tiny", "story", "story"]


def test_recovery_is_trained_once_for_two_ways_to_measure():
    plain = replace(RECOVERY, evaluate_at=())
    first = run(asked(recovery=plain), profile="tiny")
    longer = replace(asked().evaluation, length=32, windows=2)
    second = run(replace(asked(recovery=plain), evaluation=longer), profile="tiny")
    assert first.history == second.history and first.key != second.key
    folders = [path for path in (results_dir("tiny") / "cache").glob("recovery-*") if path.is_dir()]
    assert len(folders) == 1
    assert first.perplexity != run(asked(), profile="tiny").perplexity


def test_steps_of_one_training_are_measured_after_one_training():
    kept = replace(RECOVERY, evaluate_at=(), keep_at=(1, 2))
    steps = [asked(recovery=replace(kept, at=at)) for at in (2, 1, None)]
    records = run_all(steps, profile="tiny", progress=False)
    assert [record.history[-1]["step"] for record in records] == [2, 1, 3]
    assert len({record.perplexity["story"] for record in records}) == len({one.key for one in steps}) == 3
    folders = [path for path in (results_dir("tiny") / "cache").glob("recovery-*") if path.is_dir()]
    assert len(folders) == 1
    whole = run(asked(recovery=replace(kept, keep_at=())), profile="tiny")
    assert whole.perplexity == records[2].perplexity


def test_model_in_8_bits_is_another_experiment_on_the_same_training():
    plain = replace(RECOVERY, evaluate_at=())
    pairs = [(one, replace(one, int8=True)) for one in (asked().dense, asked(), asked(recovery=plain))]
    for whole, small in pairs:
        before, after = run(whole, profile="tiny"), run(small, profile="tiny")
        assert before.plan == after.plan and before.perplexity != after.perplexity
        assert after.perplexity["story"] == pytest.approx(before.perplexity["story"], rel=0.05)
        assert (
            after.metrics[MetricName("perplexity", "story", 16)].protocol["dtype"]
            == "int8 linear, else float32"
        )
        with pytest.raises(ValueError, match="dtype"):
            records_frame([before, after])
        model, _ = model_of(small, profile="tiny")
        assert is_quantised(model)
    assert (
        run(replace(asked().dense, evaluation=TINY.evaluation), profile="tiny").perplexity["tiny"]
        == (run(asked().dense, profile="tiny").perplexity["tiny"])
    )
    assert len([path for path in (results_dir("tiny") / "cache").glob("recovery-*") if path.is_dir()]) == 1


def test_executor_gives_the_records_of_a_serial_run(tmp_path):
    wanted = [asked().dense, *(asked(criterion=name) for name in ("l2", "element1", "vector"))]
    serial = run_all(wanted, profile="tiny", results_dir=tmp_path / "serial", progress=False)
    with ThreadPoolExecutor(2) as client:
        spread = run_all(wanted, profile="tiny", client=client, progress=False)
    assert [outcome(one) for one in spread] == [outcome(one) for one in serial]
    assert all(one.reused for one in run_all(wanted, profile="tiny", progress=False))


def test_changed_model_folder_is_measured_again(tmp_path):
    model, tokenizer = load_model("tiny")
    folder = tmp_path / "mine"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    first = run(asked(model=str(folder)), profile="tiny")
    assert run(asked(model=str(folder)), profile="tiny").reused
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(folder)
    second = run(asked(model=str(folder)), profile="tiny")
    assert not second.reused and second.key == first.key and second.perplexity != first.perplexity


def test_frame_of_a_study_compares_only_what_was_measured_alike():
    records = run_all([asked().dense, asked()], profile="tiny", progress=False)
    frame = records_frame(records)
    assert len(frame) == 4 and set(frame.method) == {"dense", "element1"}
    other = run(replace(asked(), evaluation=replace(asked().evaluation, windows=2)), profile="tiny")
    with pytest.raises(ValueError, match="corpus_hash"):
        records_frame([*records, other])


def test_bad_input_leaves_nothing_behind(place):
    for wrong, message in [
        (asked(model="smolm"), "unknown model 'smolm'"),
        (asked(calibration=Calibration("nothing", 4, 16)), "nothing"),
        (replace(asked(), evaluation=replace(asked().evaluation, texts=("nothing",))), "nothing"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(wrong, profile="tiny")
    assert not list(place.glob("records/*"))
    with pytest.raises(ValueError, match="unknown profile"):
        run(asked(), profile="tyni")
    with pytest.raises(ValueError, match="dense model has no plan"):
        plan_of(asked().dense, profile="tiny")
    assert run(asked(), profile="tiny").perplexity
