"""Recovery: what is learned from, that nothing else changes, and that a killed run goes on."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig
from transformers.pytorch_utils import Conv1D

from pruner_lib.models.load import tiny_tokenizer
from pruner_lib.recovery import trainer as trainer_module
from pruner_lib.recovery.instructions import IGNORED, PROMPT, PROMPT_WITH_INPUT, batches, collate, encode
from pruner_lib.recovery.recover import add_adapter, linear_modules, recover
from pruner_lib.recovery.settings import RecoverySettings

EXAMPLES = [
    {
        "instruction": f"Add {i} to {i + 1}.",
        "input": "" if i % 3 else f"note {i}",
        "output": f"{2 * i + 1} " * (1 + i % 4),
    }
    for i in range(20)
]
HERE = Path(__file__).parent
QUICK = {"steps": 6, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 1}
LLAMA_LIKE = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
FAMILIES = {
    "llama": LlamaConfig(**LLAMA_LIKE, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt2": GPT2Config(  # Conv1D, tied
        n_embd=24, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, **NO_DROPOUT
    ),
    "gemma2": Gemma2Config(**LLAMA_LIKE, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0),
    "gpt_neox": GPTNeoXConfig(**LLAMA_LIKE),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two threads on so small a model wait for each other: 10 times slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def make(family: str = "llama") -> nn.Module:
    """A small random model; the MLP of a llama's last layer is narrower than the other, as after pruning."""
    config = copy.deepcopy(FAMILIES[family])
    config.vocab_size = len(tiny_tokenizer())
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        weight.data = torch.randn_like(weight) * (0.3 if weight.dim() > 1 else 0.1) + ("norm" in name)
    if family == "llama":
        mlp = model.model.layers[-1].mlp
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight, linear.out_features = nn.Parameter(linear.weight[:29].detach().clone()), 29
        linear = mlp.down_proj
        linear.weight, linear.in_features = nn.Parameter(linear.weight[:, :29].detach().clone()), 29
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12).reshape(2, 6)).logits


def loss(model: nn.Module, ids: list[int], labels: list[int]) -> float:
    with torch.no_grad():
        return model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_time(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def score(model: nn.Module) -> dict[str, float]:
    return {"score": logits(model).square().mean().item(), "drawn": torch.rand(1).item()}


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """An uninterrupted run, to compare with."""
    folder = tmp_path_factory.mktemp("whole")
    result = recover(
        make(), tokenizer, EXAMPLES, output_dir=folder, evaluate=score, evaluate_at=[2], save_steps=2, **QUICK
    )
    return folder, result


# What is learned from


def test_the_response_and_eos_are_labelled_and_the_prompt_is_not(tokenizer):
    plain, noted = {**EXAMPLES[1]}, {**EXAMPLES[3]}
    for example, form in ((plain, PROMPT), (noted, PROMPT_WITH_INPUT)):
        (row,) = encode([example], tokenizer, cutoff=1000)
        answer = [token for token in row["labels"] if token != IGNORED]
        prompt = row["input_ids"][: -len(answer)]
        assert answer[-1] == tokenizer.eos_token_id and tokenizer.decode(answer[:-1]) == example["output"]
        assert tokenizer.decode(prompt, skip_special_tokens=True) == form.format(**example)
        assert row["labels"][: len(prompt)] == [IGNORED] * len(prompt)


def test_a_cut_response_gets_no_eos(tokenizer):
    (whole,) = encode(EXAMPLES[3:4], tokenizer, cutoff=1000)
    n = len(whole["input_ids"])
    (fits,) = encode(EXAMPLES[3:4], tokenizer, cutoff=n)
    (cut,) = encode(EXAMPLES[3:4], tokenizer, cutoff=n - 1)
    assert fits == whole and fits["input_ids"][-1] == tokenizer.eos_token_id
    assert cut["input_ids"] == whole["input_ids"][:-1] and cut["labels"] == whole["labels"][:-1]


def test_an_example_without_room_for_its_response_is_left_out(tokenizer):
    long = {"instruction": "word " * 300, "output": "yes"}
    with pytest.warns(UserWarning, match="1 of 2 examples are left out"):
        rows = encode([long, EXAMPLES[1]], tokenizer, cutoff=256)
    assert rows == encode([EXAMPLES[1]], tokenizer, cutoff=256)
    with pytest.raises(ValueError, match="raise the cutoff"):
        encode([long], tokenizer, cutoff=256)


@pytest.mark.parametrize("bad", [[], [{"instruction": "a"}], [{"instruction": "a", "output": None}]])
def test_examples_without_text_are_refused(tokenizer, bad):
    with pytest.raises(ValueError, match="instruction"):
        encode(bad, tokenizer)


def test_every_pass_shows_each_example_once_in_an_order_of_the_seed():
    rows = [{"input_ids": [i] * (1 + i % 5), "labels": [i]} for i in range(12)]
    order = batches(rows, steps=5, batch_size=4, seed=3)
    shown = [row["labels"][0] for batch in order for row in batch]
    assert sorted(shown[:12]) == list(range(12)) and len(order) == 5
    assert all(len(a["input_ids"]) <= len(b["input_ids"]) for batch in order for a, b in pairwise(batch))
    assert order == batches(rows, steps=5, batch_size=4, seed=3)
    assert order != batches(rows, steps=5, batch_size=4, seed=4)


def test_padding_is_masked_and_has_no_label():
    batch = collate(
        [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}], pad=1
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_mean_over_the_responses_of_a_step(tokenizer, tmp_path, family):
    model = make(family)
    (batch,) = batches(encode(EXAMPLES, tokenizer, cutoff=256), steps=1, batch_size=4, seed=0)
    of_responses = [loss(model, row["input_ids"], row["labels"]) for row in batch]
    of_everything = [loss(model, row["input_ids"], row["input_ids"]) for row in batch]
    counts = [sum(label != IGNORED for label in row["labels"]) for row in batch]
    done = recover(model, tokenizer, EXAMPLES, output_dir=tmp_path, dropout=0.0, **{**QUICK, "steps": 1})
    assert done.history[0]["loss"] == pytest.approx(np.average(of_responses, weights=counts), rel=1e-5)
    assert done.history[0]["loss"] != pytest.approx(np.mean(of_responses), rel=1e-4)  # no mean of means
    assert done.history[0]["loss"] != pytest.approx(np.mean(of_everything), rel=1e-3)


def test_the_gradient_does_not_depend_on_the_micro_batch(tokenizer, tmp_path):
    found = []
    for size, rate in ((1, 1e-2), (4, 1e-2), (4, 2e-2)):
        folder = tmp_path / f"{size}-{rate}"
        settings = {**QUICK, "micro_batch_size": size, "learning_rate": rate, "dropout": 0.0}
        recover(make(), tokenizer, EXAMPLES, output_dir=folder, **settings)
        found.append(torch.cat([weight.flatten() for weight in adapter(folder).values()]))
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert not torch.allclose(found[1], found[2], atol=1e-2)


def test_recomputed_activations_give_the_same_adapter(tokenizer, tmp_path, whole):
    model = make()
    recover(model, tokenizer, EXAMPLES, output_dir=tmp_path, gradient_checkpointing=True, **QUICK)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    for name, weight in adapter(tmp_path).items():
        torch.testing.assert_close(weight, adapter(whole[0])[name])


def test_examples_are_computed_without_the_padding_of_longer_ones(tokenizer, tmp_path, monkeypatch):
    shapes, losses = {1: [], 2: [], 4: []}, {}
    for rows, seen in shapes.items():
        monkeypatch.setattr(trainer_module, "ROWS_ON_CPU", rows)
        model = make()
        model.model.embed_tokens.register_forward_pre_hook(partial(_keep_shape, seen))
        settings = {**QUICK, "micro_batch_size": 4, "dropout": 0.0}
        done = recover(model, tokenizer, EXAMPLES, output_dir=tmp_path / str(rows), **settings)
        losses[rows] = [row["loss"] for row in done.history]
    computed = [sum(shape.numel() for shape in seen[1:]) for seen in shapes.values()]  # [0] counts memory
    assert done.history[-1]["tokens"] == computed[0] < computed[1] < computed[2]
    assert losses[1] == pytest.approx(losses[4], rel=1e-5) and losses[2] == pytest.approx(losses[4], rel=1e-5)


def _keep_shape(seen: list[torch.Size], module: nn.Module, args: tuple) -> None:
    seen.append(args[0].shape)


def test_training_lowers_the_loss(tokenizer, tmp_path):
    done = recover(make(), tokenizer, EXAMPLES[:4], output_dir=tmp_path, **{**QUICK, "steps": 25})
    assert done.history[-1]["loss"] < 0.7 * done.history[0]["loss"]


# Nothing else changes


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_with_b_at_zero_changes_nothing(family):
    model = make(family)
    before = logits(model)
    adapted = add_adapter(model, RecoverySettings()).eval()
    assert torch.equal(logits(adapted), before)
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    assert not torch.allclose(logits(adapted), before, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_but_the_output_gets_an_adapter(family):
    model = make(family)
    head = model.get_output_embeddings()
    linear = sum(isinstance(module, (nn.Linear, Conv1D)) for module in model.modules())
    adapted = add_adapter(model, RecoverySettings())
    layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    assert len(layers) == linear - 1 and adapted.get_base_model().get_output_embeddings() is head
    assert not head.weight.requires_grad and not model.get_input_embeddings().weight.requires_grad


def test_the_saved_settings_of_an_adapter_are_the_same_bytes_in_every_process(tmp_path):
    """Names come in the order of a set, which differs between processes unless it is sorted."""
    code = """if True:
        import sys
        sys.path[:0] = sys.argv[2:]
        from test_recovery import RecoverySettings, add_adapter, make
        for words in ("all-linear", ("q_proj", "k_proj", "v_proj", "up_proj")):
            adapted = add_adapter(make(), RecoverySettings(target_modules=words))
            adapted.save_pretrained(f"{sys.argv[1]}/{words[0]}", save_embedding_layers=False)
    """
    texts = []
    for seed in ("1", "2"):
        places = [str(tmp_path / seed), str(HERE), str(HERE.parents[1])]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, *places], check=True, env=environment, timeout=300)
        files = sorted((tmp_path / seed).glob("*/adapter_config.json"))
        texts.append([file.read_bytes() for file in files])
    assert len(texts[0]) == 2 and texts[0] == texts[1]
    for text in texts[0]:
        names = json.loads(text)["target_modules"]
        assert len(names) > 3 and names == sorted(names)


def test_named_modules_alone_get_an_adapter(tokenizer, tmp_path):
    settings = {**QUICK, "steps": 1, "target_modules": ["q_proj"]}
    recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, **settings)
    assert adapter(tmp_path) and all("q_proj" in name for name in adapter(tmp_path))
    with pytest.raises(ValueError, match="no_such_layer"):
        add_adapter(make(), RecoverySettings(target_modules=("no_such_layer",)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_is_unmerged_and_the_saved_adapter_is_both(tokenizer, tmp_path, family):
    model = make(family)
    model.get_input_embeddings().weight.requires_grad_(False)
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    dense, untouched = logits(model), weights(model)
    unmerged = recover(make(family), tokenizer, EXAMPLES, output_dir=tmp_path / "a", **QUICK)
    merged = recover(model, tokenizer, EXAMPLES, output_dir=tmp_path / "b", merge=True, **QUICK)
    loaded = PeftModel.from_pretrained(make(family), unmerged.adapter_path)
    assert merged.model is model and type(merged.model) is type(make(family))
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == flags
    assert torch.allclose(logits(model), logits(unmerged.model), atol=1e-4)
    assert torch.equal(logits(loaded.eval()), logits(unmerged.model))
    assert not torch.allclose(logits(model), dense, atol=1e-2) and not same(weights(model), untouched)


def test_the_weights_stay_as_they_are_without_merge(tokenizer, tmp_path):
    model = make()
    before, shown = weights(model), logits(model)
    done = recover(model, tokenizer, EXAMPLES, output_dir=tmp_path, **QUICK)
    assert not torch.allclose(logits(done.model), shown, atol=1e-2) and not done.model.training
    assert model.config.use_cache
    plain = done.model.unload()
    assert same(weights(plain), before) and torch.equal(logits(plain), shown)


@pytest.mark.parametrize("moment", ["before", "during"])
def test_an_error_leaves_the_plain_model(tokenizer, tmp_path, moment):
    def fail(model):
        trained = any(weight.any() for name, weight in model.named_parameters() if "lora_B" in name)
        if trained == (moment == "during"):
            raise KeyboardInterrupt
        return {}

    model = make()
    before, shown, flags = (
        weights(model),
        logits(model),
        [weight.requires_grad for weight in model.parameters()],
    )
    with pytest.raises(KeyboardInterrupt):
        recover(model, tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=fail, evaluate_at=[1], **QUICK)
    assert same(weights(model), before) and torch.equal(logits(model), shown)
    assert [weight.requires_grad for weight in model.parameters()] == flags and model.config.use_cache
    recover(
        model, tokenizer, EXAMPLES, output_dir=tmp_path / "again", **{**QUICK, "steps": 1}
    )  # it can be used


def test_the_random_states_of_the_caller_are_left_alone(tokenizer, tmp_path):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    recover(
        make_without_seeding(),
        tokenizer,
        EXAMPLES,
        output_dir=tmp_path,
        evaluate=score,
        **{**QUICK, "steps": 1},
    )
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert random.random() != expected[0]


def make_without_seeding() -> nn.Module:
    with torch.random.fork_rng():
        return make()


# The history


def test_the_history_has_a_row_a_step_and_measures_at_the_points(whole):
    history = whole[1].history
    assert [row["step"] for row in history] == list(range(7))
    assert [row["step"] for row in history if "score" in row] == [0, 2, 6]
    assert history[0]["score"] == score(make())["score"] and history[0]["tokens"] == 0
    assert history[6]["score"] == score(whole[1].model)["score"] != history[0]["score"]
    for name in ("tokens", "seconds"):
        values = [row[name] for row in history]
        assert all(a < b for a, b in pairwise(values))


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
    with pytest.raises(ValueError, match="loss"):
        recover(
            make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=lambda model: {"loss": 1.0}, **QUICK
        )


def test_an_infinite_result_is_read_back_as_a_number(tokenizer, tmp_path):
    arguments = {"output_dir": tmp_path, "evaluate": lambda model: {"perplexity": float("inf")}, **QUICK}
    first = recover(make(), tokenizer, EXAMPLES, **arguments)
    assert recover(make(), tokenizer, EXAMPLES, **arguments).history == first.history
    assert first.history[0]["perplexity"] == float("inf")


# A run can be killed


class Stop:
    """Stops a run when it is measured for the n-th time."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return score(model)


@pytest.mark.parametrize("n", [1, 2, 3])  # before the first step, at step 2, at the last
def test_an_interrupted_run_ends_as_if_it_had_not_been(tokenizer, tmp_path, whole, n):
    arguments = {"output_dir": tmp_path, "evaluate_at": [2], "save_steps": 2, **QUICK}
    with pytest.raises(KeyboardInterrupt):
        recover(make(), tokenizer, EXAMPLES, evaluate=Stop(n), **arguments)
    assert not (tmp_path / "adapter").exists()
    (tmp_path / "checkpoint-5").mkdir()  # half a checkpoint
    again = recover(make(), tokenizer, EXAMPLES, evaluate=score, **arguments)
    assert same(adapter(tmp_path), adapter(whole[0]))
    assert without_time(again.history) == without_time(whole[1].history)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "recovery.json"]


def test_another_seed_gives_another_adapter(tokenizer, tmp_path, whole):
    recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, seed=1, **QUICK)
    assert not same(adapter(tmp_path), adapter(whole[0]))


def test_a_killed_process_is_taken_over_by_another(tokenizer, tmp_path, whole):
    script = f"""
        import os, signal, sys
        sys.path[:0] = {[str(HERE), str(HERE.parent / "support"), str(HERE.parents[1])]!r}
        import test_recovery as t
        import torch
        torch.set_num_threads({torch.get_num_threads()})
        calls = []
        def kill(model):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return t.score(model)
        t.recover(t.make(), t.tiny_tokenizer(), t.EXAMPLES, output_dir={str(tmp_path)!r}, evaluate=kill,
                  evaluate_at=[2], save_steps=2, **t.QUICK)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (state,) = tmp_path.glob("checkpoint-*/trainer_state.json")
    left = json.loads(state.read_text())["log_history"]
    assert state.parent.name == "checkpoint-4" and len(left) == 5
    again = recover(
        make(),
        tokenizer,
        EXAMPLES,
        output_dir=tmp_path,
        evaluate=score,
        evaluate_at=[2],
        save_steps=2,
        **QUICK,
    )
    assert same(adapter(tmp_path), adapter(whole[0]))
    assert without_time(again.history) == without_time(whole[1].history)
    assert again.history[:5] == left and again.history[5]["seconds"] > left[4]["seconds"]


def test_a_finished_run_is_not_run_again(tokenizer, tmp_path):
    first = recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=score, **QUICK)
    again = recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=Stop(1), **QUICK)
    assert again.history == first.history and torch.equal(logits(again.model), logits(first.model))
    with pytest.raises(KeyboardInterrupt):
        recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=Stop(1), resume=False, **QUICK)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seed", {"seed": 1}),
        ("rank", {"rank": 4}),
        ("learning_rate", {"learning_rate": 2e-2}),
        ("steps", {"steps": 7}),
        ("evaluated_steps", {"evaluate_at": [3]}),
        ("examples", {"examples": EXAMPLES[1:]}),
        ("model", {"model": "other"}),
    ],
)
def test_a_run_with_other_arguments_is_not_resumed(tokenizer, tmp_path, name, change):
    arguments = {"examples": EXAMPLES, "output_dir": tmp_path, "evaluate": score, "evaluate_at": [2], **QUICK}
    with pytest.raises(KeyboardInterrupt):
        recover(make(), tokenizer, **{**arguments, "evaluate": Stop(3)})
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    other = make()
    if change.pop("model", None):
        other.model.layers[0].mlp.up_proj.weight.data[3, 5] += 1.0
    with pytest.raises(ValueError, match=rf"\({name}: .* there, .* now\).*resume=False"):
        recover(other, tokenizer, **{**arguments, **change})
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    done = recover(other, tokenizer, **{**arguments, **change}, resume=False)
    assert len(done.history) == done.history[-1]["step"] + 1


def test_a_folder_of_something_else_is_left_alone(tokenizer, tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    for resume in (True, False):
        with pytest.raises(ValueError, match="something else made it"):
            recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, resume=resume, **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


# Which layers are adapted


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_a_kind_are_left_out_whatever_they_are_called(family):
    adapted = {}
    for words in ("all-linear", "without-mlp", "without-attention"):
        model = add_adapter(make(family), RecoverySettings(target_modules=words)).get_base_model()
        adapted[words] = {name for name, one in model.named_modules() if isinstance(one, BaseTunerLayer)}
    everything, no_mlp, no_attention = adapted.values()
    assert no_mlp | no_attention == everything and not no_mlp & no_attention
    assert no_mlp and all("attn" in name or "attention" in name for name in no_mlp)
    assert no_attention and all("mlp" in name for name in no_attention)


def test_layers_can_not_be_left_out_where_there_are_none_of_the_kind():
    with pytest.raises(ValueError, match="0 of 14 linear layers in groups of kind 'hidden-state'"):
        linear_modules(make(), without="hidden-state")


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch_size": 3}, "batch_size=4 is not a multiple of micro_batch_size=3"),
        ({"steps": 0}, "steps=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"rank": 0}, "rank=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"learning_rate": -1e-3}, "learning_rate=-0.001"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"evaluate": score, "evaluate_at": [7]}, r"evaluate_at=\[7\].*0 to 6"),
        ({"evaluate_at": [2]}, "evaluate=None"),
        ({"cutoff": 20}, "raise the cutoff"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(tokenizer, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path / "out", **{**QUICK, **change})
    assert not (tmp_path / "out").exists()


def test_a_model_with_an_adapter_is_refused(tokenizer, tmp_path, whole):
    adapted = add_adapter(make(), RecoverySettings())
    for model in (adapted, adapted.get_base_model()):
        with pytest.raises(ValueError, match="merge=True"):
            recover(model, tokenizer, EXAMPLES, output_dir=tmp_path, **QUICK)


def test_a_loss_that_is_no_number_stops_the_run(tokenizer, tmp_path):
    model = make()
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="The loss is nan at step 1"):
        recover(model, tokenizer, EXAMPLES, output_dir=tmp_path, **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["recovery.json"]
