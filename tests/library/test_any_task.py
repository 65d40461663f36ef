"""Any task of lm-eval is asked as lm-eval's command line asks it, with whatever tokenizer a model has."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
import yaml
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing

from pruner_lib.evaluation import tasks as module
from pruner_lib.evaluation.zero_shot import zero_shot
from pruner_lib.models.load import load_model

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{q}}\nA:",
    "doc_to_target": "{{right}}",
    "doc_to_choice": "{{choices}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TEXT = {"doc_to_text": "Q: {{q}}\nA:", "doc_to_target": "{{choices[0]}}"}
WRITING = {
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
    "metric_list": [{"metric": "exact_match"}],
    "filter_list": [{"name": name, "filter": [{"function": "take_first"}]} for name in ("strict", "loose")],
}
DEFINITIONS = {
    "choice": CHOICE,
    "two_right": CHOICE | {"doc_to_target": [0, 1], "metric_list": [{"metric": "acc"}]},
    "mutual": CHOICE | {"metric_list": [{"metric": "acc"}, {"metric": "acc_mutual_info"}]},
    "text": TEXT | {"output_type": "loglikelihood", "metric_list": [{"metric": "acc"}]},
    "page": TEXT | {"output_type": "loglikelihood_rolling", "metric_list": [{"metric": "bits_per_byte"}]},
    "writing": TEXT | WRITING,
    "wordy": TEXT | WRITING | {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 9999}},
    "no_number": TEXT | WRITING | {"doc_to_choice": "{{choices}}"},
    "forbidden": CHOICE | {"num_fewshot": 0},
    "shown": CHOICE | {"num_fewshot": 1},
    "code": TEXT | WRITING | {"unsafe_code": True},
    "letter": CHOICE | {"doc_to_target": "A"},
    "beyond": CHOICE | {"doc_to_target": "{{7 if right else 0}}"},
    "nobody": CHOICE | {"doc_to_target": -1},
    "odd": CHOICE | {"doc_to_text": "{{q if right or q == 'x' else q.lost.lost}}"},
}  # fmt: skip
ALL_TASKS = module.all_tasks
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
SPECIAL = ("pad_token", "eos_token", "bos_token", "unk_token")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Task files over six questions."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"q": "x" * (1 + n), "choices": [f"a {n}", "no", "maybe so"], "right": n % 3} for n in range(6)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"dataset_path": "json", "test_split": "test"}
    data["dataset_kwargs"] = {"data_files": {"test": str(folder / "rows.jsonl")}}
    paths = {name: folder / f"{name}.yaml" for name in DEFINITIONS}
    for name, path in paths.items():
        path.write_text(yaml.safe_dump({"task": name, "tag": "mine"} | data | DEFINITIONS[name]))
    return paths


@pytest.fixture(scope="module", autouse=True)
def known_tasks(files):
    """Let the files' names be all that lm-eval knows: its own tasks lie on the hub."""
    manager = TaskManager(include_path=files["choice"].parent, include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "all_tasks", lambda: manager)
        patch.setattr(evaluator, "add_env_info", lambda report: None)  # asks pip and the drivers each time
        yield manager


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved model whose tokenizer begins each text with BOS, as those of Gemma and Llama 3 do."""
    model, tokenizer = load_model("tiny")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    place = tmp_path_factory.mktemp("model")
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def command_line(files, name, subject=None, model_args=None, **how) -> dict:
    """What lm-eval gives, called as its command line calls it."""
    if subject:
        lm = HFLM(
            pretrained=subject[0], tokenizer=copy.deepcopy(subject[1]), add_bos_token=how.pop("bos", False)
        )
    else:
        lm = "hf"
    manager = TaskManager(include_defaults=False)
    found = evaluator.simple_evaluate(
        lm, model_args, [str(files[name])], batch_size=2, device="cpu", task_manager=manager,
        bootstrap_iters=1000, fewshot_as_multiturn=how.get("apply_chat_template", False), **how,
    )  # fmt: skip
    row = found["results"][name]
    return {key.removesuffix(",none"): row[key] for key in row if "," in key}


def same(ours: dict, theirs: dict) -> bool:
    theirs = {key: math.nan if value == "N/A" else value for key, value in theirs.items()}
    return ours == pytest.approx(theirs, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("name", ["choice", "two_right", "mutual", "text", "page", "writing"])
def test_a_task_file_gives_what_lm_eval_gives(name, files):
    subject = load_model("tiny")
    score = zero_shot(*subject, [files[name]])[name]
    assert same(score.values, command_line(files, name, subject)), "and every filter of the answers"
    assert score.n == 6 and score.value == score.values[score.metric]
    assert len(score.p_right) == 6 * (name in ("choice", "mutual"))
    assert len(score.bits_per_byte) == 6 * (name in ("choice", "mutual", "text"))
    assert len(score.correct) == 6 * (name != "page")
    assert score.protocol["split"] == "test" and score.protocol["fewshot"] == 0


def test_names_and_tags_of_lm_eval_are_tasks_too(files):
    subject = load_model("tiny")
    found = zero_shot(*subject, ["text", files["choice"]], 2)
    assert list(found) == ["text", "choice"] and [score.n for score in found.values()] == [2, 2]
    assert zero_shot(*subject, "choice", 2)["choice"] == found["choice"]
    alone = zero_shot(*subject, ["choice", "text"], right_answers_only=True)
    whole = zero_shot(*subject, ["choice", "text"])
    for name in alone:
        assert alone[name].bits_per_byte == pytest.approx(whole[name].bits_per_byte, abs=1e-4)
        assert alone[name].values == {} and alone[name].protocol == whole[name].protocol


@pytest.mark.parametrize("name", ["page", "text", "writing"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_broken_model_is_an_error_whatever_the_task(poison, name, files):
    model, tokenizer = load_model("tiny")
    assert zero_shot(model, tokenizer, [files[name]])[name].n == 6
    model.model.norm.weight.data[0] = poison
    with pytest.raises(ValueError, match="the model gives NaN or infinite logits"):
        zero_shot(model, tokenizer, [files[name]])
    assert not model.lm_head._forward_hooks


@pytest.mark.parametrize("name", ["choice", "text", "writing"])
def test_examples_come_before_the_question_as_lm_eval_puts_them(name, files):
    subject = load_model("tiny")
    none, two = (zero_shot(*subject, [name], num_fewshot=n)[name] for n in (None, 2))
    assert same(two.values, command_line(files, name, subject, num_fewshot=2))
    assert (two.protocol["fewshot"], none.protocol["fewshot"]) == (2, 0)
    assert two.protocol["questions"] != none.protocol["questions"]
    assert zero_shot(*subject, [name], num_fewshot=2)[name].protocol == two.protocol, "drawn by one seed"


def test_examples_of_the_seven_are_forgotten_after_the_call(tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    rows = [{"goal": f"to {n}", "sol1": "a b", "sol2": "c", "label": n % 2} for n in range(5)]
    (tmp_path / "tasks" / "piqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("PRUNER_LIB_DATA", str(tmp_path))
    subject = load_model("tiny")
    before, two, after = (zero_shot(*subject, ["piqa"], num_fewshot=n)["piqa"] for n in (None, 2, None))
    assert before == after and two.protocol["fewshot"] == 2
    assert two.bits_per_byte != before.bits_per_byte


def test_what_a_definition_says_of_examples_holds(files):
    subject = load_model("tiny")
    assert zero_shot(*subject, ["shown"])["shown"].protocol["fewshot"] == 1
    assert zero_shot(*subject, ["shown"], num_fewshot=0)["shown"].protocol["fewshot"] == 0
    assert zero_shot(*subject, ["forbidden"])["forbidden"].protocol["fewshot"] == 0
    with pytest.raises(ValueError, match="the definition of forbidden says 0"):
        zero_shot(*subject, ["forbidden"], num_fewshot=2)


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("name", ["choice", "writing"])
def test_a_chat_template_is_lm_evals_way_of_asking(name, shots, files):
    model, tokenizer = load_model("tiny")
    tokenizer.chat_template = TEMPLATE
    how = {"apply_chat_template": True, "num_fewshot": shots}
    score, plain = zero_shot(model, tokenizer, [name], **how)[name], zero_shot(model, tokenizer, [name])[name]
    assert same(score.values, command_line(files, name, (model, tokenizer), **how))
    assert score.protocol["questions"] != plain.protocol["questions"]
    assert "chat_template" in score.protocol and "chat_template" not in plain.protocol


@pytest.mark.parametrize("name", ["choice", "writing"])
@pytest.mark.parametrize("add_bos", [None, True, False])
def test_bos_is_what_lm_evals_command_line_makes_of_it(add_bos, name, files, folder):
    settings = f"pretrained={folder}" + ("" if add_bos is None else f",add_bos_token={add_bos}")
    ours = zero_shot(*load_model(str(folder)), [files[name]], add_bos=add_bos)[name]
    assert same(ours.values, command_line(files, name, model_args=settings))
    assert ours.protocol["add_bos"] is add_bos


def test_bos_stands_before_texts_of_a_tokenizer_that_puts_none(files, folder):
    begun, plain = load_model(str(folder)), load_model("tiny")
    bits = {
        add_bos: zero_shot(*plain, [files["choice"]], add_bos=add_bos)["choice"].bits_per_byte
        for add_bos in (None, True, False)
    }
    assert bits[None] == bits[False] != bits[True]
    assert bits[True] == zero_shot(*begun, [files["choice"]], add_bos=None)["choice"].bits_per_byte


@pytest.fixture(scope="module")
def wanted(files):
    """The scores of a tokenizer that has all special tokens."""
    return zero_shot(*load_model("tiny"), ["choice", "text", "writing"], batch_size=1)


@pytest.mark.parametrize("missing", [(), SPECIAL[:1], SPECIAL[:2], SPECIAL[:3], SPECIAL[1:], SPECIAL])
@pytest.mark.parametrize("batch_size", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_tokenizers_without_special_tokens_work_and_stay_as_they_were(missing, batch_size, wanted):
    model, tokenizer = load_model("tiny")
    for token in missing:
        setattr(tokenizer, token, None)
    before, table = tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map
    state = {key: copy.deepcopy(value) for key, value in vars(tokenizer).items() if key != "_tokenizer"}
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = zero_shot(model, tokenizer, ["choice", "text", "writing"], batch_size=batch_size)
    for name, score in found.items():
        assert score.values == pytest.approx(wanted[name].values, rel=1e-4)
        assert score.bits_per_byte == pytest.approx(wanted[name].bits_per_byte, abs=1e-4)
    assert tokenizer.backend_tokenizer.to_str() == before and tokenizer.special_tokens_map == table
    assert {key: value for key, value in vars(tokenizer).items() if key != "_tokenizer"} == state
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_a_task_file_needs_no_index_of_all_tasks(files, known_tasks, monkeypatch):
    indexed = []
    monkeypatch.setattr(module, "all_tasks", lambda: indexed.append(1) or known_tasks)
    for path in (files["choice"], str(files["writing"])):
        assert [*module.load_tasks(path)] == [Path(path).stem]
    assert not indexed
    assert [*module.load_tasks("shown")] == ["shown"] and indexed


def test_a_line_says_that_all_tasks_are_indexed(monkeypatch, caplog):
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda: "index")
    assert ALL_TASKS.__wrapped__() == "index"
    assert caplog.messages == ["indexing all tasks of lm-eval, which can take a few minutes ..."]


@pytest.mark.parametrize("name", ["page", "mutual"])
def test_a_text_without_anything_before_it_needs_a_first_token(name, files):
    model, tokenizer = load_model("tiny")
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="needs a BOS or EOS token before it, .* has neither"):
        zero_shot(model, tokenizer, [name])


def test_a_head_that_its_owner_untied_stays_untied(files):
    model, tokenizer = load_model("tiny")
    model.config.tie_word_embeddings = True
    head = model.lm_head.weight
    assert head is not model.get_input_embeddings().weight
    zero_shot(model, tokenizer, ["choice"], 1)
    assert model.lm_head.weight is head and "tie_weights" not in vars(model)


@pytest.mark.parametrize(
    ("tasks", "how", "message"),
    [
        ("no_such", {}, r"unknown task 'no_such'; choose from boolq, .*\.yaml"),
        ("no_such.yaml", {}, "unknown task 'no_such.yaml'"),
        ("code", {}, "task code runs code that the model writes"),
        ("choice", {"num_fewshot": 6}, "num_fewshot=6, but choice has 6 examples"),
        ("choice", {"num_fewshot": -1}, "num_fewshot must be .*, got -1"),
        (3, {}, "tasks\\[0\\] must be a string or a Path, got 3"),
        ("choice", {"add_bos": "yes"}, "unknown add_bos 'yes'; choose one of True, False, None"),
        ("choice", {"apply_chat_template": True}, "has no chat template"),
        ("choice", {"add_bos": True}, "has no BOS token"),
        ("two_right", {"right_answers_only": True}, "two_right has questions without a single right answer"),
        ("writing", {"right_answers_only": True}, "writing has questions without a single right answer"),
        ("letter", {}, r"question 0 of letter .*right answer, 'A', is not among its choices, \['a 0', 'no'"),
        ("beyond", {}, r"question 1 of beyond .*right answer, 7, is not among its choices"),
        ("nobody", {}, r"question 0 of nobody .*right answer, -1, is not among its choices"),
        ("odd", {}, r"question 3 of odd does not fit the task's definition .*; fix the data or the definit"),
        ("choice", {"shared_context": "no"}, "shared_context must be True or False, got 'no'"),
        ("choice", {"right_answers_only": "no"}, "right_answers_only must be True or False, got 'no'"),
        ("choice", {"apply_chat_template": "no"}, "apply_chat_template must be True or False, got 'no'"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(tasks, how, message):
    model, tokenizer = load_model("tiny")
    tokenizer.bos_token = None
    model.forward = None  # nothing is computed
    with pytest.raises(ValueError, match=message):
        zero_shot(model, tokenizer, [tasks], **how)


@pytest.mark.parametrize(
    ("name", "reason"), [("wordy", "AssertionError.*9999"), ("no_number", "TypeError.*list indices")]
)
def test_what_fails_within_lm_eval_is_said_in_a_sentence(name, reason, files):
    with pytest.raises(
        ValueError, match=f"lm-eval can't ask or score {name} .{reason}.*; fix the definition"
    ):
        zero_shot(*load_model("tiny"), [name])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{", "has a chat template that can't be used .*unexpected"),
        ("{{ raise_exception('no users') }}", "has a chat template that can't be used .*no users"),
        ("Answer!", "has a chat template that omits the user's message"),
    ],
)
def test_a_chat_template_that_shows_no_question_is_refused(template, message, files):
    model, tokenizer = load_model("tiny")
    tokenizer.chat_template, model.forward = template, None
    with pytest.raises(ValueError, match=message):
        zero_shot(model, tokenizer, ["choice"], apply_chat_template=True)


@pytest.mark.parametrize(
    "text", ["task: broken\noutput_type: choice\n", "task: [broken", "task: broken\n", ""]
)
def test_a_broken_task_file_is_named(text, tmp_path):
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ValueError, match="broken.yaml' can't be loaded"):
        zero_shot(*load_model("tiny"), [tmp_path / "broken.yaml"])
