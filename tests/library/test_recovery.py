"""Recovery: what is learned, what is trained, and that nothing else changes."""

from __future__ import annotations

import json
import random
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from families import build
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from small_recovery import EXAMPLES, FAMILIES, QUICK, adapter, logits, make, same, score, without_time
from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.integrations import integration_utils
from transformers.pytorch_utils import Conv1D

from pruner_lib.recovery import trainer as trainer_module
from pruner_lib.recovery.instructions import IGNORED, batches, encode
from pruner_lib.recovery.recover import add_adapter, linear_modules, recover
from pruner_lib.recovery.settings import RecoverySettings

pytestmark = pytest.mark.usefixtures("one_thread")
TWO = ["llama", "gpt2"]  # the latter with Conv1D in place of linear layers


def loss(model: nn.Module, ids: list[int], labels: list[int]) -> float:
    with torch.no_grad():
        return model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


# What is learned


@pytest.mark.parametrize("family", [*TWO, "gemma2"])
def test_the_loss_is_the_mean_over_the_responses_of_a_step(family, tokenizer, tmp_path):
    model = make(family)
    (batch,) = batches(encode(EXAMPLES, tokenizer, cutoff=256), steps=1, batch_size=4, seed=0)
    of_responses = [loss(model, row["input_ids"], row["labels"]) for row in batch]
    of_everything = [loss(model, row["input_ids"], row["input_ids"]) for row in batch]
    counts = [sum(label != IGNORED for label in row["labels"]) for row in batch]
    done = recover(model, tokenizer, EXAMPLES, output_dir=tmp_path, dropout=0.0, **{**QUICK, "steps": 1})
    assert done.history[0]["loss"] == pytest.approx(np.average(of_responses, weights=counts), rel=1e-5)
    assert done.history[0]["loss"] != pytest.approx(np.mean(of_responses), rel=1e-4)  # no mean of means
    assert done.history[0]["loss"] != pytest.approx(np.mean(of_everything), rel=1e-3)


@pytest.mark.slow
def test_the_result_depends_neither_on_the_micro_batch_nor_on_recomputation(tokenizer, tmp_path):
    ways = {
        "single": {"micro_batch_size": 1},
        "four": {"micro_batch_size": 4},
        "recomputed": {"micro_batch_size": 4, "gradient_checkpointing": True},
        "faster": {"micro_batch_size": 4, "learning_rate": 2e-2},
    }
    trained = {}
    for name, way in ways.items():
        model, settings = make(), {**QUICK, "steps": 4, "dropout": 0.0, **way}
        recover(model, tokenizer, EXAMPLES, output_dir=tmp_path / name, **settings)
        trained[name] = torch.cat([weight.flatten() for weight in adapter(tmp_path / name).values()])
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert torch.allclose(trained["single"], trained["four"], atol=1e-4)
    assert torch.allclose(trained["recomputed"], trained["four"], atol=1e-5)
    assert not torch.allclose(trained["faster"], trained["four"], atol=5e-3)


@pytest.mark.slow
def test_examples_are_computed_without_the_padding_of_longer_ones(tokenizer, tmp_path, monkeypatch):
    computed, losses = {}, {}
    for rows in (1, 2, 4):
        monkeypatch.setattr(trainer_module, "ROWS_ON_CPU", rows)
        model, sizes = make(), []
        model.model.embed_tokens.register_forward_pre_hook(
            lambda module, args, sizes=sizes: sizes.append(args[0].numel())
        )
        settings = {**QUICK, "steps": 3, "micro_batch_size": 4, "dropout": 0.0}
        done = recover(model, tokenizer, EXAMPLES, output_dir=tmp_path / str(rows), **settings)
        computed[rows] = sum(sizes[1:])  # the first counts memory
        losses[rows] = [row["loss"] for row in done.history]
    assert done.history[-1]["tokens"] == computed[1] < computed[2] < computed[4]
    assert losses[1] == pytest.approx(losses[4], rel=1e-5) and losses[2] == pytest.approx(losses[4], rel=1e-5)


def test_training_lowers_the_loss(tokenizer, tmp_path):
    done = recover(make(), tokenizer, EXAMPLES[:4], output_dir=tmp_path, **{**QUICK, "steps": 15})
    assert done.history[-1]["loss"] < 0.8 * done.history[0]["loss"]


# What is trained


@pytest.mark.parametrize("family", TWO)
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


@pytest.mark.parametrize("family", TWO)
def test_every_linear_layer_but_the_output_gets_an_adapter(family):
    model = make(family)
    head = model.get_output_embeddings()
    linear = sum(isinstance(module, (nn.Linear, Conv1D)) for module in model.modules())
    adapted = add_adapter(model, RecoverySettings())
    layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    assert len(layers) == linear - 1 and adapted.get_base_model().get_output_embeddings() is head
    assert not head.weight.requires_grad and not model.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize(
    ("family", "without", "experts"),
    [
        ("llama4_text", "feed_forward.router", True),  # returns two tensors
        ("falcon_h1", "mamba.out_proj", False),  # read by a kernel; a convolution's weight is no expert
        ("falcon-new", "nothing", False),  # its linear layers have a forward pass of their own
    ],
)
def test_only_what_multiplies_gets_an_adapter(family, without, experts):
    model = build(family)
    with pytest.warns(UserWarning, match="stacked experts") if experts else nullcontext():
        adapted = add_adapter(model, RecoverySettings())
    names = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    assert any("q_proj" in name or "query_key_value" in name for name in names)
    assert not any(name.endswith(without) for name in names)
    assert (adapted.peft_config["default"].lora_dropout == 0) == experts


def test_stacked_experts_get_the_ranks_that_peft_chooses_and_no_warning_denies_it():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = add_adapter(build("mixtral"), RecoverySettings(rank=4))
    assert ["stacked experts" in str(warning.message) for warning in caught] == [True]
    (rank,) = adapted.peft_config["default"].rank_pattern.values()  # of gate and up, side by side
    sizes = {len(w) for name, w in adapted.named_parameters() if "experts" in name and "lora_A" in name}
    assert rank == 8 and sizes == {4 * 4, 4 * rank}, "for four experts"


@pytest.mark.parametrize("words", ["all-linear", ("q_proj", "k_proj", "v_proj", "up_proj")])
def test_the_saved_settings_name_the_modules_in_a_fixed_order(words, tmp_path):
    """peft keeps them as a set, whose order differs between processes."""
    add_adapter(make(), RecoverySettings(target_modules=words)).save_pretrained(
        tmp_path, save_embedding_layers=False
    )
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(names) > 3 and names == sorted(names)


def test_named_modules_alone_get_an_adapter(tokenizer, tmp_path):
    settings = {**QUICK, "steps": 1, "target_modules": ["q_proj"]}
    recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path, **settings)
    assert adapter(tmp_path) and all("q_proj" in name for name in adapter(tmp_path))
    with pytest.raises(ValueError, match="no_such_layer"):
        add_adapter(make(), RecoverySettings(target_modules=("no_such_layer",)))


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
    with pytest.raises(
        ValueError, match="unknown kinds.*'hidden-state'; choose one of attention, mlp, hidden"
    ):
        linear_modules(make(), without="hidden-state")


# Nothing else changes


@pytest.mark.parametrize("family", TWO)
def test_merged_is_unmerged_and_the_saved_adapter_is_both(family, tokenizer, tmp_path):
    model = make(family)
    model.get_input_embeddings().weight.requires_grad_(False)
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    dense, untouched = logits(model), weights(model)
    settings = {**QUICK, "steps": 3}
    unmerged = recover(make(family), tokenizer, EXAMPLES, output_dir=tmp_path / "a", **settings)
    merged = recover(model, tokenizer, EXAMPLES, output_dir=tmp_path / "b", merge=True, **settings)
    loaded = PeftModel.from_pretrained(make(family), unmerged.adapter_path)
    assert merged.model is model and type(merged.model) is type(make(family))
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == flags
    assert torch.allclose(logits(model), logits(unmerged.model), atol=1e-4)
    assert torch.equal(logits(loaded.eval()), logits(unmerged.model))
    assert not torch.allclose(logits(model), dense, atol=1e-2) and not same(weights(model), untouched)


@pytest.mark.slow
def test_the_weights_and_random_states_stay_as_they_are_without_merge(tokenizer, tmp_path):
    model = make()
    before, shown = weights(model), logits(model)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    done = recover(model, tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=score, **QUICK)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert random.random() != expected[0]
    assert not torch.allclose(logits(done.model), shown, atol=1e-2) and not done.model.training
    assert model.config.use_cache
    plain = done.model.unload()
    assert same(weights(plain), before) and torch.equal(logits(plain), shown)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "during"])
def test_an_error_leaves_the_plain_model(moment, tokenizer, tmp_path):
    def fail(model):
        trained = any(weight.any() for name, weight in model.named_parameters() if "lora_B" in name)
        if trained == (moment == "during"):
            raise KeyboardInterrupt
        return {}

    model = make()
    before, shown = weights(model), logits(model)
    with pytest.raises(KeyboardInterrupt):
        recover(model, tokenizer, EXAMPLES, output_dir=tmp_path, evaluate=fail, evaluate_at=[1], **QUICK)
    assert same(weights(model), before) and torch.equal(logits(model), shown)
    assert all(weight.requires_grad for weight in model.parameters()) and model.config.use_cache
    again = {**QUICK, "steps": 1}  # it can be used
    recover(model, tokenizer, EXAMPLES, output_dir=tmp_path / "again", **again)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluate": score, "evaluate_at": [7]}, r"evaluate_at=\[7\].*0 to 6"),
        ({"target_modules": ["q_proj", "lm_head"]}, r"\['lm_head'\] match no linear layer"),
        ({"target_modules": "("}, r"\['\('\] match no linear layer"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(change, message, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path / "out", **{**QUICK, **change})
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_arguments_of_the_trainer_are_passed_on_and_part_of_the_run(tokenizer, tmp_path):
    class Counter(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **more):
            self.steps += 1

    counter, settings = Counter(), QUICK | {"learning_rate": 0.05}
    rows = {}
    for name, more in {
        "plain": None,
        "decay": {"weight_decay": 0.5, "lr_scheduler_type": "constant"},
    }.items():
        how = settings | {"output_dir": tmp_path / name, "training_arguments": more, "callbacks": [counter]}
        rows[name] = without_time(recover(make(), tokenizer, EXAMPLES, **how).history)
    assert counter.steps == 2 * QUICK["steps"]
    assert rows["plain"][0] == rows["decay"][0] and rows["plain"][-1] != rows["decay"][-1]
    with pytest.raises(ValueError, match="weight_decay"):
        recover(make(), tokenizer, EXAMPLES, **settings, output_dir=tmp_path / "decay")
    for wrong in ("learning_rate", "no_such_argument", "data_seed", "gradient_checkpointing_kwargs"):
        how = settings | {"output_dir": tmp_path / "wrong", "training_arguments": {wrong: 1}}
        with pytest.raises(ValueError, match=f"holds {wrong}: no such argument of .*, or one that settings"):
            recover(make(), tokenizer, EXAMPLES, **how)


@pytest.mark.parametrize("wrong", [{"log_level": "loud"}, {"report_to": "tensorboard"}])
def test_what_the_trainer_can_not_start_with_is_refused_before_anything_is_written(
    wrong, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    with pytest.raises(ValueError, match=r"training_arguments=.* can't be used: .*(loud|tensorboard)"):
        recover(make(), tokenizer, EXAMPLES, output_dir=tmp_path / "a", training_arguments=wrong, **QUICK)
    assert not (tmp_path / "a").exists()


class StopAtTwo(TrainerCallback):
    def on_step_end(self, args, state, control, **more):
        control.should_training_stop = state.global_step == 2


@pytest.mark.slow
def test_an_error_leaves_the_mode_of_the_model(tokenizer, tmp_path):
    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **more):
            raise KeyboardInterrupt

    for training in (False, True):
        model = make().train(training)
        with pytest.raises(KeyboardInterrupt):
            recover(model, tokenizer, EXAMPLES, output_dir=tmp_path, callbacks=[Fail()], **QUICK)
        assert {module.training for module in model.modules()} == {training}


@pytest.mark.slow
@pytest.mark.parametrize("merge", [False, True])
def test_a_run_that_a_callback_stops_returns_the_adapter_of_its_last_step(merge, tokenizer, tmp_path):
    how = QUICK | {"output_dir": tmp_path, "merge": merge}
    done = recover(make(), tokenizer, EXAMPLES, callbacks=[StopAtTwo()], **how)
    assert [row["step"] for row in done.history] == [1, 2] and done.adapter_path == tmp_path / "adapter-2"
    loaded = PeftModel.from_pretrained(make(), done.adapter_path).eval()
    assert torch.allclose(logits(loaded), logits(done.model), atol=1e-5)
    assert not torch.allclose(logits(loaded), logits(make()), atol=1e-3)
    whole = recover(make(), tokenizer, EXAMPLES, **how)
    assert whole.adapter_path == tmp_path / "adapter"
    once = recover(make(), tokenizer, EXAMPLES, **how | {"output_dir": tmp_path / "once"})
    assert without_time(whole.history) == without_time(once.history)


def test_callbacks_that_the_trainer_could_not_call_are_refused(tokenizer, tmp_path):
    how = QUICK | {"output_dir": tmp_path / "out"}
    for wrong in (5, [5], StopAtTwo(), [StopAtTwo]):
        with pytest.raises(ValueError, match="callbacks.* must be a.* TrainerCallback of transformers"):
            recover(make(), tokenizer, EXAMPLES, callbacks=wrong, **how)
    with pytest.raises(ValueError, match="needs the Trainer to evaluate; give a callback"):
        recover(make(), tokenizer, EXAMPLES, callbacks=[EarlyStoppingCallback()], **how)
    assert not (tmp_path / "out").exists()


def test_a_model_with_an_adapter_is_refused(tokenizer, tmp_path):
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
