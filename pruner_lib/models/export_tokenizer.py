"""Write the tokenizer of a GGUF file, so that llama.cpp splits a text into the same tokens.

Two kinds of BPE are supported: GPT-2's, over bytes, with one of the pre-tokenizers that llama.cpp knows by
name; and LLaMA's (sentencepiece), over characters, with byte fallback. Other tokenizers are refused, as are
vocabularies larger than the model's.
"""

import json
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
WORDS = BYTES | {"use_regex": True}
LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
# llama.cpp's name of a pre-tokenizer -> how it splits a text into words
WORD_RULES = {
    "gpt-2": [WORDS],
    "smollm": [{"type": "Digits", "individual_digits": True}, WORDS],
    "llama-bpe": [SPLIT | {"pattern": {"Regex": LETTERS + r"\p{N}{1,3}" + REST}}, BYTES],
    "qwen2": [SPLIT | {"pattern": {"Regex": LETTERS + r"\p{N}" + REST}}, BYTES],
}
IGNORES_MERGES = ("llama-bpe",)  # a word that is in the vocabulary becomes one token
NO_MERGES = ["Ā Ā"]  # llama.cpp needs at least one merge; this one of two zero bytes has no effect
SPACE = "▁"
OLD_SPACES = [  # equivalent of Metaspace in early conversions of LLaMA
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
]


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase | None, size: int) -> None:
    """Add a tokenizer to a GGUF file.

    Args:    size: of the model's vocabulary; ids without a token become unused tokens.
    Raises:  ValueError: the tokenizer is missing, of another kind, or has more tokens than the model.
    """
    state = _state(tokenizer)
    if len(tokenizer) > size:
        advice = "give the tokenizer of this model, or call model.resize_token_embeddings first"
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, but the model {size}; {advice}")
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(size)]
    types = [TokenType.NORMAL if i in by_id else TokenType.UNUSED for i in range(size)]
    if state["model"]["byte_fallback"]:
        _add_characters(writer, state, tokens, types)
    else:
        _add_bytes(writer, state)
    for added in state["added_tokens"]:
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            rule = "strips spaces beside it or matches whole words only"
            raise ValueError(f"the added token {added['content']!r} {rule}, which llama.cpp does not support")
        if types[added["id"]] == TokenType.NORMAL:
            types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    plain, ids = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    if ids != bos * (ids[:1] == bos) + plain + eos * (ids[-1:] == eos):
        tokens = tokenizer.convert_ids_to_tokens(ids)
        raise ValueError(
            f"llama.cpp adds only BOS before and EOS after a text; this tokenizer gives {tokens}"
        )
    writer.add_add_bos_token(ids[:1] == bos)
    writer.add_add_eos_token(ids[-1:] == eos)
    for name in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _state(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """Return the content of a fast tokenizer's tokenizer.json; refuse tokenizers other than BPE."""
    if tokenizer is None:
        raise ValueError("a GGUF file includes the tokenizer; call to_gguf(model, path, tokenizer=tokenizer)")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"model": {"type": "slow"}}
    if state["model"]["type"] != "BPE":
        found = f"{type(tokenizer).__name__} is of the kind {state['model']['type']!r}"
        raise ValueError(f"{found}; to_gguf supports only BPE, over bytes or with byte fallback")
    return state


def _add_bytes(writer: GGUFWriter, state: dict[str, Any]) -> None:
    """Add BPE over bytes: merges in order, and the name of the pre-tokenizer."""
    rule = _list(state["pre_tokenizer"], "pretokenizers")
    for step in rule:
        step.pop("trim_offsets", None)  # affects offsets, not tokens
    names = [name for name, known in WORD_RULES.items() if rule == known]
    model, normalizer = state["model"], state["normalizer"]
    if not names or (model.get("ignore_merges") or False) != (names[0] in IGNORES_MERGES):
        found = f"words by {json.dumps(rule)} with ignore_merges {model.get('ignore_merges')}"
        raise ValueError(f"to_gguf knows the rules of {', '.join(WORD_RULES)}; this tokenizer makes {found}")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise ValueError(f"llama.cpp does not normalise text, but this tokenizer does: {normalizer}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(names[0])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]] or NO_MERGES)


def _add_characters(writer: GGUFWriter, state: dict[str, Any], tokens: list[str], types: list) -> None:
    """Add sentencepiece's BPE: it merges the pair with the highest score, so scores are negative ranks."""
    spaces, steps = state["pre_tokenizer"], _list(state["normalizer"], "normalizers")
    if spaces is not None and (spaces["type"] != "Metaspace" or spaces["split"] or steps):
        raise ValueError(f"llama.cpp has no tokenizer with byte fallback and {spaces}, {steps}")
    if spaces is None and steps not in (OLD_SPACES, OLD_SPACES[1:]):
        raise ValueError(f"llama.cpp only replaces spaces by {SPACE}, but this tokenizer does: {steps}")
    prefix = spaces["prepend_scheme"] != "never" if spaces else steps == OLD_SPACES
    merges = ["".join(pair) for pair in state["model"]["merges"]]
    ranks = {token: rank for rank, token in reversed(list(enumerate(merges)))}  # the first rank of a token
    for i, token in enumerate(tokens):
        if token == state["model"]["unk_token"] or token == "<unk>":
            types[i] = TokenType.UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i] = TokenType.BYTE
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(ranks.get(token, len(merges) + i)) for i, token in enumerate(tokens)])
    writer.add_add_space_prefix(prefix)


def _list(step: dict[str, Any] | None, parts: str) -> list[dict[str, Any]]:
    """Return the steps of a sequence, or a single step as a list."""
    if step is None:
        return []
    return step[parts] if step["type"] == "Sequence" else [step]
