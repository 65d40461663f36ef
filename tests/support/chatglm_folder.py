"""A folder as THUDM/chatglm-6b is on the hub, but small: its files' names and forms, random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import torch

from pruner_lib.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration

TEXT = ("The old dog sees a red river near the small tree.", "A stone and a dog, a river and the tree.") * 40
SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
BLANKS = ("<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81)))
IDS = {"mask_token_id": 4, "gmask_token_id": 5, "bos_token_id": 8, "eos_token_id": 9, "pad_token_id": 3}
SIZES = {
    "vocab_size": 420, "hidden_size": 48, "inner_hidden_size": 96, "num_layers": 3, "num_attention_heads": 6,
}  # fmt: skip


def random_chatglm(seed: int = 0, **changes) -> ChatGLMForConditionalGeneration:
    """A small model whose norms, biases and weights show a wrong cut, in evaluation mode."""
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**SIZES | IDS | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            is_norm = name.endswith("layernorm.weight")
            parameter.copy_(1 + 0.3 * drawn if is_norm else 0.2 * drawn)
    return model.eval()


def prompts(samples: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    """Random tokens, in each row [gMASK] and <sop> at another place: `(samples, length)`."""
    ids = torch.randint(100, 410, (samples, length), generator=torch.Generator().manual_seed(seed))
    for i, row in enumerate(ids):
        start = 3 + i % (length - 5)
        row[start : start + 2] = torch.tensor([IDS["gmask_token_id"], IDS["bos_token_id"]])
    return ids


def train_tokenizer(folder: Path, text: Sequence[str] = TEXT, special: Sequence[str] = SPECIAL) -> None:
    """Write `ice_text.model` and `tokenizer_config.json`, with the special pieces of the hub's."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*text, "0123456789 !?:"]),
        model_prefix=str(folder / "ice_text"), vocab_size=480, hard_vocab_limit=False, byte_fallback=True,
        character_coverage=1.0, unk_id=0, bos_id=1, eos_id=2, pad_id=3, control_symbols=list(special),
        user_defined_symbols=list(BLANKS), minloglevel=2,
    )  # fmt: skip
    (folder / "ice_text.vocab").unlink()
    settings = {
        "name_or_path": "THUDM/chatglm-6b", "bos_token": "<sop>", "eos_token": "<eop>", "end_token": "</s>",
        "gmask_token": "[gMASK]", "mask_token": "[MASK]", "pad_token": "<pad>", "unk_token": "<unk>",
        "remove_space": False, "do_lower_case": False, "tokenizer_class": "ChatGLMTokenizer",
        "num_image_tokens": 0,
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_hub_folder(folder: Path, text: Sequence[str] = TEXT, *, tied: bool = True, **changes) -> None:
    """Write the files of the hub: two shards of half-precision pickles, a config that names remote code.

    Args:    text: what the tokenizer is trained on.    tied: the output layer repeats the embedding, as it
             does on the hub.    changes: sizes of the config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = random_chatglm(**changes)
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    for i in range(model.config.num_layers):  # as the hub has them; they are not read
        state[f"transformer.layers.{i}.attention.rotary_emb.inv_freq"] = torch.ones(2).half()
    if tied:
        state["lm_head.weight"] = state["transformer.word_embeddings.weight"].clone()
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in state if files[name] == file}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    code = "modeling_chatglm.ChatGLMForConditionalGeneration"
    settings = SIZES | IDS | changes | {
        "_name_or_path": "THUDM/chatglm-6b", "architectures": ["ChatGLMModel"], "model_type": "chatglm",
        "auto_map": {
            "AutoConfig": "configuration_chatglm.ChatGLMConfig", "AutoModel": code,
            "AutoModelForSeq2SeqLM": code,
        },
        "layernorm_epsilon": 1e-5, "max_sequence_length": 2048, "position_encoding_2d": True,
        "torch_dtype": "float16", "transformers_version": "4.23.1", "use_cache": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    for name in ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm"):
        (folder / f"{name}.py").write_text("raise RuntimeError('code of the folder was run')\n")
    train_tokenizer(folder, text)
