"""llama.cpp cuts a text into the tokens that transformers cuts it into, or the tokenizer is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from families import build
from gguf import GGUFReader, GGUFWriter
from gguf_client import LlamaCpp
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from pruner_lib import to_gguf
from pruner_lib.models import export_tokenizer
from pruner_lib.models.tiny import tiny_tokenizer

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TRAINED_ON = [*README.splitlines(), *["In 1999 and 2024, it's 12345 + 67 = 12412!"] * 20]
TEXTS = [
    README[:6000],
    "The river ran 12345 miles in 2024.",
    "It's  late;\n\n we'll   go -- won't WE'LL?\n  é日本 ½ ²",
    " a<|user|>b </s> c",
]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(name: str) -> pre_tokenizers.PreTokenizer:
    pattern = export_tokenizer.WORD_RULES[name][0]["pattern"]["Regex"]
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


RULES = {
    "gpt-2": WORDS,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), WORDS]),
    "llama-bpe": split("llama-bpe"),
    "qwen2": split("qwen2"),
}


def over_bytes(rule: pre_tokenizers.PreTokenizer, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """Trained on words of GPT-2, so that there are merges which a finer rule must not reach."""
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer, made.decoder = WORDS, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    made.train_from_iterator(TRAINED_ON, trainer)
    made.pre_tokenizer = rule
    made.add_tokens([AddedToken("<|user|>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def over_characters(folder, **settings) -> LlamaTokenizer:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINED_ON), model_prefix=str(folder / "tokenizer"), vocab_size=700,
        hard_vocab_limit=False, model_type="bpe", byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    return LlamaTokenizer.from_pretrained(folder, **settings)


def in_llama_cpp(tokenizer, path) -> LlamaCpp:
    model = build("llama-gqa", vocab_size=len(tokenizer) + 3)
    return LlamaCpp(to_gguf(model, path / "m.gguf", tokenizer=tokenizer))


def agree(tokenizer, client: LlamaCpp) -> list[bool]:
    return [client.tokens(text) == tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("name", RULES)
def test_bytes_are_merged_within_the_same_words(name, tmp_path, monkeypatch):
    tokenizer = over_bytes(RULES[name], ignore_merges=name == "llama-bpe")
    assert agree(tokenizer, in_llama_cpp(tokenizer, tmp_path)) == [True] * 4
    other = {"gpt-2": "smollm", "smollm": "gpt-2", "llama-bpe": "smollm", "qwen2": "gpt-2"}[name]
    swapped = {other: export_tokenizer.WORD_RULES[name]}
    monkeypatch.setattr(export_tokenizer, "WORD_RULES", swapped)
    monkeypatch.setattr(export_tokenizer, "IGNORES_MERGES", [other] * (name == "llama-bpe"))
    assert not all(agree(tokenizer, in_llama_cpp(tokenizer, tmp_path)))


def test_a_tokenizer_without_merges_is_the_same(tmp_path):
    tokenizer = tiny_tokenizer()
    assert agree(tokenizer, in_llama_cpp(tokenizer, tmp_path)) == [True] * 4


def as_first_converted(tokenizer: LlamaTokenizer) -> PreTrainedTokenizerFast:
    made = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    made.pre_tokenizer = None
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence(spaces)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("form", ["metaspace", "no prefix", "end of text", "first conversion"])
def test_characters_are_merged_by_rank(form, tmp_path):
    settings = {"no prefix": {"add_prefix_space": False}, "end of text": {"add_eos_token": True}}
    tokenizer = over_characters(tmp_path, **settings.get(form, {"add_bos_token": True}))
    tokenizer = as_first_converted(tokenizer) if form == "first conversion" else tokenizer
    *plain, with_special = agree(tokenizer, in_llama_cpp(tokenizer, tmp_path))
    assert all(plain)
    # after a special token llama.cpp begins with a space again, as the first conversions do
    assert with_special == (form in ("no prefix", "first conversion"))


def test_other_scores_merge_other_characters(tmp_path, monkeypatch):
    tokenizer, add = over_characters(tmp_path), GGUFWriter.add_token_scores
    monkeypatch.setattr(GGUFWriter, "add_token_scores", lambda self, s: add(self, [-x for x in s]))
    assert not agree(tokenizer, in_llama_cpp(tokenizer, tmp_path))[0]


def test_special_tokens_and_the_form_of_a_chat_are_written(tmp_path):
    tokenizer = over_bytes(WORDS)
    tokenizer.chat_template = "{{ messages[0].content }}"
    in_llama_cpp(tokenizer, tmp_path)
    fields = GGUFReader(tmp_path / "m.gguf").fields
    written = {name.removeprefix("tokenizer."): fields[name].contents() for name in fields}
    assert written["chat_template"] == tokenizer.chat_template
    assert (written["ggml.bos_token_id"], written["ggml.eos_token_id"]) == (0, 1)
    assert written["ggml.add_bos_token"] is False and "ggml.padding_token_id" not in written
    n = len(tokenizer)
    assert written["ggml.tokens"][n - 1 :] == ["<|user|>", f"[PAD{n}]", f"[PAD{n + 1}]", f"[PAD{n + 2}]"]
    control, normal, user, unused = 3, 1, 4, 5
    types = written["ggml.token_type"]
    assert types[:3] == [control, control, normal] and types[n - 1 :] == [user] + [unused] * 3


def with_parts(**parts) -> PreTrainedTokenizerFast:
    """A tokenizer over bytes, some parts of it others."""
    tokenizer = over_bytes(WORDS)
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


def with_added(token: AddedToken) -> PreTrainedTokenizerFast:
    tokenizer = over_bytes(WORDS)
    tokenizer.add_tokens([token])
    return tokenizer


REFUSED = {
    "of the kind 'WordLevel'": lambda: with_parts(model=models.WordLevel({"a": 0}, unk_token="a")),
    "makes words by .*Whitespace": lambda: with_parts(pre_tokenizer=pre_tokenizers.Whitespace()),
    "makes words by .*with ignore_merges True": lambda: over_bytes(WORDS, ignore_merges=True),
    r"only BOS before and EOS after a text; this tokenizer gives \['<s>', '.', 'a'\]": lambda: with_parts(
        post_processor=TemplateProcessing(
            single="<s> <|user|> $A", special_tokens=[("<s>", 0), ("<|user|>", 3)]
        )
    ),
    "added token '<x>' strips spaces beside it": lambda: with_added(AddedToken("<x>", rstrip=True)),
    "added token 'hello' .* whole words only": lambda: with_added(AddedToken("hello", single_word=True)),
    "does not normalise text, but this tokenizer does: .*Lowercase": lambda: with_parts(
        normalizer=normalizers.Lowercase()
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_tokenizers_that_llama_cpp_has_not_are_refused(reason, tmp_path):
    model = build("llama-gqa", vocab_size=800)
    with pytest.raises(ValueError, match=reason):
        to_gguf(model, tmp_path / "m.gguf", tokenizer=REFUSED[reason]())
    assert not list(tmp_path.iterdir())
    to_gguf(model, tmp_path / "m.gguf", tokenizer=with_parts(normalizer=normalizers.NFC()))


@pytest.mark.parametrize("wrong", ["splits at spaces", "other letters"])
def test_characters_that_are_changed_in_other_ways_are_refused(wrong, tmp_path):
    made = over_characters(tmp_path)
    if wrong == "other letters":
        made.backend_tokenizer.normalizer = normalizers.NFKC()
    else:
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    with pytest.raises(ValueError, match="llama.cpp has no tokenizer with byte fallback and"):
        to_gguf(build("llama-gqa", vocab_size=800), tmp_path / "m.gguf", tokenizer=made)


def test_more_tokens_than_the_model_has_are_refused(tmp_path):
    tokenizer = over_bytes(WORDS)
    with pytest.raises(ValueError, match=f"has {len(tokenizer)} tokens, but the model 64"):
        to_gguf(build("llama-gqa"), tmp_path / "m.gguf", tokenizer=tokenizer)
