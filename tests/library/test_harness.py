from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from made_questions import row

from pruner_lib.data.corpora import UNCONDITIONAL, read_questions
from pruner_lib.evaluation import tasks as module
from pruner_lib.evaluation.tasks import SEVEN_TASKS, TASKS, draw, find_data
from pruner_lib.evaluation.zero_shot import zero_shot
from pruner_lib.models.load import load_model


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A local data directory with five questions per task."""
    folder = tmp_path_factory.mktemp("data") / "tasks"
    folder.mkdir()
    for task in SEVEN_TASKS:
        rows = [json.dumps(row(task, number)) for number in range(5)]
        (folder / f"{task}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def questions(made, tmp_path, monkeypatch) -> Path:
    """A copy of these questions, which a test may change."""
    folder = Path(shutil.copytree(made, tmp_path / "data" / "tasks"))
    monkeypatch.setenv("PRUNER_LIB_DATA", str(folder.parent))
    return folder


@pytest.fixture(scope="module")
def subject(made):
    return load_model("tiny")


@pytest.fixture(scope="module")
def whole(made, subject):
    """The scores of all questions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNER_LIB_DATA", str(made.parent))
        return zero_shot(subject[0].train(), subject[1])


def fan_of(letter: str, strength: float):
    """Build a model that always expects one letter, whatever came before."""
    model, tokenizer = load_model("tiny")
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    torch.nn.init.zeros_(head.weight)
    head.bias.data.zero_()[tokenizer(letter, add_special_tokens=False)["input_ids"][-1]] = strength
    model.lm_head = head
    return model, tokenizer


def save_requests(path: Path, documents: list[dict], twins: bool = True) -> Path:
    """Write requests as the archive holds them: a line a choice, then the same without the question."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        for start in (0, UNCONDITIONAL) if twins else (0,):
            for number, document in enumerate(documents):
                for _ in document["choices"]:
                    file.write(json.dumps({"doc_id": start + number, "doc": document}) + "\n")
    return path


def test_all_seven_tasks_run_offline_and_the_mode_stays(whole, subject):
    assert tuple(whole) == SEVEN_TASKS and subject[0].training
    for task, score in whole.items():
        assert score.n == len(score.correct) == 5 and set(score.correct) <= {0, 1}
        assert score.value == pytest.approx(np.mean(score.correct))
        assert score.stderr == pytest.approx(np.std(score.correct, ddof=1) / np.sqrt(5))
        assert score.metric == TASKS[task].metric and score.values[score.metric] == score.value
        assert score.protocol["split"] == ("test" if task.startswith(("arc", "open")) else "validation")
        assert score.protocol["limit"] is None and score.protocol["fewshot"] == 0


def test_a_model_that_knows_is_right_and_its_opposite_wrong(questions):
    tasks = ["piqa", "hellaswag", "arc_easy", "arc_challenge", "openbookqa"]
    for strength, right in ((9.0, 1), (-9.0, 0)):
        scores = zero_shot(*fan_of("z", strength), tasks)
        assert {task: score.correct for task, score in scores.items()} == dict.fromkeys(tasks, (right,) * 5)


def test_the_papers_metric_is_the_one_reported(questions):
    # Eight liked letters cost more than four others: only per byte does the right choice win.
    scores = zero_shot(*fan_of("z", 0.5), ["hellaswag", "piqa"])
    assert scores["hellaswag"].metric == "acc_norm" and scores["hellaswag"].value == 1
    assert scores["hellaswag"].values["acc"] == 0
    assert scores["piqa"].metric == "acc" and scores["piqa"].value == 0
    assert scores["piqa"].values["acc_norm"] == 1


def test_a_limit_without_a_seed_takes_the_first_questions(questions, subject, whole):
    for n in (1, 3):
        part = zero_shot(*subject, ["piqa", "boolq"], n, seed=None)
        assert {task: score.correct for task, score in part.items()} == {
            task: whole[task].correct[:n] for task in part
        }
        assert part["piqa"].protocol["limit"] == n and np.isnan(part["piqa"].stderr) == (n == 1)
        assert part["piqa"].protocol["questions"] != whole["piqa"].protocol["questions"]
    assert zero_shot(*subject, ["piqa"], 99)["piqa"].correct == whole["piqa"].correct


def test_the_batch_size_changes_no_answer(questions, subject, whole):
    one = zero_shot(*subject, ["arc_easy"], batch_size=1)["arc_easy"]
    assert one.correct == whole["arc_easy"].correct and one.protocol == whole["arc_easy"].protocol


def test_a_limit_draws_questions_by_a_seed(questions, subject, whole):
    whole = whole["piqa"]
    drawn = {seed: zero_shot(*subject, ["piqa"], 2, seed=seed)["piqa"] for seed in range(3)}
    task = SimpleNamespace(eval_docs=range(5))
    for seed, score in drawn.items():
        picked = draw(task, 2, seed)
        assert score.n == 2 and score.p_right == pytest.approx([whole.p_right[i] for i in picked], abs=1e-5)
        assert set(picked) < set(draw(task, 3, seed)), "a larger limit extends the sample"
        assert score.protocol["seed"] == seed and score.protocol["limit"] == 2
    assert drawn[0].protocol == zero_shot(*subject, ["piqa"], 2)["piqa"].protocol
    hashes = {score.protocol["doc_ids"] for score in drawn.values()}
    assert len(hashes) == len({tuple(draw(task, 2, seed)) for seed in drawn}) > 1
    assert "doc_ids" not in whole.protocol and draw(task, 9, 0) == [0, 1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("right_answers_only", [False, True])
def test_sharing_contexts_changes_no_score(right_answers_only, questions, subject, whole):
    only = {"right_answers_only": right_answers_only}
    ours = zero_shot(*subject, **only) if right_answers_only else whole
    theirs = zero_shot(*subject, shared_context=False, **only)
    for task in SEVEN_TASKS:
        assert ours[task].correct == theirs[task].correct and ours[task].protocol == theirs[task].protocol
        assert ours[task].bits_per_byte == pytest.approx(theirs[task].bits_per_byte, abs=1e-4)
        assert ours[task].p_right == pytest.approx(theirs[task].p_right, abs=1e-5)
        assert ours[task].values == theirs[task].values


def test_right_answers_alone_have_the_same_bits_per_byte_and_nothing_else(questions, subject, whole):
    model, read = subject[0], []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _m, ids, _out: read.append(ids[0].numel()))
    alone = zero_shot(*subject, ["arc_easy", "piqa"], right_answers_only=True)
    some = sum(read)
    zero_shot(*subject, ["arc_easy", "piqa"])
    hook.remove()
    assert 2 * some < sum(read)
    for task, score in alone.items():
        assert score.bits_per_byte == pytest.approx(whole[task].bits_per_byte, abs=1e-4)
        assert score.n == 5 and score.protocol == whole[task].protocol
        assert (score.correct, score.p_right, score.values) == ((), (), {}) and np.isnan(score.value)


def test_p_and_bits_per_byte_follow_from_a_model_that_knows(questions):
    for strength, larger, smaller in ((9.0, "right", "wrong"), (-9.0, "wrong", "right")):
        score = zero_shot(*fan_of("z", strength), ["arc_easy"])["arc_easy"]
        p = {"right": np.array(score.p_right), "wrong": 1 - np.array(score.p_right)}
        assert (p[larger] > 0.999).all() and (p[smaller] < 0.001).all()
    # every token of 260 is as likely as any other: 8 bits per byte and a little; eight letters against four
    score = zero_shot(*fan_of("z", 0.0), ["arc_easy"])["arc_easy"]
    assert score.bits_per_byte == pytest.approx([np.log2(260)] * 5)
    assert score.p_right == pytest.approx([1 / (1 + 260.0**4)] * 5)


def test_winograndes_right_answer_is_a_context(questions):
    task = module.load_tasks("winogrande")["winogrande"]
    for number, document in enumerate(task.eval_docs):
        assert module.right_answer(task, document) == number % 2
    task = module.load_tasks("hellaswag")["hellaswag"]
    assert [module.right_answer(task, document) for document in task.eval_docs] == [0, 1, 0, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("shared_context", [True, False])
def test_questions_are_asked_again_in_smaller_batches_where_memory_runs_out(
    shared_context, questions, whole, monkeypatch
):
    model, tokenizer = load_model("tiny")
    forward, met = model.forward, []

    def limited(*args, **kwargs):
        met.append(len(kwargs["input_ids"] if kwargs else args[0]))
        if met[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", limited)
    with pytest.warns(UserWarning, match="zero-shot ran out of memory; it continues with batches of"):
        again = zero_shot(model, tokenizer, ["arc_easy", "piqa"], shared_context=shared_context)
    assert {task: score.correct for task, score in again.items()} == {
        task: whole[task].correct for task in ("arc_easy", "piqa")
    }
    assert [one for one in met if one > 3] == [8, 4] and max(met[-3:]) == 2


def test_scores_are_those_of_the_log_likelihoods(questions):
    model, tokenizer = load_model("tiny")
    right, lines = [], []
    for number, word in enumerate(["sun", "moon", "a star", "rain", "the wind", "snow", "fog", "hail"]):
        question = row("openbookqa", number)
        question["choices"]["text"] = [f"{word} {number}", word[::-1]]
        lines.append(json.dumps(question))
        totals = []
        for choice in question["choices"]["text"]:
            context = tokenizer(question["question_stem"], add_special_tokens=False)["input_ids"]
            rest = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
            ids = torch.tensor([context + rest])
            with torch.no_grad():
                logs = model(ids).logits[0].log_softmax(-1)
            total = sum(logs[len(context) + i - 1, token].item() for i, token in enumerate(rest))
            totals.append(total / len(choice))
        right.append(int(np.argmax(totals) == "AB".index(question["answerKey"])))
    (questions / "openbookqa.jsonl").write_text("\n".join(lines))
    assert zero_shot(model, tokenizer, ["openbookqa"])["openbookqa"].correct == tuple(right)
    assert 0 < sum(right) < 8  # a test that only ever saw one answer would show little


def test_requests_give_back_the_prompts_that_they_hold(tmp_path):
    documents = {
        "boolq": {
            "query": "T -- A -- b.\nc\nQuestion: is it so?\nAnswer:",
            "choices": ["yes", "no"],
            "gold": 0,
        },
        "arc_easy": {"id": "M1", "query": "Question: Why?\nAnswer:", "choices": ["a", "b", "c"], "gold": 2},
        "openbookqa": {"id": "8-1", "query": "Question: Frogs\nAnswer:", "choices": ["a", "b"], "gold": 1},
    }
    for task, document in documents.items():
        other = document | {"gold": 1 - document["gold"] % 2}
        path = save_requests(tmp_path / task / "requests.jsonl.gz", [document, other])
        rows = read_questions(task, path)
        assert len(rows) == 2 and rows[0] != rows[1]
        assert rows == read_questions(task, save_requests(path, [document, other], twins=False))
        with module.quiet():
            loaded = module.load_task(task, path, module.content_hash(path))
        prompt = document["query"] if task != "openbookqa" else "Frogs"
        assert loaded.doc_to_text(loaded.dataset[TASKS[task].split][0]) == prompt
        chosen = loaded.doc_to_choice(loaded.dataset[TASKS[task].split][0])
        target = loaded.doc_to_target(loaded.dataset[TASKS[task].split][0])
        assert chosen[int(target)] == document["choices"][document["gold"]]


def test_local_data_come_before_the_asset_and_the_asset_before_the_hub(questions, tmp_path, monkeypatch):
    asset = tmp_path / "asset"
    monkeypatch.setattr(module, "fetch", lambda name: asset)
    kept = save_requests(asset / TASKS["arc_easy"].folder / "requests.jsonl.gz", [])
    assert find_data("arc_easy") == questions / "arc_easy.jsonl"
    (questions / "arc_easy.jsonl").unlink()
    assert find_data("arc_easy") == kept
    kept.unlink()
    assert find_data("arc_easy") is None
    seen = []
    monkeypatch.setattr(datasets, "load_dataset", lambda **where: seen.append(where["path"]) or {}["none"])
    with pytest.raises(ValueError, match="no questions for arc_easy: .* and the hub gave KeyError"):
        module.load_tasks("arc_easy")
    assert seen == ["allenai/ai2_arc"]


def test_without_any_data_the_error_says_where_it_looked(tmp_path, monkeypatch):
    def offline(name):
        raise ValueError("no network")

    monkeypatch.delenv("PRUNER_LIB_DATA", raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "fetch", offline)
    with pytest.raises(ValueError, match="no questions for piqa: .*PRUNER_LIB_DATA.*asset 'tasks'.*hub"):
        zero_shot(*load_model("tiny"), ["piqa"])


@pytest.mark.parametrize("text", ['{"goal": "half a', "", "5", '{"goal": 5}\n{"goal": "a"}'])
def test_broken_questions_are_named(text, questions):
    (questions / "piqa.jsonl").write_text(text)
    with pytest.raises(ValueError, match="piqa.jsonl holds no questions of piqa"):
        zero_shot(*load_model("tiny"), ["piqa"])
    assert zero_shot(*load_model("tiny"), ["boolq"])["boolq"].n == 5


@pytest.mark.parametrize("right_answers_only", [False, True])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:.*questions are scored choice by choice")
def test_a_broken_model_is_an_error_and_no_accuracy(poison, right_answers_only, questions):
    model, tokenizer = load_model("tiny")
    model.model.norm.weight.data[0] = poison
    with pytest.raises(ValueError, match="the model gives NaN or infinite logits"):
        zero_shot(model, tokenizer, ["piqa"], right_answers_only=right_answers_only)


def test_the_assets_arrow_files_give_the_same_scores_as_lines(
    questions, subject, whole, tmp_path, monkeypatch
):
    rows = [json.loads(line) for line in (questions / "hellaswag.jsonl").read_text().splitlines()]
    (questions / "hellaswag.jsonl").unlink()
    Dataset.from_list(rows).save_to_disk(tmp_path / "asset" / TASKS["hellaswag"].folder)
    monkeypatch.setattr(module, "fetch", lambda name: tmp_path / "asset")
    assert find_data("hellaswag").suffix == ".arrow"
    assert zero_shot(*subject, ["hellaswag"])["hellaswag"] == whole["hellaswag"]
