"""What the tests of the library share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from pruner_lib.models.load import load_model
from pruner_lib.models.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def one_thread():
    """Two threads on so small a model wait for each other: 10 times slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with the tiny model and its tokenizer."""
    folder = tmp_path / "checkpoint"
    for part in load_model("tiny"):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def bos_folder(checkpoint: Path) -> Path:
    """The same folder, but its tokenizer begins each text with BOS, as those of Gemma and Llama 3 do."""
    tokenizer = tiny_tokenizer()
    bos = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[bos])
    tokenizer.save_pretrained(checkpoint)
    return checkpoint


@pytest.fixture(autouse=True)
def forget_code_of_folders():
    """Take what a test's trusted folders registered out of transformers: the next may have other classes."""
    yield
    known = AutoModelForCausalLM._model_mapping._extra_content
    for config in [one for one in known if one.__module__.startswith("transformers_modules")]:
        del known[config]
