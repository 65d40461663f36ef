"""Texts, token ids and instructions: what is read, how it is cut, and what is refused."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from pruner_lib.data.corpora import CORPORA, INSTRUCTIONS, read_corpus, read_instructions
from pruner_lib.data.windows import calibration_ids, corpus_hash, has_bos, instructions, text_ids
from pruner_lib.models.load import find_model, load_model
from pruner_lib.models.tiny import tiny_tokenizer


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    return AutoTokenizer.from_pretrained(find_model("smollm2-135m"))


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNER_LIB_DATA", str(tmp_path))
    return tmp_path


def tokens(text: str) -> list[int]:
    return tiny_tokenizer()(text)["input_ids"]


@pytest.mark.slow
def test_wiki_windows_are_those_of_the_reference_run(smollm2_tokenizer):
    ids = text_ids("wiki", smollm2_tokenizer, length=128, windows=128)
    assert ids.shape == (128, 128) and ids.dtype == torch.int64
    assert corpus_hash(ids) == "339e7f8a49fd"


def test_bookcorpus_samples_are_those_of_the_reference_run(smollm2_tokenizer):
    ids = calibration_ids("bookcorpus", smollm2_tokenizer, samples=10, length=64)
    assert ids.shape == (10, 64) and ids.dtype == torch.int64
    assert corpus_hash(ids) == "6ce05a606a69"


@pytest.mark.parametrize(
    ("name", "documents", "start"),
    [("wiki", 2349, "2007 European"), ("c4", 584, "Restore"), ("bookcorpus", 5153, "In my palm")],
)
def test_embedded_texts_have_their_documents(name, documents, start):
    corpus = read_corpus(name)
    assert len([text for text in corpus.documents if text.strip()]) == documents
    assert corpus.documents[0].startswith(start)
    assert not any("<doc " in text or "</doc>" in text for text in corpus.documents)


def test_windows_follow_each_other_without_overlap():
    corpus = read_corpus("tiny")
    whole = tokens(corpus.separator.join(corpus.documents))
    ids = text_ids("tiny", tiny_tokenizer(), length=50)
    assert ids.flatten().tolist() == whole[: ids.numel()]
    assert 0 <= len(whole) - ids.numel() < 50
    assert torch.equal(text_ids("tiny", tiny_tokenizer(), length=50, windows=3), ids[:3])


def test_windows_drawn_by_a_seed_come_from_different_documents(local):
    texts = ["".join(f"{i:02d}{j:02d}" for j in range(20)) for i in range(10, 40)]
    (local / "mine.txt").write_text("\n\n".join([*texts, "short"]))
    drawn = [text_ids("mine", tiny_tokenizer(), length=9, windows=12, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    windows = [tiny_tokenizer().decode(row) for row in drawn[0]]
    sources = [[text for text in texts if window in text] for window in windows]
    assert [len(found) for found in sources] == [1] * 12, "each lies in one document"
    assert len({found[0] for found in sources}) == 12, "and no two in the same"
    starts = [found[0].startswith(window) for window, found in zip(windows, sources, strict=True)]
    assert not all(starts), "and not all at its beginning"
    whole = text_ids("mine", tiny_tokenizer(), length=9, seed=1)
    assert len(whole) == 30, "all documents that are long enough"
    assert torch.equal(whole[:12], drawn[0]), "a larger sample begins with the smaller one"
    with pytest.raises(ValueError, match="'mine' has 30 documents of at least 9 tokens, expected 31 windows"):
        text_ids("mine", tiny_tokenizer(), length=9, windows=31, seed=1)


def test_bos_stands_once_before_the_text_and_only_when_asked():
    plain = text_ids("tiny", tiny_tokenizer(), length=50)
    with_bos = text_ids("tiny", tiny_tokenizer(), length=50, bos=True)
    assert (plain == 1).sum() == 0
    assert (with_bos == 1).sum() == 1 and with_bos[0, 0] == 1
    assert torch.equal(with_bos[0, 1:], plain[0, :-1])


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("cut", [text_ids, calibration_ids])
def test_every_window_can_begin_with_bos(cut, seed):
    n = {"windows" if cut is text_ids else "samples": 5, "seed": seed}
    plain = cut("tiny", tiny_tokenizer(), length=9, **n)
    begun = cut("tiny", tiny_tokenizer(), length=10, bos="window", **n)
    assert begun.shape == (5, 10) and (begun[:, 0] == 1).all() and (begun == 1).sum() == 5
    assert torch.equal(begun[:, 1:], plain), "and behind it stands what would have stood there without"
    with pytest.raises(ValueError, match="length is 1, expected more than the 1 tokens"):
        cut("tiny", tiny_tokenizer(), length=1, bos="window")
    with pytest.raises(ValueError, match="unknown bos 'each'; choose one of True, False, window"):
        cut("tiny", tiny_tokenizer(), length=9, bos="each")


@pytest.mark.parametrize("cut", [text_ids, calibration_ids])
def test_without_a_bos_token_texts_begin_without_it_and_one_warning_says_so(cut):
    sizes = {"length": 9, "windows" if cut is text_ids else "samples": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_bos = cut("tiny", tiny_tokenizer(), bos=True, **sizes)
        tokenizer = tiny_tokenizer()
        tokenizer.bos_token = None
        plain = cut("tiny", tokenizer, **sizes)
    with pytest.warns(UserWarning, match="no beginning-of-sequence token: texts start without") as caught:
        without = cut("tiny", tokenizer, bos=True, **sizes)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert torch.equal(without, plain) and not torch.equal(with_bos, plain)
    assert [has_bos(t, b) for t in (tokenizer, tiny_tokenizer()) for b in (True, False)] == [0, 0, 1, 0]


def test_too_few_windows_say_how_many_there_are(local):
    (local / "mine.txt").write_text("x" * 100)
    assert text_ids("mine", tiny_tokenizer(), length=10, windows=10).shape == (10, 10)
    with pytest.raises(ValueError, match="'mine' has 10 windows of 10 tokens, expected 11"):
        text_ids("mine", tiny_tokenizer(), length=10, windows=11)
    with pytest.raises(ValueError, match="'mine' has 0 windows of 101 tokens"):
        text_ids("mine", tiny_tokenizer(), length=101)


def test_one_document_per_line_is_told_how_documents_end(local):
    (local / "mine.txt").write_text("one line is a document\n" * 20)
    advice = r"; in a file, documents end at blank lines \(or at the argument `separator`\)"
    for name in ("mine", local / "mine.txt"):
        with pytest.raises(
            ValueError, match=f"has 1 documents of at least 9 tokens, .* another text{advice}$"
        ):
            calibration_ids(name, tiny_tokenizer(), length=9)
    assert calibration_ids("mine", tiny_tokenizer(), length=9, separator="\n").shape == (10, 9)
    for text in ("tiny", ["one line"]):  # not read from a file
        with pytest.raises(ValueError, match="or another text$"):
            calibration_ids(text, tiny_tokenizer(), length=9, samples=1000)


def test_calibration_takes_the_first_documents_that_are_long_enough(local):
    (local / "mine.txt").write_text("short\n\nlong enough\n\ntiny\n\nalso long enough\n")
    ids = calibration_ids("mine", tiny_tokenizer(), samples=2, length=8)
    assert ids.tolist() == [tokens("long eno"), tokens("also lon")]
    with pytest.raises(ValueError, match="2 documents of at least 8 tokens, expected 3"):
        calibration_ids("mine", tiny_tokenizer(), samples=3, length=8)


def test_calibration_seed_draws_documents_and_crops(local):
    (local / "mine.txt").write_text("\n\n".join(f"{i:02d}" * 20 for i in range(30)))
    drawn = [calibration_ids("mine", tiny_tokenizer(), samples=30, length=9, seed=s) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    texts = [tiny_tokenizer().decode(row) for row in drawn[0]]
    assert sorted(min(text[:2], text[1:3]) for text in texts) != texts  # in another order
    assert all(any(text in f"{i:02d}" * 20 for i in range(30)) for text in texts)  # each inside one document
    assert {len(set(row)) for row in drawn[0].tolist()} == {1, 2}
    assert any(text[0] != "0" and text[:2] != text[1:3] for text in texts)


def test_calibration_bos_counts_as_a_token():
    ids = calibration_ids("tiny", tiny_tokenizer(), samples=2, length=8, bos=True)
    assert ids.shape == (2, 8) and ids[:, 0].tolist() == [1, 1]


def test_wikitext2_rows_are_lines_joined_as_in_the_paper(local):
    (local / "wikitext2").mkdir()
    (local / "wikitext2" / "wiki.test.raw").write_text(" \n = Title = \n \n One .\n", encoding="utf-8")
    corpus = read_corpus("wikitext2")
    assert corpus.documents == ("", " = Title = \n", "", " One .\n")
    assert corpus.separator.join(corpus.documents) == "\n\n = Title = \n\n\n\n\n One .\n"


def test_only_a_newline_ends_a_row(local):
    (local / "wikitext2").mkdir()
    (local / "wikitext2" / "wiki.test.raw").write_text("a\u2028b\x0cc\x85d\n", encoding="utf-8")
    assert read_corpus("wikitext2").documents == ("a\u2028b\x0cc\x85d\n",)


def test_ptb_rows_are_stripped_lines(local):
    (local / "ptb").mkdir()
    (local / "ptb" / "ptb.valid.txt").write_text(" first row \n second <unk> row \n", encoding="utf-8")
    corpus = read_corpus("ptb")
    assert corpus.separator.join(corpus.documents) == "first row\n\nsecond <unk> row"


def test_local_text_goes_before_the_asset(local):
    (local / "wiki.txt").write_text("mine\n\nmy own")
    assert read_corpus("wiki").documents == ("mine", "my own")


@pytest.mark.parametrize("name", ["wikitext2", "ptb"])
def test_text_of_the_hub_without_the_hub_is_named_with_what_to_do(name, local):
    with pytest.raises(ValueError, match=f"was not found .*{name}/.*PRUNER_LIB_DATA"):
        read_corpus(name)


def test_data_of_the_hub_are_pinned_to_a_commit(local, monkeypatch):
    seen = {}
    rows = [{"text": "one", "instruction": "say", "output": "one", "input": ""}]

    def load_dataset(repository, config, split, revision):
        seen[repository] = revision
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_corpus("wikitext2").documents == ("one",) and instructions("alpaca")[0]["output"] == "one"
    assert set(seen) == {"Salesforce/wikitext", "yahma/alpaca-cleaned"}
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in seen.values())


def test_unknown_and_empty_texts_are_refused(local):
    with pytest.raises(ValueError, match="unknown text 'wikki'.*wiki, c4, bookcorpus"):
        read_corpus("wikki")
    (local / "empty.txt").write_text("\n\n \n")
    with pytest.raises(ValueError, match="'empty' is empty"):
        read_corpus("empty")
    assert list(CORPORA) == ["wiki", "c4", "bookcorpus", "wikitext2", "ptb", "tiny"]


def test_a_text_may_be_a_path_a_list_or_a_dataset(tmp_path):
    documents = ["the old dog", "a small river sees the tree", "red stone"]
    path = tmp_path / "mine.txt"
    path.write_text("\n\n".join(documents))
    wanted = text_ids(documents, tiny_tokenizer(), length=4)
    for source in (path, str(path), datasets.Dataset.from_dict({"text": documents})):
        assert torch.equal(text_ids(source, tiny_tokenizer(), length=4), wanted)
        drawn = calibration_ids(source, tiny_tokenizer(), samples=2, length=3, seed=1)
        assert torch.equal(drawn, calibration_ids(documents, tiny_tokenizer(), samples=2, length=3, seed=1))
    assert not torch.equal(text_ids(documents[:1] * 3, tiny_tokenizer(), length=4), wanted)
    splits = datasets.DatasetDict({"train": source, "test": source})
    for several in (splits, {"train": documents, "test": documents}):
        with pytest.raises(ValueError, match=r"text is a .* of \['train', 'test'\]; give one of them"):
            text_ids(several, tiny_tokenizer())
    with pytest.raises(ValueError, match="each a str, but one is of type int"):
        text_ids([1, 2], tiny_tokenizer())
    with pytest.raises(ValueError, match="text of 2 documents is empty"):
        text_ids(["", " "], tiny_tokenizer())
    with pytest.raises(ValueError, match="text of 3 documents has"):
        text_ids(documents, tiny_tokenizer(), length=400)


@pytest.mark.parametrize(
    "written",
    [
        b"one\n\ntwo\nlines",
        b"\xef\xbb\xbfone\r\n\r\ntwo\r\nlines\r\n",
        b"one\n \t\n\n  \ntwo\nlines\n",
        b"one\r\rtwo\rlines",
    ],
)
def test_a_file_may_come_from_any_editor(written, local):
    (local / "mine.txt").write_bytes(written)
    assert read_corpus("mine").documents == ("one", "two\nlines")
    assert read_corpus("mine", "\n").documents == ("one", "two", "lines")


def test_another_encoding_is_named_with_its_place(local):
    (local / "mine.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine.txt is not UTF-8 \(.* at byte 3\); save it as UTF-8"):
        read_corpus("mine")
    (local / "mine.txt").write_bytes("cafe".encode("utf-16-le"))  # without a mark, each byte could be UTF-8
    with pytest.raises(
        ValueError, match=r"mine.txt is not UTF-8 \(zero byte, as in UTF-16 at byte 1\); save"
    ):
        read_corpus("mine")
    (local / "ours.json").write_bytes(b"\xff\xfe[")
    with pytest.raises(ValueError, match=r"ours.json is not UTF-8"):
        read_instructions("ours")


def test_instructions_may_be_a_path_and_hold_messages_or_text(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}]
    for name, kind in (("chats.jsonl", rows), ("texts.jsonl", [{"text": "one"}, {"text": "two"}])):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, kind)), encoding="utf-8-sig")
        assert instructions(path) == instructions(str(path)) == kind
    with pytest.raises(ValueError, match="the path of such a file"):
        instructions(tmp_path / "nowhere.jsonl")


def test_corpus_hash_tells_content_and_shape_apart():
    ids = torch.arange(12).view(3, 4)
    assert corpus_hash(ids) == corpus_hash(ids.int().clone()) and len(corpus_hash(ids)) == 12
    assert corpus_hash(ids) != corpus_hash(ids.view(4, 3))
    assert corpus_hash(ids) != corpus_hash(ids + 1)


@pytest.mark.parametrize(("name", "rows"), [("instructlab", 24545), ("tiny", 196)])
def test_instructions_have_the_alpaca_keys(name, rows):
    found = instructions(name)
    assert len(found) == rows
    assert all(set(row) == {"instruction", "input", "output"} for row in found)
    assert all(row["instruction"] and row["output"] for row in found)


def test_instruction_samples_follow_the_seed():
    drawn = [instructions("tiny", samples=20, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({json.dumps(row) for row in drawn[0]}) == 20
    with pytest.raises(ValueError, match="has 196 rows, expected 197"):
        instructions("tiny", samples=197)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_local_instructions_are_read(local, suffix):
    rows = [{"instruction": "Add", "input": "1 2", "output": "3"}, {"instruction": "Hi", "output": "Ho"}]
    text = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
    (local / f"alpaca.{suffix}").write_text(text)
    assert instructions("alpaca") == [rows[0], rows[1] | {"input": ""}]


@pytest.mark.parametrize(
    "text",
    ["{", '{"a": 1}', '[{"instruction": "no output"}]', "[1]", "[" * 1500],
    ids=["cut", "an object", "no output", "a number", "deep"],
)
def test_malformed_instructions_name_the_file(local, text):
    (local / "mine.json").write_text(text)
    with pytest.raises(ValueError, match=r'mine\.json.*expected a JSON list.*"instruction" and "output"'):
        read_instructions("mine")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_is_no_file_of_the_data_folder(local):
    """One would be waited for, for ever."""
    for name in ("mine.txt", "mine.json"):
        os.mkfifo(local / name)
    with pytest.raises(ValueError, match="unknown text 'mine'"):
        read_corpus("mine")
    with pytest.raises(ValueError, match="unknown instructions 'mine'"):
        read_instructions("mine")


@pytest.mark.parametrize("read", [read_instructions, load_model])
def test_name_longer_than_a_file_may_have_is_unknown(local, read):
    with pytest.raises(ValueError, match="unknown (instructions|model) 'xxx"):
        read("x" * 5000)


def test_unknown_and_unreachable_instructions_are_refused(local):
    with pytest.raises(ValueError, match="unknown instructions 'alpacca'.*instructlab, alpaca, tiny"):
        instructions("alpacca")
    with pytest.raises(ValueError, match="yahma/alpaca-cleaned.*was not found.*alpaca.json"):
        instructions("alpaca")
    assert list(INSTRUCTIONS) == ["instructlab", "alpaca", "tiny"]


def test_penn_treebank_is_read_by_its_files_as_the_hub_lays_them_out(tmp_path, monkeypatch):
    for split in ("train", "validation"):
        folder = tmp_path / "penn_treebank" / split
        folder.mkdir(parents=True)
        pd.DataFrame({"sentence": [f"{split} one", "two"]}).to_parquet(folder / "0000.parquet")
    load = datasets.load_dataset

    def from_folder(repository, config, revision, **where):
        assert (repository, revision) == ("ptb-text-only/ptb_text_only", "refs/convert/parquet")
        return load(str(tmp_path), config, **where)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    assert read_corpus("ptb").documents == ("validation one", "two")
    with pytest.raises(ValueError, match="BuilderConfig 'penn_treebank' not found"):
        load(str(tmp_path), "penn_treebank", split="validation")
