"""What recovery learns from: prompts, labels on the responses alone, batches in a fixed order."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import datasets
import pytest
from small_recovery import EXAMPLES

from pruner_lib.data.windows import instructions
from pruner_lib.recovery.instructions import IGNORED, PROMPT, PROMPT_WITH_INPUT, batches, collate, encode


def test_the_response_and_eos_are_labelled_and_the_prompt_is_not(tokenizer):
    plain, noted = {**EXAMPLES[1]}, {**EXAMPLES[3]}
    for example, form in ((plain, PROMPT), (noted, PROMPT_WITH_INPUT)):
        (row,) = encode([example], tokenizer, cutoff=1000)
        answer = [token for token in row["labels"] if token != IGNORED]
        prompt = row["input_ids"][: -len(answer)]
        assert answer[-1] == tokenizer.eos_token_id and tokenizer.decode(answer[:-1]) == example["output"]
        assert tokenizer.decode(prompt, skip_special_tokens=True) == form.format(**example)
        assert row["labels"][: len(prompt)] == [IGNORED] * len(prompt)


def test_a_cut_response_gets_no_eos(tokenizer):
    (whole,) = encode(EXAMPLES[3:4], tokenizer, cutoff=1000)
    n = len(whole["input_ids"])
    (fits,) = encode(EXAMPLES[3:4], tokenizer, cutoff=n)
    (cut,) = encode(EXAMPLES[3:4], tokenizer, cutoff=n - 1)
    assert fits == whole and fits["input_ids"][-1] == tokenizer.eos_token_id
    assert cut["input_ids"] == whole["input_ids"][:-1] and cut["labels"] == whole["labels"][:-1]


def test_an_example_without_room_for_its_response_is_left_out(tokenizer):
    long = {"instruction": "word " * 300, "output": "yes"}
    with pytest.warns(UserWarning, match="1 of 2 examples are dropped"):
        rows = encode([long, EXAMPLES[1]], tokenizer, cutoff=256)
    assert rows == encode([EXAMPLES[1]], tokenizer, cutoff=256)
    with pytest.warns(UserWarning, match="1 of 2 examples are dropped: no response in their first 9 tokens"):
        encode([{"text": ""}, {"text": "a"}], tokenizer, cutoff=9)
    with pytest.raises(ValueError, match="raise the cutoff"):
        encode([long], tokenizer, cutoff=256)


BAD = [[], [{"instruction": "a"}], [{"instruction": "a", "output": None}]]


@pytest.mark.parametrize("bad", [*BAD, [{"instruction": "a", "input": ["x"], "output": "b"}]])
def test_examples_without_text_are_refused(tokenizer, bad):
    with pytest.raises(ValueError, match="instruction"):
        encode(bad, tokenizer)


CHAT = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def test_of_a_chat_the_last_answer_is_learned_and_nothing_is_added_to_the_template(tokenizer, monkeypatch):
    said = [
        ("user", "see the dog"),
        ("assistant", "a dog"),
        ("user", "and the tree"),
        ("assistant", "a tree"),
    ]
    rows = [{"messages": [{"role": role, "content": text} for role, text in said]}]
    with pytest.raises(ValueError, match="has no chat template"):
        encode(rows, tokenizer)
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    (row,) = encode(rows, tokenizer, cutoff=1000)
    whole = tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False)
    assert row["input_ids"] == tokenizer(whole, add_special_tokens=False)["input_ids"]
    learned = [token for token in row["labels"] if token != IGNORED]
    assert row["input_ids"][-len(learned) :] == learned
    assert learned == tokenizer("a tree <end>\n", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no dogs') }}")
    with pytest.raises(ValueError, match="Example 0 .*, which the chat template refuses .no dogs.: change"):
        encode(rows, tokenizer)
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    with pytest.raises(ValueError, match=r"messages of \['user', 'assistant', 'user'\]; the last should be"):
        encode([{"messages": rows[0]["messages"][:3]}], tokenizer)
    for wrong, roles in (("hi", "['str', 'str']"), (5, "['int']"), (["a"], "['str']"), ([], "[]")):
        with pytest.raises(ValueError, match=re.escape(f"messages of {roles}")):
            encode([{"messages": wrong}], tokenizer)
    with pytest.raises(ValueError, match="the assistant's, with a text"):
        encode([{"messages": [{"role": "assistant", "content": None}]}], tokenizer)


def test_a_chat_is_learned_with_its_tools_and_contents_are_texts(tokenizer, monkeypatch):
    form = "{% if tools %}{{ tools|tojson }}\n{% endif %}" + CHAT
    monkeypatch.setattr(tokenizer, "chat_template", form)
    said = [{"role": "user", "content": "dogs?"}, {"role": "assistant", "content": "two"}]
    rows = [{"messages": said, "tools": [{"name": "count"}]}, {"messages": said, "tools": None}]
    with_tools, without = [tokenizer.decode(row["input_ids"]) for row in encode(rows, tokenizer, cutoff=999)]
    assert with_tools == '[{"name": "count"}]\n' + without
    parts = [{"role": "user", "content": [{"type": "text", "text": "dogs?"}]}, said[1]]
    with pytest.raises(ValueError, match="Example 0 has messages with lists of parts, .* as Python lists"):
        encode([{"messages": parts}], tokenizer)
    reads_parts = form.replace("m.content", "(m.content[0].text or m.content)")
    monkeypatch.setattr(tokenizer, "chat_template", reads_parts)
    assert "> dogs? <" in tokenizer.decode(encode([{"messages": parts}], tokenizer)[0]["input_ids"])


def test_a_path_is_no_examples_and_a_table_no_lines(tokenizer, tmp_path):
    for path in ("rows.jsonl", tmp_path / "rows.jsonl"):
        with pytest.raises(ValueError, match=r"1 examples hold no dicts.*as windows.instructions does; got"):
            encode(path, tokenizer)
    table = datasets.Dataset.from_list(EXAMPLES)
    table.to_parquet(tmp_path / "rows.parquet"), table.to_csv(tmp_path / "rows.csv")
    for name in ("rows.parquet", "rows.csv"):
        with pytest.raises(ValueError, match=f"{name} is no .json or .jsonl file; read it with datasets"):
            instructions(tmp_path / name)


def test_all_of_a_text_is_learned(tokenizer):
    (row,) = encode([{"text": "the old dog"}], tokenizer)
    assert row["labels"] == row["input_ids"] and row["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True).strip() == "the old dog"


def test_instruction_and_output_count_where_a_row_holds_its_whole_text_too(tokenizer, tmp_path):
    rows = [one | {"text": "### Instruction: all of it, with the answer"} for one in EXAMPLES[:3]]
    assert encode(rows, tokenizer) == encode(EXAMPLES[:3], tokenizer)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert encode(instructions(tmp_path / "rows.json"), tokenizer) == encode(EXAMPLES[:3], tokenizer)


@pytest.mark.parametrize(
    "row", [{"prompt": "a", "completion": "b"}, {"conversations": []}, {"instruction": "a", "text": "b"}, {}]
)
def test_a_row_without_the_expected_keys_is_named_with_those_it_has(row, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*EXAMPLES[:2], row])))
    with pytest.raises(ValueError) as caught:
        instructions(path)
    assert f"row 3 has the keys {[*row]}" in str(caught.value)
    assert 'expected one JSON object per line: rows with "instruction" and "output"' in str(caught.value)


def test_a_dataset_is_its_rows_and_kinds_are_not_mixed(tokenizer):
    table = datasets.Dataset.from_list(EXAMPLES[:4])
    assert encode(table, tokenizer) == encode(EXAMPLES[:4], tokenizer)
    with pytest.raises(ValueError, match=r"\['instruction', 'text'\]: give dicts of one kind"):
        encode([EXAMPLES[0], {"text": "a"}], tokenizer)


def test_every_pass_shows_each_example_once_in_an_order_of_the_seed():
    rows = [{"input_ids": [i] * (1 + i % 5), "labels": [i]} for i in range(12)]
    order = batches(rows, steps=5, batch_size=4, seed=3)
    shown = [row["labels"][0] for batch in order for row in batch]
    assert sorted(shown[:12]) == list(range(12)) and len(order) == 5
    assert all(len(a["input_ids"]) <= len(b["input_ids"]) for batch in order for a, b in pairwise(batch))
    assert order == batches(rows, steps=5, batch_size=4, seed=3)
    assert order != batches(rows, steps=5, batch_size=4, seed=4)


def test_padding_is_masked_and_has_no_label():
    batch = collate(
        [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}], pad=1
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
