"""The history of a recovery, adapters kept on its way, and that a killed run ends as an uninterrupted one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import warnings
from itertools import pairwise
from pathlib import Path

import forked
import pytest
import torch
from families import first_of
from peft import PeftModel
from small_recovery import EXAMPLES, KEEP, QUICK, Stop, adapter, logits, make, same, score, without_time
from transformers import TrainerCallback

from pruner_lib.models.tiny import tiny_tokenizer
from pruner_lib.recovery import trainer as trainer_module
from pruner_lib.recovery.recover import recover
from pruner_lib.recovery.resume import folder_lock

pytestmark = pytest.mark.usefixtures("one_thread")
KEPT = ("adapter-2", "adapter-4", "adapter")


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """An uninterrupted run: its folder, the logits at steps 0, 2, 4, 6 as seen in the loop, its result."""
    folder, seen = tmp_path_factory.mktemp("whole"), []

    def watch(model):
        seen.append(logits(model).clone())
        return score(model)

    done = recover(make(), tokenizer, EXAMPLES, output_dir=folder, evaluate=watch, **KEEP)
    return folder, dict(zip((0, 2, 4, 6), seen, strict=True)), done


def check_same_run(folder: Path, result, whole) -> None:
    for name in KEPT:
        assert same(adapter(folder, name), adapter(whole[0], name)), name
    assert without_time(result.history) == without_time(whole[2].history)
    assert [[*row] for row in result.history] == [[*row] for row in whole[2].history], (
        "names in another order"
    )
    assert sorted(path.name for path in folder.iterdir()) == [*sorted(KEPT), "checkpoint-6", "recovery.json"]


# The history


def test_the_history_has_a_row_a_step_and_measures_at_the_points(whole):
    history = whole[2].history
    assert [row["step"] for row in history] == list(range(7))
    assert [row["step"] for row in history if "score" in row] == [0, 2, 4, 6]
    assert history[0]["score"] == score(make())["score"] and history[0]["tokens"] == 0
    assert history[6]["score"] == score(whole[2].model)["score"] != history[0]["score"]
    for name in ("tokens", "seconds"):
        values = [row[name] for row in history]
        assert all(a < b for a, b in pairwise(values))


@pytest.mark.slow
def test_evaluation_changes_no_weight_and_no_second(tokenizer, tmp_path, whole, monkeypatch):
    clock, passed = time.perf_counter, [0.0]
    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: clock() + passed[0])

    def slow(model):
        passed[0] += 1e6
        torch.manual_seed(99)
        return {}

    done = recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=slow, evaluate_at=[3], **QUICK)
    assert same(adapter(tmp_path), adapter(whole[0]))
    between = done.history[4]["seconds"] - done.history[2]["seconds"]
    assert 0 < between < 1e6


def test_an_evaluation_that_hides_the_history_is_refused(tokenizer, tmp_path):
    arguments = {"output_dir": tmp_path, "evaluate": lambda model: {"loss": 1.0}, **QUICK}
    with pytest.raises(ValueError, match="loss"):
        recover(make(), tokenizer, EXAMPLES, **arguments)


@pytest.mark.parametrize("returned", [None, 5, {"score": None}, {"score": "high"}, {"score": [1, 2]}])
def test_an_evaluation_that_gives_no_numbers_is_refused(returned, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="evaluate returned .*; expected a dict of numbers"):
        recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=lambda _: returned, **QUICK)


def test_an_infinite_result_is_read_back_as_a_number(tokenizer, tmp_path):
    arguments = {"output_dir": tmp_path, "evaluate": lambda model: {"perplexity": float("inf")}, **QUICK}
    arguments["steps"] = 1
    first = recover(make(), tokenizer, EXAMPLES, **arguments)
    assert recover(make(), tokenizer, EXAMPLES, **arguments).history == first.history
    assert first.history[0]["perplexity"] == float("inf")


# A run can be killed


@pytest.mark.parametrize("n", first_of([2, 1, 4]))  # after step 2, before the first step, at the end
def test_an_interrupted_run_ends_as_if_it_had_not_been(n, tokenizer, tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=Stop(n), **KEEP)
    assert not (tmp_path / "adapter").exists()
    (tmp_path / "checkpoint-5").mkdir()  # half a checkpoint
    (tmp_path / ".adapter-4-half").mkdir()  # half an adapter
    (tmp_path / "adapter-4").mkdir(exist_ok=True)  # of a process that died before its checkpoint
    again = recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=score, **KEEP)
    check_same_run(tmp_path, again, whole)


def be_killed(folder: Path) -> None:
    """Train, and be killed when the model is measured for the fourth time."""
    calls = []

    def kill(model):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return score(model)

    recover(make(), tiny_tokenizer(), EXAMPLES, output_dir=folder, evaluate=kill, **KEEP)


@pytest.mark.slow
def test_a_killed_process_is_taken_over_by_another(tokenizer, tmp_path, whole):
    killed = forked.start(be_killed, tmp_path)
    killed.join(300)
    assert killed.exitcode == -signal.SIGKILL
    (state,) = tmp_path.glob("checkpoint-*/trainer_state.json")
    left = json.loads(state.read_text())["log_history"]
    assert state.parent.name == "checkpoint-4" and len(left) == 5
    again = recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=score, **KEEP)
    check_same_run(tmp_path, again, whole)
    assert again.history[:5] == left and again.history[5]["seconds"] > left[4]["seconds"]


@pytest.mark.slow
def test_a_folder_in_which_another_process_recovers_is_refused(tokenizer, tmp_path):
    with folder_lock(tmp_path), pytest.raises(ValueError, match="another process recovers in .*: wait, or"):
        recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, **QUICK)
    assert not list(tmp_path.iterdir())
    recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, **QUICK)
    assert not (tmp_path / ".lock").exists()


def test_a_finished_run_is_not_run_again(tokenizer, whole):
    folder, seen, done = whole
    arguments = {"output_dir": folder, "evaluate": Stop(1), **KEEP}
    again = recover(make(), tokenizer, EXAMPLES, **arguments)
    assert again.history == done.history and torch.equal(logits(again.model), seen[6])


@pytest.mark.slow
def test_another_seed_gives_another_adapter(tokenizer, tmp_path, whole):
    recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, seed=1, **QUICK)
    assert not same(adapter(tmp_path), adapter(whole[0]))


@pytest.mark.slow
def test_a_run_with_other_arguments_is_not_resumed_but_thrown_away_on_request(tokenizer, tmp_path):
    arguments = {"examples": EXAMPLES, "output_dir": tmp_path, "evaluate": score, "evaluate_at": [2], **QUICK}
    with pytest.raises(KeyboardInterrupt):
        recover(make(), tokenizer, **{**arguments, "evaluate": Stop(3)})
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    other = make()
    other.model.layers[0].mlp.up_proj.weight.data[3, 5] += 1.0
    changes = {
        "seed": {"seed": 1},
        "rank": {"rank": 4},
        "learning_rate": {"learning_rate": 2e-2},
        "steps": {"steps": 5},
        "evaluated_steps": {"evaluate_at": [3]},
        "examples": {"examples": EXAMPLES[1:]},
        "model": {},
    }
    for name, change in changes.items():
        with pytest.raises(ValueError, match=rf"\({name}: .* there, .* now\).*resume=False"):
            recover(other if name == "model" else make(), tokenizer, **{**arguments, **change})
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    done = recover(other, tokenizer, **arguments, resume=False)
    assert [row["step"] for row in done.history] == list(range(7))


def test_a_folder_of_something_else_is_left_alone(tokenizer, tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    for resume in (True, False):
        with pytest.raises(ValueError, match="something else made it"):
            recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, resume=resume, **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


@pytest.fixture(scope="module")
def interrupted(tokenizer, tmp_path_factory):
    """The folder of a run that was stopped at its end."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KeyboardInterrupt):
        recover(make(), tokenizer, EXAMPLES, output_dir=folder, evaluate=Stop(4), **KEEP)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt"])
@pytest.mark.parametrize("how", ["cut off", "other bytes"])
def test_a_damaged_checkpoint_is_not_resumed_from(name, how, tokenizer, tmp_path, whole, interrupted):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob(f"checkpoint-*/{name}"):
        content = path.read_bytes()
        middle = len(content) // 2
        changed = content[:middle] + bytes(255 - byte for byte in content[middle : middle + 8])
        path.write_bytes(content[:-100] if how == "cut off" else changed + content[middle + 8 :])
    again = recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=score, **KEEP)
    check_same_run(tmp_path, again, whole)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut off", "zeros"])
@pytest.mark.parametrize("name", ["adapter", "adapter-2"])
def test_a_damaged_adapter_is_trained_again_with_a_warning(name, how, tokenizer, tmp_path, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / name / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] + (b"" if how == "cut off" else bytes(100)))
    with pytest.warns(UserWarning, match=f"{name} is damaged .*renamed to {name}.damaged"):
        again = recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=score, **KEEP)
    shutil.rmtree(tmp_path / f"{name}.damaged")  # where the damaged one was put
    check_same_run(tmp_path, again, whole)


STATES = {  # what recovery.json can be damaged to
    "a row less": lambda saved: saved | {"history": saved["history"][:-1]},
    "another loss": lambda saved: saved | {"history": [row | {"loss": 1.5} for row in saved["history"]]},
    "no history": lambda saved: {"identity": saved["identity"]},
    "empty": lambda saved: {},
    "a list": lambda saved: [saved],
    "nothing": lambda saved: None,
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_a_state_that_is_not_as_it_was_written_is_refused(change, tokenizer, tmp_path, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "recovery.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=r"recovery\.json was changed after .* or discard the run"):
        recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=score, **KEEP)


def test_a_run_of_an_earlier_version_is_read(tokenizer, tmp_path, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "recovery.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({name: saved[name] for name in ("identity", "history")}))
    for note in tmp_path.glob("adapter*/contents.json"):
        note.unlink()
    again = recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=Stop(1), **KEEP)
    assert without_time(again.history) == without_time(whole[2].history)


EDITED = {  # how somebody may edit recovery.json by hand
    "no steps": lambda saved: saved["identity"].pop("steps"),
    "no examples": lambda saved: saved["identity"].pop("examples"),
    "steps as text": lambda saved: saved["identity"].update(steps="6"),
    "no list of evaluated steps": lambda saved: saved["identity"].update(evaluated_steps=4),
    "kept steps of another type": lambda saved: saved["identity"].update(kept_steps=[[2]]),
    "identity is a list": lambda saved: saved.update(identity=[]),
    "a row without its step": lambda saved: saved["history"][1].pop("step"),
    "a row of text": lambda saved: saved["history"].append("x"),
    "a loss of text": lambda saved: saved["history"][1].update(loss="low"),
}


@pytest.mark.parametrize("edit", EDITED.values(), ids=EDITED)
def test_an_edited_state_of_an_earlier_version_is_refused_in_one_sentence(edit, tokenizer, tmp_path, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "recovery.json"
    saved = json.loads(path.read_text())
    del saved["digest"]
    edit(saved)
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"recovery\.json was changed after .* or discard the run") as caught:
        recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=score, **KEEP)
    assert "\n" not in str(caught.value)


# Adapters on the way


def test_model_at_a_step_is_the_one_that_training_had_there(tokenizer, whole):
    folder, seen, done = whole
    arguments = {"output_dir": folder, "evaluate": Stop(1), **KEEP}
    for step in (2, 4, 6):
        model_there = recover(make(), tokenizer, EXAMPLES, at=step, **arguments)
        assert torch.allclose(logits(model_there.model), seen[step], atol=1e-5)
        assert without_time(model_there.history) == without_time(done.history)[: step + 1]
    merged = recover(make(), tokenizer, EXAMPLES, at=2, merge=True, **arguments)
    assert torch.allclose(logits(merged.model), seen[2], atol=1e-4)
    assert not torch.allclose(seen[2], seen[6], atol=1e-3) and not torch.allclose(seen[2], seen[0], atol=1e-3)


def test_kept_adapter_is_a_standard_one(whole):
    folder, seen, _ = whole
    loaded = PeftModel.from_pretrained(make(), folder / "adapter-4").eval()
    assert torch.allclose(logits(loaded), seen[4], atol=1e-5)


@pytest.mark.slow
def test_a_run_pauses_at_a_step_and_goes_on_from_there(tokenizer, tmp_path, whole, monkeypatch):
    _, seen, done = whole
    arguments = {"output_dir": tmp_path, "keep_at": [2, 4], **QUICK}
    fresh = recover(make(), tokenizer, EXAMPLES, at=2, **arguments)
    assert torch.allclose(logits(fresh.model), seen[2], atol=1e-5)
    assert fresh.adapter_path == tmp_path / "adapter-2" and fresh.history[-1]["step"] == 2
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "adapter-4").exists()
    with monkeypatch.context() as patch:
        patch.setattr("pruner_lib.recovery.recover.train", None)  # what is there is not trained again
        again = recover(make(), tokenizer, EXAMPLES, at=2, **arguments)
        assert torch.allclose(logits(again.model), seen[2], atol=1e-5)
    last = recover(make(), tokenizer, EXAMPLES, **arguments)
    assert torch.allclose(logits(last.model), seen[6], atol=1e-5)
    losses = [row["loss"] for row in done.history[1:]]
    assert [row["loss"] for row in last.history] == pytest.approx(losses)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, 3])
def test_more_steps_go_on_from_a_shorter_run(stop, tokenizer, tmp_path, monkeypatch):
    """At a constant rate a run that went on is the longer run; `stop` kills it on the way to six steps."""
    constant = QUICK | {"training_arguments": {"lr_scheduler_type": "constant"}}
    arguments = {"evaluate": score, "evaluate_at": [2], "keep_at": [2]}
    whole = recover(
        make(), tokenizer, EXAMPLES, output_dir=tmp_path / "whole", **arguments, **constant | {"steps": 9}
    )
    place, more = {"output_dir": tmp_path / "parts"}, constant | {"steps": 9}
    if stop:
        with pytest.raises(KeyboardInterrupt):
            recover(make(), tokenizer, EXAMPLES, **place, **arguments | {"evaluate": Stop(stop)}, **constant)
    else:
        first = recover(make(), tokenizer, EXAMPLES, **place, **arguments, **constant)
        assert [row["step"] for row in first.history] == list(range(7))
    with pytest.warns(UserWarning, match="had 6 steps and continues to 9"):
        done = recover(make(), tokenizer, EXAMPLES, **place, **arguments, **more)
    assert same(adapter(tmp_path / "parts"), adapter(tmp_path / "whole"))
    rows = [[row["loss"] for row in one.history] for one in (done, whole)]
    assert rows[0] == rows[1] and len(rows[0]) == 10
    assert [row["step"] for row in done.history if "score" in row] == [0, 2, 9] if stop else [0, 2, 6, 9]
    assert (tmp_path / "parts" / "adapter-6").exists() == (stop is None)
    with monkeypatch.context() as patch:
        patch.setattr("pruner_lib.recovery.recover.train", None)  # what is there is not trained again
        again = recover(make(), tokenizer, EXAMPLES, **place, **arguments, **more)
    assert torch.equal(logits(again.model), logits(done.model))


@pytest.mark.slow
def test_steps_that_are_added_have_the_learning_rates_of_the_longer_run(tokenizer, tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
            seen.append((state.global_step, lr_scheduler.get_last_lr()[0]))

    for steps in (6, 12):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            recover(
                make(),
                tokenizer,
                EXAMPLES,
                output_dir=tmp_path,
                callbacks=[Watch()],
                **QUICK | {"steps": steps},
            )
    rate = QUICK["learning_rate"]
    warm = QUICK.get("warmup_steps", 0)
    wanted = {step: rate * (12 - step) / (12 - warm) for step in range(6, 12)}
    assert dict(seen[6:]) == pytest.approx(wanted), "and not 0 in the first of them"


@pytest.mark.slow
def test_what_is_no_beginning_of_the_longer_run_is_not_gone_on_from(tokenizer, tmp_path):
    arguments = {"output_dir": tmp_path, "evaluate": score, **QUICK}
    recover(make(), tokenizer, EXAMPLES, **arguments)
    for change, name in (({"examples": EXAMPLES[1:]}, "examples"), ({"evaluate_at": [3]}, "evaluated_steps")):
        with pytest.raises(ValueError, match=rf"{name}: .* there, .* now"):
            recover(make(), tokenizer, **{"examples": EXAMPLES, **arguments, "steps": 9, **change})
