"""The tokenizer of a GGUF file: what llama.cpp needs to cut a text into the same tokens.

Two kinds are written, both of them BPE: that of GPT-2, over bytes, with one of the ways to cut a text into
words that llama.cpp knows by name; and that of LLaMA (sentencepiece), over characters, with bytes for those
that it has not. Others are refused, as is a vocabulary larger than the model's.
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
# name of llama.cpp -> how a text is cut into words before its bytes are merged
WORD_RULES = {
    "gpt-2": [WORDS],
    "smollm": [{"type": "Digits", "individual_digits": True}, WORDS],
    "llama-bpe": [SPLIT | {"pattern": {"Regex": LETTERS + r"\p{N}{1,3}" + REST}}, BYTES],
    "qwen2": [SPLIT | {"pattern": {"Regex": LETTERS + r"\p{N}" + REST}}, BYTES],
}
IGNORES_MERGES = ("llama-bpe",)  # a word that is a token is taken whole
NO_MERGES = ["Ā Ā"]  # llama.cpp wants at least one; of two zero bytes it makes their two tokens again
SPACE = "▁"
OLD_SPACES = [  # how the first conversions of LLaMA write what Metaspace does
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
]


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase | None, size: int) -> None:
    """Describe a tokenizer in a GGUF file.

    Args:    size: of the model's vocabulary; ids that the tokenizer has not become unused tokens.
    Raises:  ValueError: no tokenizer, one of another kind, or one with more tokens than the model.
    """
    state = _state(tokenizer)
    if len(tokenizer) > size:
        advice = "give the tokenizer of this model, or call model.resize_token_embeddings first"
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model {size}: {advice}")
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(size)]
    types = [TokenType.NORMAL if i in by_id else TokenType.UNUSED for i in range(size)]
    if state["model"]["byte_fallback"]:
        _add_characters(writer, state, tokens, types)
    else:
        _add_bytes(writer, state)
    for added in state["added_tokens"]:
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            said = "takes the blanks beside it, or is a whole word only"
            raise ValueError(f"the added token {added['content']!r} {said}; llama.cpp's are found everywhere")
        if types[added["id"]] == TokenType.NORMAL:
            types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    plain, ids = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    if ids != bos * (ids[:1] == bos) + plain + eos * (ids[-1:] == eos):
        shown = tokenizer.convert_ids_to_tokens(ids)
        raise ValueError(f"llama.cpp puts BOS before a text and EOS behind it alone, this tokenizer: {shown}")
    writer.add_add_bos_token(ids[:1] == bos)
    writer.add_add_eos_token(ids[-1:] == eos)
    for name in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _state(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """What a fast tokenizer writes into its tokenizer.json; refuse one that is no BPE."""
    if tokenizer is None:
        raise ValueError("a GGUF holds the tokenizer too: to_gguf(model, path, tokenizer=tokenizer)")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"model": {"type": "slow"}}
    if state["model"]["type"] != "BPE":
        came = f"{type(tokenizer).__name__} is of the kind {state['model']['type']!r}"
        raise ValueError(f"{came}; a GGUF is written with BPE, over bytes or with byte fallback, alone")
    return state


def _add_bytes(writer: GGUFWriter, state: dict[str, Any]) -> None:
    """BPE over bytes: merges in their order, and the name of the rule that cuts a text into words."""
    rule = _list(state["pre_tokenizer"], "pretokenizers")
    for step in rule:
        step.pop("trim_offsets", None)  # of positions in the text, not of tokens
    names = [name for name, known in WORD_RULES.items() if rule == known]
    model, normal = state["model"], state["normalizer"]
    if not names or (model.get("ignore_merges") or False) != (names[0] in IGNORES_MERGES):
        found = f"words by {json.dumps(rule)} with ignore_merges {model.get('ignore_merges')}"
        raise ValueError(f"a GGUF has rules for {', '.join(WORD_RULES)}; this tokenizer cuts into {found}")
    if normal is not None and normal["type"] != "NFC":
        raise ValueError(f"llama.cpp changes no text before it cuts it, this tokenizer does: {normal}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(names[0])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]] or NO_MERGES)


def _add_characters(writer: GGUFWriter, state: dict[str, Any], tokens: list[str], types: list) -> None:
    """sentencepiece's BPE merges the pair whose token has the highest score, so that is minus the rank."""
    spaces, rest = state["pre_tokenizer"], _list(state["normalizer"], "normalizers")
    if spaces is not None and (spaces["type"] != "Metaspace" or spaces["split"] or rest):
        raise ValueError(f"llama.cpp has no tokenizer with bytes for unknown characters and {spaces}, {rest}")
    if spaces is None and rest not in (OLD_SPACES, OLD_SPACES[1:]):
        raise ValueError(f"llama.cpp only puts {SPACE} for spaces into a text, this tokenizer does: {rest}")
    prefix = spaces["prepend_scheme"] != "never" if spaces else rest == OLD_SPACES
    merges = ["".join(pair) for pair in state["model"]["merges"]]
    ranks = {token: rank for rank, token in reversed(list(enumerate(merges)))}  # the first pair counts
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
    """The steps of a sequence, or of one step alone."""
    if step is None:
        return []
    return step[parts] if step["type"] == "Sequence" else [step]
