"""`python -m pruner_lib prune` does what the eight lines do, or says in a sentence why it does not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import forked
import pytest
import torch
from families import tokens
from forked import wait_until
from gguf_client import LlamaCpp
from transformers import AutoModelForCausalLM

import pruner_lib
from pruner_lib import discover, estimate, load_model, prune_, select
from pruner_lib.__main__ import main
from pruner_lib.data.windows import calibration_ids

# the tiny model has two layers, and its MLPs of 96 are a small part of it
TINY = ["--protect-first", "0", "--protect-last", "0", "--target", "groups", "--calibration", "tiny"]


def prune(out: Path, *words: object, options: list[str] = TINY) -> int:
    return main(["prune", "tiny", str(out), *options, *map(str, words)])


def refused(words: list[object], capsys) -> str:
    """The sentence on stderr of a command that is to be refused; progress before it is left out."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as stopped:  # argparse's own
        code = stopped.code
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "error: " in lines[-1] and not any(line.startswith("Traceback") for line in lines)
    return lines[-1].partition("error: ")[2]


def test_the_command_gives_what_the_eight_lines_give(tmp_path, capsys):
    assert prune(tmp_path / "m", "--ratio", 0.5, "--multiple-of", 1) == 0
    printed = capsys.readouterr().out
    model, tokenizer = load_model("tiny")
    axes, before = discover(model), model.num_parameters()
    ids = calibration_ids("tiny", tokenizer, samples=10, length=64)
    plan = select(axes, estimate(model, axes, ids, criterion="element1"), ratio=0.5)
    after = prune_(model, plan).num_parameters()
    again, _ = load_model(tmp_path / "m")
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    assert f"{before:,} -> {after:,} parameters ({1 - after / before:.1%} fewer)" in printed
    assert "layers.*.attention: keeps 1 of 2 groups in 2 of 2 axes" in printed
    for line in [line.strip() for line in printed.splitlines() if "from_pretrained" in line]:
        assert "trust_remote_code" not in line
        loaded = eval(line, {"transformers": __import__("transformers")})
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_a_model_that_is_named_as_one_of_ours_is_loaded_by_what_is_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prune("tiny", "--ratio", 0.5) == 0
    line = next(one for one in capsys.readouterr().out.splitlines() if "pruner_lib.load_model" in one)
    model, _ = eval(line, {"pruner_lib": pruner_lib})
    assert model.num_parameters() < load_model("tiny")[0].num_parameters()


def test_options_reach_the_plan_and_the_weights(tmp_path):
    words = "--ratio 0.4 --granularity block --scope global --criterion l2 --dtype bfloat16 --aggregation max"
    assert prune(tmp_path / "m", *words.split()) == 0
    settings = json.loads((tmp_path / "m" / "plan.json").read_text())["settings"]
    wanted = {"ratio": 0.4, "scope": "global", "target": "groups", "multiple_of": 8, "uniform": False}
    assert {name: settings[name] for name in wanted} == wanted
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True)
    assert model.dtype == torch.bfloat16
    assert all(layer.mlp.up_proj.out_features % 8 == 0 for layer in model.model.layers)


@pytest.mark.slow
def test_widths_are_multiples_of_eight_unless_another_is_given(tmp_path):
    for words, rest in (([], 0), (["--multiple-of", 1], 4)):
        assert prune(tmp_path / f"m{rest}", "--ratio", 0.375, *words) == 0
        model, _ = load_model(tmp_path / f"m{rest}")
        assert model.model.layers[0].mlp.up_proj.out_features % 8 == rest


@pytest.mark.slow
def test_layers_are_left_whole_unless_all_must_be_alike(tmp_path, capsys):
    """Four and two by default, which leaves nothing of two layers; with --uniform none."""
    options = ["--calibration", "tiny", "--target", "groups"]
    for kind in (["--uniform"], ["--granularity", "channel"]):
        assert prune(tmp_path / kind[-1], *kind, options=options) == 0
        settings = json.loads((tmp_path / kind[-1] / "plan.json").read_text())["settings"]
        assert settings["protect_first"] == settings["protect_last"] == 0


def test_protecting_all_layers_is_refused_by_the_names_of_the_flags(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pruner_lib.method.discover, "discover", None)
    for words, first in (([], 4), (["--protect-first", "0"], 0)):
        found = f"--protect-first {first} and --protect-last 2 leave none of 2 layers to prune"
        said = refused(["prune", "tiny", tmp_path / "m", *words], capsys)
        assert said == f"{found}; lower them (defaults: 4 and 2)"


def test_calibration_samples_begin_with_bos_if_the_tokenizer_adds_it(bos_folder, tmp_path, monkeypatch):
    seen, estimate = [], pruner_lib.method.importance.estimate

    def spy(model, axes, ids, **options):
        seen.append(ids)
        return estimate(model, axes, ids, **options)

    monkeypatch.setattr(pruner_lib.method.importance, "estimate", spy)
    for model in ("tiny", bos_folder):
        words = [model, tmp_path / f"pruned{len(seen)}", *TINY, "--seed", 3, "--samples", 4, "--length", 9]
        assert main(["prune", *map(str, words)]) == 0
    without, begun = seen
    bos = load_model("tiny")[1].bos_token_id
    assert without.shape == begun.shape == (4, 9) and bos not in without
    assert (begun[:, 0] == bos).all() and (begun == bos).sum() == 4


@pytest.mark.slow
def test_a_text_and_instructions_may_be_files(tmp_path):
    text, rows = tmp_path / "mine.txt", tmp_path / "mine.jsonl"
    text.write_text("\n\n".join(["a river and a red stone " * 5] * 12))
    rows.write_text('{"instruction": "Say a.", "output": "a"}\n' * 3)
    words = ["--calibration", text, "--recover", rows, "--recover-steps", 2]
    assert prune(tmp_path / "recovered", *words) == 0
    assert prune(tmp_path / "bare", *words[:2]) == 0
    models = [load_model(tmp_path / name)[0] for name in ("recovered", "bare")]
    a, b = (model.model.layers[0].mlp.up_proj.weight for model in models)
    assert a.shape == b.shape and not torch.equal(a, b)
    names = {"mine.txt", "mine.jsonl", "recovered", "bare"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_gguf_file_is_written_beside_the_folder(tmp_path):
    assert prune(tmp_path / "m", "--gguf", tmp_path / "m.gguf", "--ratio", 0.5) == 0
    client, (model, tokenizer) = LlamaCpp(tmp_path / "m.gguf"), load_model(tmp_path / "m")
    text = "a river and 2 stones"
    assert client.tokens(text) == tokenizer(text)["input_ids"]
    assert client.disagreement(model, tokenizer(text)["input_ids"], n=1) < 0.01


def test_a_model_that_can_be_no_gguf_is_refused_before_it_is_pruned(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pruner_lib.models.export, "MODEL_TYPES", ("qwen2",))
    words = ["prune", "tiny", tmp_path / "m", *TINY]
    assert "got 'llama'" in refused([*words, "--gguf", tmp_path / "m.gguf"], capsys)
    assert not list(tmp_path.iterdir())
    assert prune(tmp_path / "m") == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--criterion", "l2", "--calibration", "no.txt"], "unknown text 'no.txt'"),
        (["--ratio", "0"], "ratio must be a number in (0, 1), got 0.0"),
        (["--ratio", "1"], "ratio must be a number in (0, 1), got 1.0"),
        (["--ratio", "nan"], "ratio must be a number in (0, 1), got nan"),
        (["--ratio", "-0.1"], "ratio must be a number in (0, 1), got -0.1"),
        (["--ratio", "1.5"], "ratio must be a number in (0, 1), got 1.5"),
        (["--ratio", "much"], "invalid float value: 'much'"),
        (["--samples", "0"], "samples must be a whole number of at least 1, got 0"),
        (["--samples", "-1"], "samples must be a whole number of at least 1, got -1"),
        (["--samples", "2.5"], "invalid int value: '2.5'"),
        (["--length", "1"], "length must be a whole number of at least 2, got 1"),
        (["--seed", "-1"], "seed must be a whole number of at least 0"),
        (["--seed", "4294967296", "--recover", "tiny"], "seed must be a number in [0, 4294967296), got"),
        (["--multiple-of", "0"], "multiple_of must be a whole number of at least 1"),
        (["--protect-first", "-1"], "protect_first must be a whole number of at least 0"),
        (["--granularity", "channel", "--protect-last", "1"], "protect_first and protect_last must be 0"),
        (["--criterion", "taylor"], "invalid choice: 'taylor'"),
        (["--aggregation", "none"], "invalid choice: 'none'"),
        (["--granularity", "head"], "invalid choice: 'head'"),
        (["--scope", "all"], "invalid choice: 'all'"),
        (["--target", "weights"], "invalid choice: 'weights'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--calibration", "wikki"], "unknown text 'wikki'"),
        (["--recover", "alpacca"], "unknown instructions 'alpacca'"),
        (["--recover", "tiny", "--recover-steps", "0"], "recover_steps must be a whole number of at least 1"),
        (["--recover-steps", "5"], "--recover-steps was given without --recover"),
        (["--gguf", "new/m"], "OUT and --gguf are both new/m"),
        (["--gguf", "/proc/m.gguf"], "nothing can be written in /proc"),
        (["--gguf", "/dev/null/m.gguf"], "/dev/null is a file"),
        (["--nope"], "unrecognized arguments: --nope"),
        (["another"], "unrecognized arguments: another"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(words, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pruner_lib.models.load, "load_model", None)  # calling it would be a TypeError
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(["prune", "tiny", "new/m", *TINY, *words], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["prune", "tiny"], "the following arguments are required: OUT"),
        (["pruin", "tiny", "m"], "invalid choice: 'pruin'"),
        (["prune", "tiny", "/proc/m"], "nothing can be written in /proc"),
        (["prune", "tiny", "/dev/null/m"], "/dev/null is a file; give a folder"),
        (["prune", "tiny", "dangling"], "dangling exists and is not overwritten"),
        (["prune", "tiny", "dangling/m"], "dangling is a link; give a folder"),
        (["prune", "tiny", "m" * 300], "ame too long"),
        (["prune", "tiny", "m\udcff"], "give another folder"),
        (
            ["prune", "tiny", "m", "--recover", "none.jsonl"],
            "none.jsonl can't be read (ValueError('it is empty')); expected",
        ),
        (["prune", "mine.gguf", "m"], "unknown model 'mine.gguf'"),
        (["prune", "tiny", "m", "--device", "tpu7"], "got 'tpu7'"),
        (["prune", "tiny", "m", "--samples", "1000"], "text 'tiny' has 200 documents"),
        (["prune", "tiny", "m", "--recover", "chats.jsonl"], "has no chat template"),
    ],
)
def test_other_words_are_refused_before_groups_are_discovered(words, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pruner_lib.method.discover, "discover", None)
    monkeypatch.chdir(tmp_path)
    Path("mine.gguf").touch()
    Path("none.jsonl").touch()
    Path("dangling").symlink_to("nowhere/at/all")
    before = {path.name for path in tmp_path.iterdir()} | {"chats.jsonl"}
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant")]
    Path("chats.jsonl").write_text(json.dumps({"messages": turns}))
    assert sentence in refused([*words, *TINY], capsys)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--uniform", "--protect-first", "1"],
            "uniform=True needs scope='local', one ratio",
        ),
        (["--target", "parameters", "--ratio", "0.9"], "no plan removes 90.0% of the parameters"),
    ],
)
def test_a_plan_that_can_not_be_is_refused_before_groups_are_scored(
    words, sentence, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(pruner_lib.method.importance, "estimate", None)
    assert sentence in refused(["prune", "tiny", tmp_path / "new" / "m", *TINY, *words], capsys)
    assert not list(tmp_path.iterdir())


def test_an_unknown_model_is_refused(tmp_path, capsys):
    assert "unknown model 'nothing'" in refused(["prune", "nothing", tmp_path / "m", *TINY], capsys)


@pytest.mark.parametrize("taken", ["m", "m.gguf"])
def test_what_exists_is_refused_before_anything_is_computed(taken, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pruner_lib.models.load, "load_model", None)  # calling it would be a TypeError
    (tmp_path / taken).mkdir()
    words = ["prune", "tiny", tmp_path / "m", *TINY, "--gguf", tmp_path / "m.gguf"]
    assert f"{taken} exists and is not overwritten" in refused(words, capsys)
    assert not list((tmp_path / taken).iterdir()) and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_said_in_a_sentence(tmp_path, capsys, monkeypatch):
    def full(*args, **how):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pruner_lib.models.save.PreTrainedModel, "save_pretrained", full)
    words = ["prune", "tiny", tmp_path / "m", *TINY]
    assert "No space left on device" in refused(words, capsys)
    assert not list(tmp_path.iterdir())


def test_without_a_verb_it_explains_itself(capsys):
    assert main([]) == 0
    shown = capsys.readouterr()
    assert "usage: python -m pruner_lib" in shown.out and not shown.err
    assert "prune smollm2-135m smaller --ratio 0.2" in shown.out


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing(how, tmp_path):
    out, said = tmp_path / "m", tmp_path / "said.txt"
    words = ["prune", "tiny", str(out), *TINY, "--recover", "tiny", "--recover-steps", "10000"]
    process = forked.start(forked.as_program, "pruner_lib", *words, said=said)
    try:
        wait_until(lambda: not process.is_alive() or "\nrecovering" in said.read_text())
        os.kill(process.pid, how)
        process.join(120)
        assert process.exitcode == 130
    finally:
        process.kill()
    assert f"interrupted; {out} was not written" in said.read_text() and "Traceback" not in said.read_text()
    assert list(tmp_path.iterdir()) == [said]
