"""A study measures everything once, and one that is killed ends with the records of one that is not."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import accelerate
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from pruner_lib import load_model
from pruner_lib.data import windows
from pruner_lib.evaluation.int8 import is_quantised
from pruner_lib.method.offload import offloaded
from pruner_lib.study import Calibration, Recovery, Study, load_profile, results, run, stages
from pruner_lib.study.cache import model_hash
from pruner_lib.study.records import MetricName, read_kept, read_record, record_path, records_frame
from pruner_lib.study.run import run_experiment
from pruner_lib.study.statistics import Interval

TINY = load_profile("tiny")
RECOVERY = Recovery(
    corpus="tiny", samples=4, steps=3, batch_size=2, micro_batch_size=2, warmup_steps=1, evaluate_at=(1, 2)
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An own results folder, and a second text beside the built-in one."""
    monkeypatch.setenv("PRUNER_LIB_RESULTS", str(tmp_path))
    monkeypatch.setenv("PRUNER_LIB_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "story.txt").write_text("Once there was a small network that lost a head. " * 20)
    return tmp_path / "tiny"


@pytest.fixture
def study(place):
    return Study("tiny")  # in the folder that the environment names


def asked(**changes):
    evaluation = replace(TINY.evaluation, texts=("tiny", "story"))
    return TINY.experiment(evaluation=evaluation, **changes)


def outcome(record):
    """What of a record must not depend on when and how often it was tried."""
    history = [{name: value for name, value in row.items() if name != "seconds"} for row in record.history]
    return record.experiment, record.plan, record.metrics, history


def test_run_gives_a_record_with_everything_that_makes_its_numbers_comparable(study):
    record = study.run(asked())
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
    assert 0 < record.plan["sparsity"] < 0.5 and set(record.plan["kept"]) == set(study.plan(asked()).keep)
    assert all(kept <= there for kept, there in record.plan["kept"].values())
    assert {"load", "discover", "estimate", "prune", "evaluate"} <= set(record.seconds)
    assert record.peak_memory_mb > 50 and record.versions["torch"] and not record.reused


def test_accuracy_keeps_every_answer_for_paired_comparisons(study, place):
    rows = [{"goal": "to sit", "sol1": "a chair", "sol2": "a cloud", "label": i % 2} for i in range(6)]
    questions = place.parent / "data" / "tasks" / "piqa.jsonl"
    questions.parent.mkdir()
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = replace(TINY.evaluation, texts=(), tasks=("piqa",), limit=4)
    record = study.run(replace(asked(), evaluation=evaluation))
    metric = record.metrics[MetricName("accuracy", "piqa")]
    assert metric.n == len(metric.values) == 4 and metric.value == sum(metric.values) / 4 == 0.5
    assert {"metric": "acc", "limit": 4, "dtype": "float32"}.items() <= metric.protocol.items()
    other = study.run(replace(asked(), evaluation=replace(evaluation, limit=5)).dense)
    with pytest.raises(ValueError, match="accuracy/piqa can't be compared: limit is"):
        records_frame([record, other])


def test_record_holds_what_the_public_calls_give(study):
    from pruner_lib import discover, estimate, perplexity, prune_, select
    from pruner_lib.data.windows import calibration_ids, text_ids

    model, tokenizer = load_model("tiny")
    axes = discover(model)
    ids = calibration_ids("tiny", tokenizer, samples=4, length=16)
    plan = select(axes, estimate(model, axes, ids, criterion="element1"), ratio=0.5)
    prune_(model, plan)
    expected = perplexity(model, text_ids("tiny", tokenizer, length=16, windows=4))
    record = study.run(asked())
    assert record.perplexity["tiny"] == pytest.approx(expected, rel=1e-6)
    assert record.plan["kept"] == {name: [len(kept), plan.n_groups[name]] for name, kept in plan.keep.items()}
    assert study.run(asked().dense).perplexity["tiny"] != pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_text_is_tokenised_once_for_many_models_and_again_in_another_data_directory(
    study, place, monkeypatch
):
    texts, read = [], windows.read_corpus
    monkeypatch.setattr(windows, "read_corpus", lambda name, *how: texts.append(name) or read(name, *how))
    first = study.run_all([asked().dense, asked(criterion="l2")])
    assert sorted(texts) == ["story", "tiny"] and len({record.key for record in first}) == 2
    other = place.parent / "other"
    other.mkdir()
    (other / "story.txt").write_text("Another story, of a channel that nobody missed. " * 20)
    monkeypatch.setenv("PRUNER_LIB_DATA", str(other))
    again = Study("tiny", place.parent / "again").run(asked().dense)
    assert texts.count("story") == 2 and again.perplexity["story"] != first[0].perplexity["story"]


def test_existing_record_is_reused_and_nothing_is_loaded(study, monkeypatch):
    first = study.run(asked())
    monkeypatch.setattr(stages, "load_model", lambda *_, **__: pytest.fail("loaded a model"))
    other = Study("tiny")
    again = other.run(asked())
    assert again.reused and outcome(again) == outcome(first)
    with pytest.raises(pytest.fail.Exception, match="loaded a model"):
        other.run(asked(criterion="l2"))


@pytest.mark.slow
def test_dense_model_is_measured_once_whatever_was_asked_to_be_done_with_it(study, capsys):
    dense = study.run_all([asked(ratio=0), asked(ratio=0, criterion="l2"), asked().dense])
    assert len({record.key for record in dense}) == 1 and dense[0].plan["sparsity"] == 0
    study.run_all([asked(criterion="l2"), asked().dense])
    assert "2 experiments: 1 reused, 1 run now" in capsys.readouterr().out


@pytest.mark.slow
def test_criteria_and_aggregations_share_one_calibration_pass(study, monkeypatch):
    passes, estimate = [], stages.estimate_members

    def counted(*given, criteria, **named):
        passes.append(criteria)
        return estimate(*given, criteria=criteria, **named)

    monkeypatch.setattr(stages, "estimate_members", counted)
    wanted = [asked(criterion=name) for name in ("vector", "element1", "element2")]
    study.run_all([*wanted, asked(aggregation="max", dependency=False)])
    assert [sorted(criteria) for criteria in passes] == [["element1", "element2", "vector"]]
    study.run_all([asked(calibration=Calibration("tiny", 4, 16, seed=0))])
    assert len(passes) == 2


@pytest.mark.slow
def test_one_pass_for_many_criteria_gives_the_records_of_many_passes(study, tmp_path):
    wanted = [asked(criterion=name) for name in ("element1", "mixed")]
    together = study.run_all(wanted)
    apart = [Study("tiny", tmp_path / str(i)).run(one) for i, one in enumerate(wanted)]
    assert [one.plan for one in together] == [one.plan for one in apart]
    for one, other in zip(together, apart, strict=True):
        assert one.perplexity == pytest.approx(other.perplexity)


@pytest.mark.slow
def test_dense_model_in_memory_is_left_as_it_was(study):
    before = {name: value.clone() for name, value in load_model("tiny")[0].state_dict().items()}
    study.run_all([asked(), asked(recovery=RECOVERY), asked(granularity="channel")])
    after = study.dense("tiny").model
    assert all(torch.equal(after.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in after.parameters())


@pytest.mark.slow
def test_model_too_large_to_copy_gives_the_same_records(study, tmp_path, monkeypatch):
    wanted = [asked().dense, asked()]
    copied = study.run_all(wanted)
    monkeypatch.setattr(stages, "KEEP_BYTES", 0)
    other = Study("tiny", tmp_path / "other")
    reloaded = other.run_all(wanted)
    assert [outcome(one) for one in reloaded] == [outcome(one) for one in copied]
    assert not other._dense


@pytest.mark.parametrize(
    ("granularity", "target", "ratio"),
    [("block", "parameters", 0.2), ("channel", "groups", 0.5), ("layer", "groups", 0.5)],
)
def test_every_granularity_makes_the_model_smaller(study, granularity, target, ratio):
    record = study.run(asked(granularity=granularity, target=target, ratio=ratio))
    assert 0.05 < record.plan["sparsity"] < 0.6


def run_until_killed(name, times):
    """Run the study of three; in a process of its own it kills itself after so many calls of one stage."""
    function, calls = getattr(stages, name), []

    def call(*given, **named):
        result = function(*given, **named)
        calls.append(name)
        if len(calls) == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(stages, name, call)
    Study("tiny").run_all(study_of_three())


def study_of_three():
    return [asked().dense, asked(), asked(recovery=RECOVERY)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "data").mkdir()
    (folder / "data" / "story.txt").write_text("Once there was a small network that lost a head. " * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNER_LIB_DATA", str(folder / "data"))
        return Study("tiny", folder).run_all(study_of_three())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize(
    ("stage", "times", "records"),
    [("estimate_members", 1, 1), ("measure_text", 4, 1), ("perplexity", 5, 2)],
)
def test_killed_study_goes_on_to_the_records_of_an_uninterrupted_one(
    study, stage, times, records, place, uninterrupted
):
    process = multiprocessing.get_context("fork").Process(target=run_until_killed, args=(stage, times))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    left = [path for path in (place / "records").glob("*") if not path.name.startswith(".")]
    assert len(left) == records
    for path in left:
        json.loads(path.read_text())
    resumed = study.run_all(study_of_three())
    assert [one.reused for one in resumed].count(True) == records
    assert [outcome(one) for one in resumed] == [outcome(one) for one in uninterrupted]
    assert not list((place / "cache").glob("partial-*"))


@pytest.mark.slow
def test_text_that_was_measured_before_a_stop_is_not_measured_again(study, monkeypatch):
    measured, measure = [], study.measure_text

    def stops(name, *given):
        measured.append(name)
        if measured == ["tiny", "story"]:
            raise KeyboardInterrupt
        return measure(name, *given)

    monkeypatch.setattr(study, "measure_text", stops)
    with pytest.raises(KeyboardInterrupt):
        study.run(asked())
    assert not list((study.folder / "records").glob("*"))
    study.run(asked())
    assert measured == ["tiny", "story", "story"]


@pytest.mark.slow
def test_recovery_is_trained_once_for_two_ways_to_measure(study):
    plain = replace(RECOVERY, evaluate_at=())
    first = study.run(asked(recovery=plain))
    longer = replace(asked().evaluation, length=32, windows=2)
    second = study.run(replace(asked(recovery=plain), evaluation=longer))
    assert first.history == second.history and first.key != second.key
    folders = [path for path in (study.folder / "cache").glob("recovery-*") if path.is_dir()]
    assert len(folders) == 1
    assert first.perplexity != study.run(asked()).perplexity


@pytest.mark.slow
def test_steps_of_one_training_are_measured_after_one_training(study):
    kept = replace(RECOVERY, evaluate_at=(), keep_at=(1, 2))
    steps = [asked(recovery=replace(kept, at=at)) for at in (2, 1, None)]
    records = study.run_all(steps)
    assert [record.history[-1]["step"] for record in records] == [2, 1, 3]
    assert len({record.perplexity["story"] for record in records}) == len({one.key for one in steps}) == 3
    folders = [path for path in (study.folder / "cache").glob("recovery-*") if path.is_dir()]
    assert len(folders) == 1
    whole = study.run(asked(recovery=replace(kept, keep_at=())))
    assert whole.perplexity == records[2].perplexity


@pytest.mark.slow
def test_model_in_8_bits_is_another_experiment_on_the_same_training(study):
    plain = replace(RECOVERY, evaluate_at=())
    pairs = [(one, replace(one, int8=True)) for one in (asked().dense, asked(recovery=plain))]
    for whole, small in pairs:
        before, after = study.run(whole), study.run(small)
        assert before.plan == after.plan and before.perplexity != after.perplexity
        assert after.perplexity["story"] == pytest.approx(before.perplexity["story"], rel=0.05)
        protocol = after.metrics[MetricName("perplexity", "story", 16)].protocol
        assert protocol["dtype"] == "int8 linear, else float32"
        with pytest.raises(ValueError, match="dtype"):
            records_frame([before, after])
        model, _ = study.model(small)
        assert is_quantised(model)
    assert len([path for path in (study.folder / "cache").glob("recovery-*") if path.is_dir()]) == 1


def run_with_others(barrier, made):
    barrier.wait()
    study = Study("tiny")
    make = study.subject

    def subject(experiment, *given):
        made.put((os.getpid(), experiment.key))
        return make(experiment, *given)

    study.subject = subject
    study.run_all(study_of_three())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_studies_at_once_share_the_work_and_measure_nothing_twice(study, uninterrupted):
    fork = multiprocessing.get_context("fork")
    barrier, made = fork.Barrier(2), fork.Queue()
    both = [fork.Process(target=run_with_others, args=(barrier, made)) for _ in range(2)]
    for process in both:
        process.start()
    whose, keys = zip(*[made.get(timeout=300) for _ in range(3)], strict=True)
    for process in both:
        process.join(timeout=300)
    assert [process.exitcode for process in both] == [0, 0] and made.empty()
    assert sorted(keys) == sorted(one.key for one in study_of_three()) and len(set(whose)) == 2
    records = study.run_all(study_of_three())
    assert [outcome(one) for one in records] == [outcome(one) for one in uninterrupted]


def test_lock_of_a_dead_process_is_taken_over_and_that_of_a_living_one_is_not(study):
    fork, lock = multiprocessing.get_context("fork"), study.lock

    def hold(held):
        with lock("x"):
            held.set()
            signal.pause()

    held = fork.Event()
    process = fork.Process(target=hold, args=(held,))
    process.start()
    assert held.wait(timeout=60)
    with pytest.raises(TimeoutError), lock("x", wait=False):
        pytest.fail("two held the lock")
    process.kill()
    process.join()
    with lock("x", wait=False):
        assert study.cache("x.lock").exists()


def spread_over(client, folder=None):
    """A study whose experiments run on an executor."""
    study = Study("tiny", folder)
    study.client = client
    return study


@pytest.mark.slow
def test_executor_gives_the_records_of_a_serial_run(study, tmp_path):
    wanted = [asked().dense, asked(criterion="l2"), asked()]
    serial = Study("tiny", tmp_path / "serial").run_all(wanted)
    with ThreadPoolExecutor(2) as client:
        spread = spread_over(client).run_all(wanted)
    assert [outcome(one) for one in spread] == [outcome(one) for one in serial]


class ElsewhereExecutor:
    """Workers that do not share the results folder; their files are as they were when it was made."""

    def submit(self, function, experiment, profile, results, criteria):
        future = Future()
        future.set_result(function(experiment, profile, results / "not here", criteria))
        return future


@pytest.mark.slow
def test_records_of_a_worker_with_a_disk_of_its_own_come_into_the_one_folder(study, place, monkeypatch):
    wanted, here = [asked().dense, asked()], place.parent / "here"
    there = spread_over(ElsewhereExecutor(), here)  # a worker falls back to the folder of `study`
    made = there.run_all(wanted)
    for one, record in zip(wanted, made, strict=True):
        assert read_record(record_path(there.folder, one.key)).reused
        assert outcome(study.run(one)) == outcome(record)
    again = Study("tiny", here).run_all(wanted)
    assert all(record.reused for record in again)
    story = place.parent / "data" / "story.txt"
    client, kept = ElsewhereExecutor(), story.read_text()
    story.write_text("Another story, of a worker that read it. " * 20)

    def submit(*call):
        future = ElsewhereExecutor.submit(client, *call)
        story.write_text(kept)  # here it is another
        return future

    client.submit = submit
    with pytest.raises(ValueError, match="a worker's local files differ from those here.*PRUNER_LIB_DATA"):
        spread_over(client, place.parent / "third").run_all(wanted[:1])


@pytest.mark.slow
def test_changed_model_folder_is_measured_again(study, tmp_path):
    model, tokenizer = load_model("tiny")
    folder = tmp_path / "mine"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    first = study.run(asked(model=str(folder)))
    assert study.run(asked(model=str(folder))).reused
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(folder)
    second = study.run(asked(model=str(folder)))
    assert not second.reused and second.key == first.key and second.perplexity != first.perplexity


QUESTION = {"goal": "to sit", "sol1": "a chair", "sol2": "a cloud", "label": 0}
OTHER = {  # what an experiment on `story`, calibrated on `tiny`, may read -> other content of it
    "story.txt": "A model that was pruned until it fitted into a watch. " * 20,
    "tiny.txt": "A model that was pruned until it fitted into a watch.\n\n" * 9,  # before the built-in text
    "tiny.jsonl": json.dumps({"instruction": "Count.", "output": "1 2 3"}) + "\n",  # and instructions
    "tasks/piqa.jsonl": json.dumps(QUESTION | {"label": 1}) + "\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER)
def test_changed_data_of_the_users_own_are_read_again(study, place, name):
    path = place.parent / "data" / name
    tasks = ("piqa",) if path.stem == "piqa" else ()
    if tasks:
        path.parent.mkdir()
        path.write_text(json.dumps(QUESTION) + "\n")
    recovery = replace(RECOVERY, samples=1, evaluate_at=()) if name == "tiny.jsonl" else None
    evaluation = replace(TINY.evaluation, texts=("story",), tasks=tasks)
    wanted = replace(asked(recovery=recovery), evaluation=evaluation)
    first = study.run(wanted)
    assert study.run(wanted).reused
    path.write_text(OTHER[name])
    second = study.run(wanted)
    assert not second.reused and second.metrics != first.metrics and study.run(wanted).reused


def test_data_that_an_experiment_does_not_read_do_not_matter(study, place):
    dense = study.run(asked().dense)
    folder = place.parent / "data"
    for name in ("bookcorpus.txt", "tiny.json", "tasks/piqa.jsonl", "other.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("[]")
    assert study.run(asked().dense).reused and "inputs_hash" in dense.machine


@pytest.mark.slow
def test_other_type_of_weights_in_the_profile_is_measured_anew(place, monkeypatch):
    def measured(dtype):
        place.with_name("own.yaml").write_text(f"tiny: {{dtype: {dtype}}}\n")
        record = (study := Study("tiny")).run(asked(criterion="element1"))
        kept = study.cached(["what"], lambda: study.dense("tiny").model.dtype.itemsize)
        members = study.members(asked(criterion="element1"), ["element1"])["element1"]
        return record.reused, record.perplexity["tiny"], kept, next(iter(members.values())).sum().item()

    monkeypatch.setenv("PRUNER_LIB_PROFILES", str(place.with_name("own.yaml")))
    (_, *exact), (reused, *rounded) = measured("float32"), measured("bfloat16")
    assert not reused and all(one != other for one, other in zip(exact, rounded, strict=True))
    assert measured("bfloat16") == (True, *rounded) and not measured("float32")[0]
    assert measured("float32") == (True, *exact)


def test_folder_counts_as_a_model_only_where_it_would_be_loaded(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "smollm2-135m", "mine", "data/smollm2-135m-mha"):
        (tmp_path / name).mkdir()
    assert model_hash("tiny") is None and model_hash("smollm2-135m") is None  # built-in ones
    assert model_hash("mine") is not None
    assert model_hash("smollm2-135m-mha") is not None  # one of that name in the local data directory


def test_middle_of_a_large_file_counts(tmp_path):
    (tmp_path / "mine").mkdir()
    path, content = tmp_path / "mine" / "model.safetensors", bytearray(3 << 20)
    path.write_bytes(content)
    before = model_hash(str(path.parent))
    content[len(content) // 2] = 1
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))
    assert model_hash(str(path.parent)) != before


@pytest.mark.slow
def test_git_of_the_user_takes_records_and_no_cache(study):
    """Also where a study runs without the runner of notebooks."""
    study.run(study.profile.experiment(criterion="l2"))
    assert list((study.folder / "cache").glob("members-*.safetensors"))
    place = study.folder.parent
    subprocess.run(["git", "init", "--quiet", place], check=True)
    added = subprocess.check_output(["git", "add", "--all", "--dry-run"], cwd=place, text=True)
    assert "tiny/records/" in added and "cache" not in added


@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_damaged_scores_are_set_aside_and_made_again(study, damage):
    scores = study.scores(asked(), ["element1"])["element1"]
    (path,) = (study.folder / "cache").glob("members-*.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-8] if damage == "truncated" else content[:-8] + bytes(8))
    with pytest.warns(UserWarning, match=f"{path.name} is damaged .*renamed to {path.name}.damaged, will be"):
        again = study.scores(asked(), ["element1"])["element1"]
    assert path.read_bytes() == content and path.with_name(f"{path.name}.damaged").exists()
    assert all(torch.equal(again[name], scores[name]) for name in scores)


@pytest.mark.slow
def test_adapter_that_was_changed_is_set_aside_and_trained_again(study):
    plain = replace(RECOVERY, evaluate_at=())
    first = study.run(asked(recovery=plain))
    longer = replace(asked(recovery=plain), evaluation=replace(asked().evaluation, length=32, windows=2))
    expected = study.run(longer)
    (adapter,) = study.folder.glob("cache/recovery-*/adapter/adapter_model.safetensors")
    content = adapter.read_bytes()
    for path in study.folder.glob("records/*"):
        path.unlink()
    adapter.write_bytes(content[:-8] + bytes(byte ^ 1 for byte in content[-8:]))
    with pytest.warns(UserWarning, match="adapter is damaged .*renamed to adapter.damaged, will be"):
        again = study.run(longer)
    assert outcome(again) == outcome(expected) and adapter.read_bytes() == content
    assert outcome(study.run(asked(recovery=plain))) == outcome(first)


@pytest.mark.slow
def test_frame_of_a_study_compares_only_what_was_measured_alike(study):
    records = study.run_all([asked().dense, asked()])
    frame = records_frame(records)
    assert len(frame) == 4 and set(frame.method) == {"dense", "element1"}
    other = study.run(replace(asked(), evaluation=replace(asked().evaluation, windows=2)))
    with pytest.raises(ValueError, match="corpus_hash"):
        records_frame([*records, other])


@pytest.mark.slow
def test_bad_input_leaves_nothing_behind(study, place):
    for wrong, message in [
        (asked(model="smolm"), "unknown model 'smolm'"),
        (asked(calibration=Calibration("nothing", 4, 16)), "nothing"),
        (replace(asked(), evaluation=replace(asked().evaluation, texts=("nothing",))), "nothing"),
    ]:
        with pytest.raises(ValueError, match=message):
            study.run(wrong)
    assert not list(place.glob("records/*"))
    with pytest.raises(ValueError, match="unknown profile"):
        Study("tyni")
    with pytest.raises(ValueError, match="dense model has no plan"):
        study.plan(asked().dense)
    assert study.run(asked()).perplexity


@pytest.mark.slow
def test_worker_runs_an_experiment_by_the_names_of_profile_and_folder(tmp_path):
    job = pickle.loads(pickle.dumps((run_experiment, asked(), "tiny", tmp_path / "worker", ("l2",))))
    (tmp_path / "worker" / "tiny").mkdir(parents=True)
    record = job[0](*job[1:])
    assert not record.reused and Study("tiny", tmp_path / "worker").run(asked()).reused
    assert len(list((tmp_path / "worker" / "tiny" / "cache").glob("members-*.safetensors"))) == 2


@pytest.mark.slow
def test_named_lists_of_experiments_become_named_records(study):
    named = study.records({"dense": [asked().dense], "both": [asked(), asked(criterion="l2")], "none": []})
    assert {name: [one.experiment.method for one in records] for name, records in named.items()} == {
        "dense": ["dense"],
        "both": ["element1", "l2"],
        "none": [],
    }


def test_what_was_made_is_kept_by_its_key_as_json(study):
    made = []

    def make():
        made.append(1)
        return {"number": len(made), "infinite": float("inf")}

    assert study.cached(["a", 1], make) == study.cached(["a", 1], make) == {"number": 1, "infinite": "inf"}
    assert study.cached(["a", 2], make)["number"] == 2
    assert study.cached(["a", 1], make, folder="samples")["number"] == 3
    assert Study("tiny").cached(["a", 1], make)["number"] == 1
    assert len(list((study.folder / "measured").iterdir())) == 2
    with pytest.raises(RuntimeError, match="on purpose"):
        study.cached(["b"], lambda: (_ for _ in ()).throw(RuntimeError("on purpose")))
    assert study.cached(["b"], make)["number"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [{}, {"recovery": RECOVERY}, {"criterion": "obs", "repaired": True}, {"granularity": "layer"}],
    ids=["pruned", "recovered", "repaired", "layers"],
)
def test_model_that_the_device_does_not_hold_is_measured_as_another(how, place, monkeypatch):
    expected = Study("tiny").run(asked(**how))
    record_path(place, expected.key).unlink()
    shutil.rmtree(place / "cache")

    def spread(name, **given):
        model, tokenizer = load_model(name, **given)
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        model.hf_device_map = {"": "cpu"}
        assert offloaded(model)
        return model, tokenizer

    monkeypatch.setattr(stages, "load_model", spread)
    study = Study("tiny")
    assert outcome(study.run(asked(**how))) == outcome(expected)
    assert outcome(study.run(asked(**how).dense))[2]


def test_models_fill_the_gpu_first_and_then_what_else_is_there(place, monkeypatch):
    given = {}

    def load(name, **how):
        given[name] = how
        return load_model("tiny")

    monkeypatch.setattr(stages, "load_model", load)
    for device in ("cuda", "cpu"):
        study = Study("tiny")
        study.device = device
        study.dense("smollm2-135m")
        kind = {"cuda": {"device_map": "sequential"}, "cpu": {"device": "cpu"}}[device]
        assert given["smollm2-135m"] == {"dtype": torch.float32} | kind


@pytest.mark.slow
def test_manifest_names_the_revision_that_measured_and_not_the_one_that_reads(place, monkeypatch):
    monkeypatch.setattr(run, "git_revision", lambda: "aaaa1")
    first = Study("tiny")
    first.run(asked())
    monkeypatch.setattr(run, "git_revision", lambda: "bbbb2")
    second = Study("tiny")
    second.run_all([asked()])
    said = second.finish("00_test")
    assert read_kept(results.manifest_path("00_test", "tiny"))["measured_by"] == ["aaaa1"]
    assert "records measured at aaaa1;" in said
    second.run(asked(criterion="l2"))
    assert "records measured at aaaa1, bbbb2;" in second.finish("00_test")


def test_manifest_names_every_file_that_the_study_wrote(study):
    frame = pd.DataFrame({"x": [1, 2]})
    figure, ax = plt.subplots()
    ax.plot(frame.x)
    study.save_table(frame, "00_table")
    assert len(study.save_figure(figure, frame, "00_figure")) == 3
    plt.close(figure)

    study.answer("few steps", Interval(2.0, 1.5, 2.5, 3), note="by hand")
    said = study.finish("00_test")
    assert read_kept(results.manifest_path("00_test", "tiny"))["outputs"] == [
        "claims/few_steps.json",
        "figures/00_figure.csv",
        "figures/00_figure.png",
        "figures/00_figure.svg",
        "tables/00_table.csv",
    ]
    assert "tables/00_table.csv" in said and "profile tiny" in study.provenance()
    (study.folder / "tables" / "00_table.csv").unlink()
    with pytest.raises(ValueError, match="missing or empty now: .*00_table"):
        study.finish("00_test")
