"""A local data directory with small stand-ins under the names that the profile `paper` asks for.

Models: random weights in the architecture and the file formats of the originals, with their kind of tokenizer
(sentencepiece for LLaMA, Vicuna and ChatGLM, byte-level BPE for StableLM). Texts, instructions and questions
are made up.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from chatglm_folder import write_hub_folder
from made_questions import RIGHT, WRONG, row
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

LLAMA, LLAMA_13B = "baffo32/decapoda-research-llama-7B-hf", "huggyllama/llama-13b"
VICUNA, CHATGLM = "lmsys/vicuna-7b-v1.3", "THUDM/chatglm-6b"
STABLELM = "stabilityai/stablelm-tuned-alpha-3b"
WORDS = (
    "the", "a", "red", "old", "small", "river", "dog", "tree", "stone", "sees", "likes", "near", "and",
)  # fmt: skip
SIZES = {  # one hidden channel is less than a hundredth of all parameters, so that any share can be met
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}


def build(root: Path) -> Path:
    """Fill a folder; give it."""
    _texts(root)
    _llama_style(root / LLAMA, seed=0, first_conversion=True)
    _llama_style(root / LLAMA_13B, seed=1)
    _llama_style(root / VICUNA, seed=2, shards=True)
    _chatglm(root / CHATGLM)
    _stablelm(root / STABLELM)
    return root


def sentences(count: int, seed: int = 0) -> list[str]:
    """Make up sentences."""
    drawn = np.random.default_rng(seed)
    return [" ".join(drawn.choice(WORDS, size=14)).capitalize() + "." for _ in range(count)]


def _texts(root: Path) -> None:
    for folder in ("wikitext2", "ptb", "tasks"):
        (root / folder).mkdir(parents=True)
    lines = "".join(f" {line} \n" for line in sentences(260, 1))
    (root / "wikitext2/wiki.test.raw").write_text(f" \n = Rivers = \n \n{lines}")
    (root / "ptb/ptb.valid.txt").write_text("\n".join(line.lower() for line in sentences(260, 2)))
    for seed, name in enumerate(("bookcorpus", "wiki", "c4"), 3):
        lines = sentences(600, seed)
        (root / f"{name}.txt").write_text("\n\n".join(" ".join(lines[i : i + 12]) for i in range(0, 600, 12)))
    rows = [{"instruction": f"Repeat: {s}", "input": "", "output": s} for s in sentences(96, 9)]
    (root / "alpaca.json").write_text(json.dumps(rows))
    for task in ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"):
        rows = [json.dumps(row(task, number)) for number in range(4)]
        (root / f"tasks/{task}.jsonl").write_text("\n".join([*rows[:2], *map(_swapped, rows[2:])]) + "\n")


def _swapped(question: str) -> str:
    """Make the right answer of a question the wrong one, so that no letter is always right."""
    return question.replace(RIGHT, "?").replace(WRONG, RIGHT).replace("?", WRONG)


def _save(folder: Path, config, tokenizer, seed: int, shards: bool = False) -> None:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1).add_(0.02 * torch.randn_like(parameter))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if not shards:
        model.save_pretrained(folder)
        return
    config.save_pretrained(folder)
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    halves = {name: f"pytorch_model-0000{1 + (i % 2)}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(halves.values()):
        torch.save({name: state[name] for name in state if halves[name] == file}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": halves}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def _llama_style(folder: Path, seed: int, shards: bool = False, first_conversion: bool = False) -> None:
    """Save a llama with a sentencepiece tokenizer; Vicuna keeps its weights in two pickled shards.

    Args:    first_conversion: the tokenizer's files as decapoda-research wrote them: a class that never was,
             and empty special tokens.
    """
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences(200, 20), "0123456789 !?:"]),
        model_prefix=str(folder / "tokenizer"), vocab_size=400, hard_vocab_limit=False, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if first_conversion:
        settings = {"tokenizer_class": "LLaMATokenizer", "bos_token": "", "eos_token": "", "unk_token": ""}
        (folder / "special_tokens_map.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    known = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    config = LlamaConfig(**SIZES, vocab_size=len(known), bos_token_id=1, eos_token_id=2)
    _save(folder, config, None, seed, shards)


def _bytes(special: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(sentences(200, 21), trainer)
    return made


def _chatglm(folder: Path) -> None:
    """Save a ChatGLM-6B with the files of the hub: pickled shards, and code that nobody runs."""
    sizes = {"hidden_size": 128, "inner_hidden_size": 256, "num_layers": 6, "num_attention_heads": 4}
    write_hub_folder(folder, sentences(200, 21), vocab_size=480, **sizes)


def _stablelm(folder: Path) -> None:
    """Save a GPT-NeoX, as StableLM's first models were."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_bytes(["<|endoftext|>", "<|padding|>"]), bos_token="<|endoftext|>",
        eos_token="<|endoftext|>", unk_token="<|endoftext|>",
    )  # fmt: skip
    config = GPTNeoXConfig(**SIZES, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
    _save(folder, config, tokenizer, 4)
