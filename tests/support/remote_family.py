"""A folder as it would come from the hub: a decoder whose code lies beside its weights (see `remote/`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pruner_lib.models.tiny import tiny_tokenizer

CODE = sorted((Path(__file__).parent / "remote").glob("*.py"))
AUTO_MAP = {
    "AutoConfig": "configuration_interleaved.InterleavedConfig",
    "AutoModelForCausalLM": "modeling_interleaved.InterleavedForCausalLM",
}
GMASK, BOS = 260, 1


def build_remote(folder: Path, **config) -> torch.nn.Module:
    """Write such a folder with random weights, norms and biases, and load it in evaluation mode."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in CODE:
        shutil.copy(path, folder)
    settings = {
        "model_type": "interleaved",
        "architectures": ["InterleavedForCausalLM"],
        "auto_map": AUTO_MAP,
    }
    (folder / "config.json").write_text(json.dumps(settings | config))
    remote_tokenizer().save_pretrained(folder)
    made = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder, trust_remote_code=True), trust_remote_code=True
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.normal_(0, 0.2)
            else:
                parameter.uniform_(0.5, 1.5)
    made.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def remote_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with one more special token; every text starts with gmask and bos."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]"]})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] <s> $A", special_tokens=[("[gMASK]", GMASK), ("<s>", BOS)]
    )
    return tokenizer


def prompts(samples: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    """Random tokens, in each row gmask and bos at another place: `(samples, length)`."""
    ids = torch.randint(4, 260, (samples, length), generator=torch.Generator().manual_seed(seed))
    for i, row in enumerate(ids):
        start = 3 + i % (length - 5)
        row[start : start + 2] = torch.tensor([GMASK, BOS])
    return ids
