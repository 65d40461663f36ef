"""ChatGLM-6B computes what its authors' code does, and its tokenizer ends a prompt as theirs does.

The known answers are in `tests/support/chatglm6b.json`: what the released code gives for a small model.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import chatglm_folder
import pytest
import torch
from chatglm_folder import IDS, SPECIAL, prompts, random_chatglm, train_tokenizer

from pruner_lib.models import chatglm
from pruner_lib.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from pruner_lib.models.chatglm_positions import rotated, two_positions
from pruner_lib.models.chatglm_tokenizer import ChatGLMTokenizer

KNOWN = json.loads((Path(chatglm_folder.__file__).parent / "chatglm6b.json").read_text())
CASES = list(KNOWN["cases"])
GMASK, MASK, SOP = IDS["gmask_token_id"], IDS["mask_token_id"], IDS["bos_token_id"]


@pytest.fixture(scope="module")
def known():
    """The model of the known answers; its weights follow from a seed, as the file says."""
    generator = torch.Generator().manual_seed(KNOWN["weights"]["seed"])
    weights = {}
    for name, shape in KNOWN["weights"]["parameters"]:
        drawn = torch.randn(shape, generator=generator)
        if name.endswith("layernorm.weight"):
            drawn = 1 + 0.3 * drawn
        elif len(shape) == 1:
            drawn = 0.2 * drawn
        else:
            drawn = drawn * (0.5 if "word_embeddings" in name else 0.6 / shape[-1] ** 0.5)
        weights[name] = drawn
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**KNOWN["config"]))
    model.load_state_dict(weights)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return random_chatglm()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder)
    return ChatGLMTokenizer.from_pretrained(folder)


def logits(model, ids, **how):
    with torch.no_grad():
        return model(ids, **how).logits


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_authors_code(case, known, monkeypatch):
    answer = KNOWN["cases"][case]
    ids, wanted = torch.tensor([answer["ids"]]), torch.tensor(answer["logits_first_64"])
    found = logits(known, ids)[0]
    assert (found[:, :64] - wanted).abs().max() < 1e-4 and found.argmax(-1).tolist() == answer["argmax"]
    monkeypatch.setattr(chatglm, "ALPHA", (2 * 3) ** 0.5)  # of its own three layers
    assert (logits(known, ids)[0, :, :64] - wanted).abs().max() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_the_authors_code_with_and_without_a_cache(case, known):
    ids, answer = KNOWN["cases"][case]["ids"], KNOWN["cases"][case]
    prompt = torch.tensor([ids[: ids.index(KNOWN["config"]["bos_token_id"]) + 1]])
    for cache, name in ((True, "greedy"), (False, "greedy_without_cache")):
        made = known.generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=None, use_cache=cache)
        assert made[0, prompt.shape[1] :].tolist() == answer[name]


@pytest.mark.parametrize("case", CASES[:2])
def test_loss_behind_sop_is_that_of_the_authors_code(case, known):
    answer = KNOWN["cases"][case]
    ids = torch.tensor([answer["ids"]])
    labels = ids.clone()
    labels[:, : answer["ids"].index(KNOWN["config"]["bos_token_id"]) + 1] = -100
    assert known(ids, labels=labels).loss.item() == pytest.approx(answer["loss_after_sop"], abs=1e-4)
    assert known(ids, labels=ids).loss.item() != pytest.approx(answer["loss_after_sop"], abs=1e-2)


def test_prompt_is_seen_from_both_sides_and_the_answer_from_the_left(model):
    ids = prompts(1)  # [gMASK] and <sop> at places 3 and 4
    for changed, seen_before in ((1, True), (8, False)):
        other = ids.clone()
        other[0, changed] = ids[0, changed] % 300 + 101
        moved = (logits(model, ids) - logits(model, other)).abs().amax(-1)[0]
        assert (moved[changed:] > 1e-4).all() and bool((moved[:changed] > 1e-4).all()) == seen_before
        assert seen_before or moved[:changed].max() == 0


def test_rows_of_a_batch_are_read_as_if_alone_padded_or_not(model):
    ids = prompts(3)
    each = torch.cat([logits(model, row[None]) for row in ids])
    torch.testing.assert_close(logits(model, ids), each)
    left, right = (torch.nn.functional.pad(ids, pad, value=IDS["pad_token_id"]) for pad in ((4, 0), (0, 4)))
    for padded, part in ((left, slice(4, None)), (right, slice(0, -4))):
        mask = torch.zeros_like(padded)
        mask[:, part] = 1
        torch.testing.assert_close(logits(model, padded, attention_mask=mask)[:, part], each)
    assert (logits(model, left)[:, 4:] - each).abs().max() > 1e-2  # padding that no mask names is read


def test_left_padded_batch_goes_on_as_each_row_alone(model):
    ids = torch.nn.functional.pad(prompts(1)[:, :5], (3, 0), value=IDS["pad_token_id"])
    ids = torch.cat([ids, prompts(1, seed=5, length=8)])
    ids[1, 3:5], ids[1, 6:8] = torch.tensor([200, 201]), torch.tensor([GMASK, SOP])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    how = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    together = model.generate(ids, attention_mask=mask, **how)[:, 8:]
    alone = [model.generate(ids[:1, 3:], **how)[0, 5:], model.generate(ids[1:], **how)[0, 8:]]
    assert together.tolist() == [row.tolist() for row in alone]


def test_masks_and_positions_in_the_form_of_the_hubs_tokenizer(model):
    ids = prompts(1, length=7)  # t t t [gMASK] <sop> t t
    hidden = torch.ones(7, 7).triu(1).bool()
    hidden[:, :4] = False
    positions = torch.tensor([[[0, 1, 2, 3, 3, 3, 3], [0, 0, 0, 0, 1, 2, 3]]])
    given = logits(model, ids, attention_mask=hidden[None, None], position_ids=positions)
    torch.testing.assert_close(given, logits(model, ids))
    below_zero = -1e4 * hidden[None, None].float()
    torch.testing.assert_close(logits(model, ids, attention_mask=below_zero), given)
    flat = logits(model, ids, position_ids=torch.arange(7).expand(1, 2, 7))
    assert (flat - given).abs().max() > 1e-2


def test_answer_stands_at_the_gap_and_gmask_wins_over_mask(model):
    def first_positions(*row):
        ids = torch.tensor([row])
        return two_positions(ids, torch.ones_like(ids), model.config)[0, 0].tolist()

    assert first_positions(200, MASK, 201, SOP, 202) == [0, 1, 2, 1, 1]
    assert first_positions(MASK, 201, GMASK, SOP, 202) == [0, 1, 2, 2, 2]
    assert first_positions(GMASK, 201, GMASK, SOP, 202) == [0, 1, 2, 0, 0]


def test_plain_text_is_read_behind_an_empty_prompt(model):
    text = torch.randint(100, 410, (2, 9), generator=torch.Generator().manual_seed(3))
    opening = torch.tensor([[GMASK, SOP]])
    wanted = logits(model, torch.cat([opening.expand(2, -1), text], 1))[:, 2:]
    assert torch.equal(logits(model, text), wanted)
    mixed = torch.stack([text[0], prompts(1, length=9)[0]])
    torch.testing.assert_close(logits(model, mixed)[0], wanted[0])
    torch.testing.assert_close(logits(model, mixed)[1], logits(model, mixed[1:])[0])
    changed = text.clone()
    changed[:, 5] = 100
    assert torch.equal(logits(model, changed)[:, :5], wanted[:, :5])


def test_half_precision_turns_as_the_authors_code_and_bfloat16_as_float32():
    x, places = torch.randn(1, 2, 3, 64), torch.tensor([[3, 400, 2001]])
    plain = 1 / 10000 ** (torch.arange(0, 64, 2).float() / 64)

    def wanted(x, angle):
        first, second = x.double().chunk(2, -1)
        cos, sin = angle.double().cos(), angle.double().sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    angles = places[0, :, None] * plain.half().float()
    assert (rotated(x, places) - wanted(x, angles)).abs().max() < 1e-3
    assert (rotated(x, places) - wanted(x, places[0, :, None] * plain)).abs().max() > 0.1
    half = places[0, :, None].half() * plain.half()
    assert (rotated(x.half(), places) - wanted(x.half(), half)).abs().max() < 1e-2
    assert (rotated(x, places) - wanted(x.half(), half)).abs().max() > 0.1  # angles in float32
    assert (rotated(x.bfloat16(), places) - rotated(x, places)).abs().max() < 0.1


def test_gradients_are_the_same_with_checkpointing(model):
    model, ids = copy.deepcopy(model).train(), prompts()
    found = []
    for switch in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        switch()
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(grad.abs().sum() > 0 for grad in found[0])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": torch.tensor([[200, SOP, 201]])}, "no .gMASK. or .MASK."),
        ({"position_ids": torch.arange(12)[None]}, r"shape \(1, 12\), expected \(batch, 2, tokens\)"),
        ({"attention_mask": torch.ones(12)}, r"shape \(12,\), expected \(batch, tokens\)"),
    ],
)
def test_what_can_not_be_read_is_refused(given, message, model):
    with pytest.raises(ValueError, match=message):
        model(**{"input_ids": prompts(1)} | given)


def test_going_on_needs_a_prompt_and_after_a_cache_positions(model):
    with pytest.raises(ValueError, match="a prompt for generation needs"):
        model.generate(torch.tensor([[200, 201]]), max_new_tokens=1)
    cache = model(prompts(1), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="position_ids must be given with a cache"):
        model(torch.tensor([[200]]), past_key_values=cache)


@pytest.mark.parametrize(
    "settings",
    [
        {"padded_vocab_size": 65024},
        {"quantization_bit": 4},
        {"pre_seq_len": 8},
        {"position_encoding_2d": False},
    ],
)
def test_other_models_of_the_same_type_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ChatGLMConfig(**settings)
    assert ChatGLMConfig(quantization_bit=0, pre_seq_len=None, position_encoding_2d=True).num_layers == 28


@pytest.mark.parametrize("heads", [5, 16, 24])
def test_heads_of_which_no_half_turns_in_pairs_are_refused(heads):
    with pytest.raises(ValueError, match="a head has .* channels; expected a multiple of four"):
        random_chatglm(num_attention_heads=heads)
    assert random_chatglm(num_attention_heads=heads, head_dim=12).num_parameters() > 0


def test_prompt_ends_in_the_sign_of_the_gap_and_sop(tokenizer):
    ids = tokenizer("the dog")["input_ids"]
    assert ids[-2:] == [GMASK, SOP] == tokenizer.prompt_end_ids
    assert tokenizer("the dog", add_special_tokens=False)["input_ids"] == ids[:-2]
    pair = tokenizer("the dog", "a tree")["input_ids"]
    answer = tokenizer("a tree", add_special_tokens=False)["input_ids"]
    assert pair == [*ids, *answer, IDS["eos_token_id"]]
    assert tokenizer("the [MASK] dog")["input_ids"].count(MASK) == 1
    assert tokenizer("the red old dog", truncation=True, max_length=4)["input_ids"][-2:] == [GMASK, SOP]


@pytest.mark.parametrize("text", ["the dog\n\tsees  a" + 81 * " " + "tree", "a   river\n\n", "é 北京 dog"])
def test_white_space_and_bytes_come_back(text, tokenizer):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert "<|blank_80|>" in tokenizer.tokenize(81 * " ") and "<n>" not in tokenizer.tokenize("a n")


def test_batches_are_padded_on_the_left(tokenizer):
    batch = tokenizer(["the dog", "the old dog sees a tree"], padding=True, return_tensors="pt")
    short = tokenizer("the dog")["input_ids"]
    n = batch["input_ids"].shape[1] - len(short)
    assert n > 0 and batch["input_ids"][0].tolist() == [IDS["pad_token_id"]] * n + short
    assert batch["attention_mask"][0].tolist() == [0] * n + [1] * len(short)
    assert batch["attention_mask"][1].all()


def test_ids_come_back_as_text_and_so_from_a_saved_folder(tokenizer, tmp_path):
    ids = tokenizer("the old dog")["input_ids"]
    assert tokenizer.decode(ids) == "the old dog" and len(set(ids)) == len(ids) < len(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = ChatGLMTokenizer.from_pretrained(tmp_path)
    assert again("the old dog") == tokenizer("the old dog")
    assert again.prompt_end_ids == tokenizer.prompt_end_ids


def test_id_that_no_piece_has_is_shown_as_unknown(tokenizer):
    ids = tokenizer("the dog")["input_ids"]
    beyond = tokenizer.vocab_size + 3
    assert tokenizer.convert_ids_to_tokens(beyond) == tokenizer.unk_token != tokenizer.tokenize("the")[0]
    assert tokenizer.decode([*ids, beyond]).split() == ["the", "dog", "⁇"]
    assert tokenizer.decode(ids) == "the dog"


def test_sentencepiece_model_of_the_first_revisions_is_refused(tmp_path):
    train_tokenizer(tmp_path, special=[name for name in SPECIAL if name != "<sop>"])
    with pytest.raises(ValueError, match="has no <sop>; expected files of the current revision"):
        ChatGLMTokenizer.from_pretrained(tmp_path)
    train_tokenizer(tmp_path)
    assert ChatGLMTokenizer.from_pretrained(tmp_path, num_image_tokens=0)
    with pytest.raises(ValueError, match="has num_image_tokens=.*, not 0; expected files of the current"):
        ChatGLMTokenizer.from_pretrained(tmp_path, num_image_tokens=20000)
