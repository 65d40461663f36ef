"""What others do with a saved folder: lm-eval's command line, pipelines, Trainer, adapters, 8 bits.

A plain folder and an unevenly pruned one go through the same, the latter with `trust_remote_code=True`.
"""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
import transformers
import yaml
from families import COMMON, FAMILIES, build, first_of, logits, random_scores, tokens
from peft import LoraConfig, PeftModel, get_peft_model
from remote_family import build_remote, prompts, remote_tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

from pruner_lib import discover, load_model, prune_, save_model, select, zero_shot
from pruner_lib.evaluation.int8 import Int8Linear, quantise_
from pruner_lib.evaluation.tasks import TASKS
from pruner_lib.models.tiny import tiny_tokenizer

KINDS = {"plain": dict(ratio=0.5), "uneven": dict(ratio=0.4, scope="global", protect_first=1)}
NO_HEAD_DIM = {key: value for key, value in COMMON.items() if key != "head_dim"}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
OTHERS = {  # what else a plan can cut; name -> (config class, its arguments, how to discover)
    "query heads": ("LlamaConfig", COMMON, {"query_heads": True}),
    "experts": ("MixtralConfig", NO_HEAD_DIM | {"num_local_experts": 4}, {}),
    "experts beside": ("Qwen3MoeConfig", COMMON | MIXTURE, {}),
    "norms over all heads": ("Olmo2Config", NO_HEAD_DIM | {"num_key_value_heads": 6}, {}),
}


def pruned(kind: str, **config):
    model = build("llama-gqa", vocab_size=260, max_position_embeddings=512, **config)
    axes = discover(model)
    return prune_(model, select(axes, random_scores(axes), **KINDS[kind]), axes=axes)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved folder of each kind, and one of a model whose code lies beside its weights."""
    made = tmp_path_factory.mktemp("folders")
    models = {kind: pruned(kind) for kind in KINDS}
    assert [model.pruning_layout is None for model in models.values()] == [True, False]
    saved = {kind: save_model(model, tiny_tokenizer(), made / kind) for kind, model in models.items()}
    remote = build_remote(made / "hub" / "interleaved")
    axes = discover(remote)
    prune_(remote, select(axes, random_scores(axes), **KINDS["uneven"]))
    return saved | {"remote": save_model(remote, remote_tokenizer(), made / "interleaved-pruned")}


@pytest.fixture
def folder(kind, folders):
    return folders[kind]


def load(folder, kind: str, **options):
    """As everybody does; a plain folder needs no trust."""
    trust = {} if kind == "plain" else {"trust_remote_code": True}
    return AutoModelForCausalLM.from_pretrained(folder, **trust, **options).eval()


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Two tasks of 16 questions as a local data directory; all choices are equally long."""
    made = tmp_path_factory.mktemp("data") / "tasks"
    made.mkdir()
    draw = random.Random(0)
    words = [["".join(draw.choices("abcdefghij ", k=7)) for _ in range(3)] for _ in range(16)]
    piqa = [{"goal": c, "sol1": a, "sol2": b, "label": i % 2} for i, (a, b, c) in enumerate(words)]
    arc = [
        {
            "id": str(i),
            "question": f"What is {i}?",
            "choices": {"text": choices, "label": ["A", "B", "C"]},
            "answerKey": "ABC"[i % 3],
        }
        for i, choices in enumerate(words)
    ]
    for task, rows in {"piqa": piqa, "arc_easy": arc}.items():
        (made / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return made


ELSEWHERE = """
import sys, torch
import lm_eval.evaluator, lm_eval.tasks
from functools import partial
from lm_eval.__main__ import cli_evaluate
from transformers import AutoModelForCausalLM

sys.modules["pruner_lib"] = None
# two task files are asked; to list all others that lm-eval has takes seconds
lm_eval.tasks.TaskManager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
lm_eval.evaluator.add_env_info = lambda report: None  # asks pip and the drivers
for kind, (folder, ids) in torch.load("given.pt").items():
    trust = {} if kind == "plain" else {"trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(folder, **trust).eval()
    torch.save(model(ids).logits.detach(), f"{kind}.pt")
    model.save_pretrained(f"again-{kind}")
    if kind != "remote":
        model = f"pretrained={folder}" + (",trust_remote_code=True" if trust else "")
        options = ["--batch_size", "8", "--device", "cpu", "--limit", "15", "--output_path", f"scores-{kind}"]
        sys.argv = ["lm_eval", "--model", "hf", "--model_args", model, *options, "--tasks", sys.argv[-1]]
        cli_evaluate()
"""


def definition(task: str, data: Path, folder: Path) -> Path:
    """A task file of lm-eval's own, over the questions in `data`."""
    split = TASKS[task].split
    settings = {
        "include": str(Path(lm_eval.tasks.__file__).parent / f"{TASKS[task].definition}.yaml"),
        "task": task,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(data)}, "cache_dir": str(folder / "cache")},
        **{f"{one}_split": split if one == split else None for one in ("training", "validation", "test")},
    }
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def elsewhere(folders, questions, tmp_path_factory):
    """What a process without our library makes of the folders, in which lm-eval's command line runs, too."""
    made = tmp_path_factory.mktemp("elsewhere")
    files = [definition(task, questions / f"{task}.jsonl", made) for task in ("piqa", "arc_easy")]
    given = {kind: (str(folder), tokens()) for kind, folder in folders.items()}
    torch.save(given | {"remote": (str(folders["remote"]), prompts())}, made / "given.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(made / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", ELSEWHERE, ",".join(map(str, files))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=made)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.slow
def test_folder_loads_and_is_saved_again_where_pruner_lib_is_missing(elsewhere, folders):
    for kind, folder in folders.items():
        model, ids = load(folder, kind), prompts() if kind == "remote" else tokens()
        assert torch.equal(logits(model, ids), torch.load(elsewhere / f"{kind}.pt"))
        again = load(elsewhere / f"again-{kind}", kind)
        assert torch.equal(logits(again, ids), logits(model, ids))
        assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.slow
def test_lm_evals_command_line_gives_our_numbers(elsewhere, folder, kind, questions, monkeypatch):
    monkeypatch.setenv("PRUNER_LIB_DATA", str(questions.parent))
    (report,) = (elsewhere / f"scores-{kind}").rglob("results*.json")
    theirs = json.loads(report.read_text())["results"]
    ours = zero_shot(*load_model(folder), ["piqa", "arc_easy"], 15, seed=None)
    for task, score in ours.items():
        assert {name: theirs[task][f"{name},none"] for name in score.values} == score.values
        assert 0 < score.value < 1 and score.n == 15
    dense = build("llama-gqa", vocab_size=260, max_position_embeddings=512)
    whole = zero_shot(dense, tiny_tokenizer(), ["piqa", "arc_easy"], 15, seed=None)
    assert [s.correct for s in whole.values()] != [s.correct for s in ours.values()]


def test_pipeline_writes_what_generate_writes(folder, kind):
    trust = {"trust_remote_code": True} if kind == "uneven" else {}
    write = pipeline("text-generation", model=str(folder), device="cpu", **trust)
    (written,) = write("abc", max_new_tokens=6, do_sample=False, return_full_text=False)
    model, tokenizer = load_model(folder)
    made = model.generate(**tokenizer("abc", return_tensors="pt"), max_new_tokens=6, do_sample=False)
    assert written["generated_text"] == tokenizer.decode(made[0, 3:], skip_special_tokens=True)


def test_trainer_learns_and_its_checkpoint_loads(folder, kind, tmp_path):
    model = load(folder, kind)
    rows = [{"input_ids": ids, "labels": ids} for ids in tokens(8, 12)]
    with torch.no_grad():
        before = model(tokens(8, 12), labels=tokens(8, 12)).loss
    settings = TrainingArguments(
        tmp_path / "run", max_steps=4, save_steps=4, per_device_train_batch_size=8, learning_rate=1e-2,
        warmup_steps=0, use_cpu=True, report_to="none", disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=rows)
    trainer.train()
    trainer.save_model(tmp_path / "m")
    with torch.no_grad():
        after = model.eval()(tokens(8, 12), labels=tokens(8, 12)).loss
    assert after < before - 0.1
    for folder in (tmp_path / "run" / "checkpoint-4", tmp_path / "m"):
        assert torch.equal(logits(load(folder, kind), tokens()), logits(model, tokens()))


def test_adapter_goes_on_top_and_into_the_weights(folder, kind, tmp_path):
    dense = logits(load(folder, kind), tokens())
    adapted = get_peft_model(
        load(folder, kind), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    assert torch.equal(logits(adapted, tokens()), dense)  # B = 0
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    wanted = logits(adapted.eval(), tokens())
    assert (wanted - dense).abs().max() > 1e-2
    adapted.save_pretrained(tmp_path / "adapter")
    for carrier in (adapted, adapted.get_base_model()):
        with pytest.raises(ValueError, match="merge_and_unload"):
            save_model(carrier, None, tmp_path / "merged")
    again = PeftModel.from_pretrained(load(folder, kind), tmp_path / "adapter").eval()
    assert torch.equal(logits(again, tokens()), wanted)
    merged = again.merge_and_unload()
    assert (logits(merged, tokens()) - wanted).abs().max() < 1e-4
    save_model(merged, tiny_tokenizer(), tmp_path / "merged")
    merged.save_pretrained(tmp_path / "theirs")
    for name in ("merged", "theirs"):
        assert torch.equal(logits(load(tmp_path / name, kind), tokens()), logits(merged, tokens()))
    assert torch.equal(logits(load_model(tmp_path / "merged")[0], tokens()), logits(merged, tokens()))


def test_linear_layers_go_into_8_bits(folder, kind):
    model = load(folder, kind)
    wanted = logits(model, tokens())
    theirs = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    ours = quantise_(copy.deepcopy(model))
    for small in (theirs, ours):
        error = (logits(small, tokens()) - wanted).norm() / wanted.norm()
        assert 0 < error < 0.1
    projection = "model.layers.2.mlp.down_proj"
    stored = theirs.get_submodule(projection).weight()
    assert stored.dtype == torch.qint8 and stored.shape == model.get_submodule(projection).weight.shape
    assert isinstance(ours.get_submodule(projection), Int8Linear)


def test_config_alone_builds_the_widths(folder, kind):
    trust = {"trust_remote_code": True} if kind == "uneven" else {}
    drawn = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **trust), **trust)
    assert [p.shape for p in drawn.parameters()] == [p.shape for p in load(folder, kind).parameters()]
    assert not torch.equal(logits(drawn, tokens()), logits(load(folder, kind), tokens()))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_survives(dtype, kind, tmp_path):
    model = pruned(kind).to(dtype)
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    for again in (load(tmp_path / "m", kind), load_model(tmp_path / "m", dtype=dtype)[0]):
        assert again.dtype == dtype
        for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
            assert theirs.dtype == dtype and torch.equal(ours, theirs)


@pytest.mark.slow
def test_shards_load_as_one_file_does(kind, tmp_path):
    model = pruned(kind)
    save_model(model, tiny_tokenizer(), tmp_path / "m", max_shard_size="10KB")
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2 and not (tmp_path / "m" / "model.safetensors").exists()
    assert {path.name for path in (tmp_path / "m").glob("*.safetensors")} == files
    for again in (load(tmp_path / "m", kind), load_model(tmp_path / "m")[0]):
        assert torch.equal(logits(again, tokens()), logits(model, tokens()))
    next((tmp_path / "m").glob("model-00002*")).unlink()
    with pytest.raises(ValueError, match="the model of .* can't be loaded"):
        load_model(tmp_path / "m")
    save_model(model, tiny_tokenizer(), tmp_path / "m")  # one file takes the place of many
    assert [path.name for path in (tmp_path / "m").glob("*.safetensors*")] == ["model.safetensors"]


def test_shard_size_that_is_none_leaves_what_was_there(tmp_path):
    save_model(build("llama-gqa"), None, tmp_path / "m")
    with pytest.raises(ValueError, match="much"):
        save_model(build("llama-gqa"), None, tmp_path / "m", max_shard_size="much")
    assert (tmp_path / "m" / "model.safetensors").is_file() and [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("name", first_of(OTHERS))
def test_every_kind_of_group_survives(name, kind, tmp_path, monkeypatch):
    config_class, arguments, how = OTHERS[name]
    monkeypatch.setitem(FAMILIES, name, (config_class, arguments))
    model = build(name)
    axes = discover(model, **how)
    plain = {"ratio": 0.5, "uniform": False}
    options = plain | ({"protect_first": 1} if kind == "uneven" else {})
    prune_(model, select(axes, random_scores(axes), **options), axes=axes)
    kind = "uneven" if name == "norms over all heads" else kind  # a config has one epsilon for all norms
    assert (model.pruning_layout is None) == (kind == "plain")
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    for again in (load(tmp_path / "m", kind), load_model(tmp_path / "m")[0]):
        aligned = copy.deepcopy(again)  # where weights lie in a file may change the last bit of a product
        assert torch.equal(logits(aligned, tokens()), logits(model, tokens()))
        assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]
    if kind == "plain":
        assert type(again) is getattr(transformers, model.config.architectures[0])
    assert AutoTokenizer.from_pretrained(tmp_path / "m").decode([68]) == tiny_tokenizer().decode([68])
