"""What is no plain decoder is refused at every door, in one sentence that says what to give instead."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from families import NO_HEAD_DIM, build, discovered, random_scores, tokens
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from pruner_lib import discover, estimate, mask_, prune_, recover, save_model, select
from pruner_lib.evaluation.int8 import quantise_
from pruner_lib.models.tiny import tiny_tokenizer

FAMILY = "llama-gqa"
EXAMPLES = [{"instruction": "Say a.", "output": "a"}]
LORA = dict(target_modules="all-linear", task_type="CAUSAL_LM")


def _plan():
    axes = discovered(FAMILY)[1]
    return select(axes, random_scores(axes), ratio=0.5)


DOORS = {
    "discover": lambda model, folder: discover(model),
    "estimate": lambda model, folder: estimate(model, discovered(FAMILY)[1], tokens()),
    "prune_": lambda model, folder: prune_(model, _plan()),
    "mask_": lambda model, folder: mask_(model, _plan()),
    "recover": lambda model, folder: recover(
        model, tiny_tokenizer(), EXAMPLES, output_dir=folder, steps=1, batch_size=1, micro_batch_size=1
    ),
    "save_model": lambda model, folder: save_model(model, None, folder),
}


def _compiled_in_place(model):
    model.model.layers[1].compile()
    return model


def _in_codes(model):
    """As the modules of bitsandbytes hold their weights: a parameter of whole numbers."""
    codes = torch.zeros(24 * 24, 1, dtype=torch.uint8)
    model.model.layers[0].self_attn.k_proj.weight = nn.Parameter(codes, requires_grad=False)
    return model


def _with_a_list_of_weights(model):
    model.model.layers[1].mlp.read = {"up": [model.model.layers[1].mlp.up_proj.weight]}
    return model


def _of_inference(model):
    with torch.inference_mode():
        return build(FAMILY)


def _with_pictures(model):
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    text = NO_HEAD_DIM | {"hidden_size": 48, "rope_parameters": rope}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))


NOT_PLAIN = {
    "pictures": (_with_pictures, "reads more than text"),
    "compiled": (torch.compile, "model._orig_mod"),
    "compiled in place": (_compiled_in_place, "is compiled"),
    "on several devices": (nn.DataParallel, "model.module"),
    "adapter": (lambda model: get_peft_model(model, LoraConfig(**LORA)), "merge_and_unload"),
    "around an adapter": (
        lambda model: get_peft_model(model, LoraConfig(**LORA)).get_base_model(),
        "carries an adapter",
    ),
    "prompts": (
        lambda model: get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        "carries an adapter",
    ),
    "8 bits": (quantise_, r"quantised \(model.layers.0.self_attn.q_proj.q\)"),
    "codes": (_in_codes, r"quantised \(model.layers.0.self_attn.k_proj.weight\)"),
    "weights in a list": (_with_a_list_of_weights, r"holds weights in model.layers.1.mlp.read.* as they are"),
    "made in inference mode": (_of_inference, "torch.no_grad"),
    "inference mode": (lambda model: model, "torch.no_grad"),
    "no model": (lambda model: "llama", "a model is expected, got str"),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_is_no_plain_decoder_is_refused_at_every_door(kind, tmp_path):
    change, message = NOT_PLAIN[kind]
    model = change(build(FAMILY))
    for door in DOORS.values():
        with torch.inference_mode() if kind == "inference mode" else nullcontext():  # noqa: SIM117
            with pytest.raises(ValueError, match=message):
                door(model, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("door", [name for name in DOORS if name != "recover"])
def test_a_merged_model_is_plain_again(door, tmp_path):
    model = get_peft_model(build(FAMILY), LoraConfig(**LORA)).merge_and_unload()
    with torch.no_grad():
        assert DOORS[door](model, tmp_path / "out"), "the door gives axes, scores, the model or the folder"
