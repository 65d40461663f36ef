"""A question and its choices in one row have lm-eval's own log-likelihoods, or lm-eval's own way is taken."""

from __future__ import annotations

import warnings

import pytest
import torch
from families import build, first_of
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

from pruner_lib.evaluation import shared_context
from pruner_lib.evaluation.shared_context import PADDING, ChoicesLM, block_mask, lay_out, longest_row
from pruner_lib.models.tiny import tiny_tokenizer

QUESTION = "Question: what falls?\nAnswer:"
QUESTIONS = [
    [(QUESTION, " rain"), (QUESTION, " a stone, slowly"), (QUESTION, " the"), (QUESTION, " raisins")],
    [
        ("It was so.", " y"),
        ("It was so.", " n"),
    ],  # one token after the blank: " " is common, nothing branches
    [("Ann saw Eve as she", " ran away."), ("Ann saw Eve as Bea", " ran away.")],  # as in WinoGrande
    [("Same or", " equal"), ("Same or", " equal"), ("Same or", " not")],
    [("abc", " x"), ("xyz", " longer than the others by far, to fill a row")],  # nothing in common
    [("alone", " is one choice")],
    [("", "no context"), ("", "none here")],
]
SHARING = ["llama-tied", "mistral", "gpt2", "gpt_neox", "phi3", "glm", "opt"]


def model_of(family: str, **changes):
    length = {"n_positions": 128} if family == "gpt2" else {"max_position_embeddings": 128}
    return build(family, vocab_size=260, **({} if family == "bloom" else length), **changes)


def requests(questions=QUESTIONS) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, pair, number, ("made up", document, 1))
        for document, pairs in enumerate(questions)
        for number, pair in enumerate(pairs)
    ]


def answers(model, tokenizer=None, *, kind=ChoicesLM, questions=QUESTIONS, batch_size=3, **settings):
    settings |= {"backend": "causal", "batch_size": batch_size}
    subject = kind(pretrained=model, tokenizer=tokenizer or tiny_tokenizer(), **settings)
    return subject.loglikelihood(requests(questions), disable_tqdm=True)


def furthest(ours, theirs) -> float:
    assert len(ours) == len(theirs)
    return max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True))


def tokens_read(model, run) -> int:
    read = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _m, ids, _out: read.append(ids[0].numel())
    )
    run()
    hook.remove()
    return sum(read)


@pytest.fixture
def strict():
    """Make the fall-back's warning an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*questions are scored choice by choice")
        yield


@pytest.mark.parametrize("family", first_of(SHARING, 2))
def test_log_likelihoods_are_lm_evals_own(family, strict):
    model = model_of(family)
    ours, theirs = answers(model), answers(model, kind=HFLM)
    assert furthest(ours, theirs) < 1e-4
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert answers(model, shared_context=False) == theirs
    assert len({round(log, 3) for log, _ in ours}) == len(ours) - 1, "only the two equal choices are equal"
    many = {"questions": [[(f"{i} {a}", b) for a, b in QUESTIONS[0]] for i in range(6)]}
    read = [
        tokens_read(model, lambda kind=kind: answers(model, kind=kind, **many)) for kind in (ChoicesLM, HFLM)
    ]
    assert read[0] < 0.75 * read[1]


def test_greedy_continuations_are_recognised(strict):
    model = model_of("llama-gqa")
    model.lm_head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.bias.data.zero_()[tiny_tokenizer().encode("z", add_special_tokens=False)] = 9.0
    found = answers(
        model, questions=[[(QUESTION, "zz"), (QUESTION, "za"), (QUESTION, "az"), (QUESTION, "z")]]
    )
    assert [greedy for _, greedy in found] == [True, False, False, True]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_padding_and_batches_change_nothing(batch_size, strict):
    model = model_of("llama-gqa")
    assert furthest(answers(model, batch_size=batch_size), answers(model, kind=HFLM)) < 1e-4


@pytest.mark.parametrize("add_bos", [None, False, True])
def test_token_ids_are_lm_evals_own_with_and_without_bos(add_bos, strict):
    model, tokenizer = model_of("llama-gqa"), tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    ours = answers(model, tokenizer, add_bos_token=add_bos)
    assert furthest(ours, answers(model, tokenizer, kind=HFLM, add_bos_token=add_bos)) < 1e-4
    plain = answers(model)
    assert (furthest(ours[:-2], plain[:-2]) > 1e-2) == (add_bos is not False), "a BOS token moves the numbers"


def test_equal_choices_tie_exactly(strict):
    first, second, other = answers(model_of("llama-gqa"))[8:11]
    assert first == second != other


def test_the_output_layer_runs_at_scored_places_alone(strict):
    model, rows = model_of("llama-gqa"), []
    model.lm_head.register_forward_hook(lambda _m, inputs, _out: rows.append(inputs[0].shape[:-1].numel()))
    answers(model, questions=QUESTIONS[:1])
    places = lay_out(encoded(QUESTIONS[0])).scored
    assert rows[-1] == len({place for one in places for place in one}) < sum(map(len, places)) < rows[0]


def encoded(pairs):
    encode = tiny_tokenizer().encode
    return [
        ((a, b), encode(a, add_special_tokens=False), encode(b, add_special_tokens=False)) for a, b in pairs
    ]


def test_a_row_is_laid_out_as_by_hand():
    # reads: 1 2 3 | 4 5, 1 2 3 | 6, 1 2 3, and the last token of each is only predicted
    row = lay_out(
        [(("", ""), [1, 2], [3, 4, 5, 9]), (("", ""), [1, 2, 3], [6, 8]), (("", ""), [1, 2, 3], [7])]
    )
    assert row.tokens == [1, 2, 3, 4, 5, 6]
    assert row.positions == [0, 1, 2, 3, 4, 3]
    assert row.branches == [0, 0, 0, 1, 1, 2]
    assert row.scored == [[1, 2, 3, 4], [2, 5], [2]]
    assert row.targets == [[3, 4, 5, 9], [6, 8], [7]]


def test_contexts_that_differ_share_what_they_begin_with():
    row = lay_out(encoded(QUESTIONS[2]))
    assert bytes(row.tokens[:15]) and row.branches.count(0) == len("Ann saw Eve as ")
    assert row.branches.count(1) == row.branches.count(2) == len("she ran away")
    assert max(lay_out(encoded(QUESTIONS[1])).branches) == 0, "choices of one token need no branch"
    assert lay_out(encoded(QUESTIONS[4])).branches.count(0) == 0, "nothing in common"


def test_the_mask_is_the_one_drawn_by_hand():
    branches = torch.tensor([[0, 0, 1, 1, 2, PADDING]])
    seen = (block_mask(branches, torch.float32)[0, 0] == 0).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],  # nothing of branch 1
        [1, 1, 0, 0, 0, 1],  # padding: seen by nobody but itself
    ]
    assert block_mask(branches, torch.float16).dtype == torch.float16


def leak(monkeypatch):
    """Let each choice see those before it."""
    right = shared_context.block_mask

    def wrong(branches, dtype):
        return right(branches.clamp_max(0), dtype)

    monkeypatch.setattr(shared_context, "block_mask", wrong)


def run_on(monkeypatch):
    """Let positions run on from choice to choice."""
    right = shared_context.lay_out

    def wrong(pairs):
        row = right(pairs)
        row.positions[:] = range(len(row.tokens))
        return row

    monkeypatch.setattr(shared_context, "lay_out", wrong)


@pytest.mark.parametrize("mistake", [leak, run_on])
@pytest.mark.parametrize("family", ["llama-gqa", "gpt2"])
def test_a_wrong_mask_or_position_is_noticed(family, mistake, monkeypatch):
    model = model_of(family)
    theirs = answers(model, kind=HFLM)
    mistake(monkeypatch)
    with pytest.warns(
        UserWarning, match="7 of 7 questions are scored choice by choice.*would be -.* instead"
    ):
        assert answers(model) == theirs
    monkeypatch.setattr(shared_context, "TOLERANCE", 1e9)
    assert furthest(answers(model), theirs) > 1e-2, "so the check is what notices"


@pytest.mark.parametrize(
    ("family", "changes"), [("bloom", {}), ("falcon-new", {"alibi": True, "max_position_embeddings": None})]
)
def test_models_with_alibi_go_lm_evals_way(family, changes):
    changes = {key: value for key, value in changes.items() if value is not None}
    model = build(family, vocab_size=260, **changes)
    with pytest.warns(UserWarning, match="7 of 7 questions are scored choice by choice"):
        assert answers(model) == answers(model, kind=HFLM)


@pytest.mark.parametrize(("window", "left"), [(4, 7), (40, 1), (128, 0)])
def test_rows_longer_than_a_sliding_window_go_lm_evals_way(window, left):
    model = model_of("mistral", sliding_window=window)
    lengths = [len(lay_out(encoded(pairs)).tokens) for pairs in QUESTIONS[:-1]]
    assert sum(length > 40 for length in lengths) == 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert furthest(answers(model), answers(model, kind=HFLM)) < 1e-4
    said = [str(one.message) for one in caught if "choice by choice" in str(one.message)]
    assert len(said) == (left > 0)
    assert all(f"longer than {window} tokens" in one for one in said)


def test_layers_with_and_without_a_window_are_mixed():
    model = model_of("gemma2")
    with pytest.warns(UserWarning, match="longer than 4 tokens"):
        assert answers(model) == answers(model, kind=HFLM)
    assert longest_row(model_of("gemma2", sliding_window=None).config, 128) == 128
    assert longest_row(model_of("gpt2").config, 128) == 128


def test_a_model_without_positions_goes_lm_evals_way():
    model = model_of("llama-gqa")
    forward = model.forward
    model.forward = lambda input_ids, use_cache=None: forward(input_ids)
    with pytest.warns(UserWarning, match="takes no block mask and positions .TypeError"):
        assert answers(model) == answers(model, kind=HFLM)


def test_texts_longer_than_the_model_reads_are_cut_by_lm_eval():
    model = model_of("llama-gqa")
    questions = [[("x" * 150, " yes"), ("x" * 150, " no")], *QUESTIONS[:2]]
    with pytest.warns(UserWarning, match="1 of 3 questions .* longer than 128 tokens"):
        ours = answers(model, questions=questions)
    assert furthest(ours, answers(model, kind=HFLM, questions=questions)) < 1e-4


def test_a_shortage_of_memory_is_no_reason_to_fall_back():
    model = model_of("llama-gqa")
    forward = model.forward

    def limited(*args, **kwargs):
        if "position_ids" in kwargs:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(*args, **kwargs)

    model.forward = limited
    with pytest.raises(torch.OutOfMemoryError):
        answers(model)


def test_rows_of_one_batch_have_about_the_same_length(strict, monkeypatch):
    model, shapes = model_of("llama-gqa"), []
    model.get_input_embeddings().register_forward_hook(
        lambda _m, ids, _out: shapes.append(tuple(ids[0].shape))
    )
    questions = [[("x" * n, " a"), ("x" * n, " b")] for n in (90, 20, 95, 21, 22, 23, 100, 24)]
    answers(model, questions=questions, batch_size=4)
    # x and the blank
    assert shapes[-3:] == [(3, 101), (4, 25), (1, 21)], "the longest first, four at most, none much shorter"
    monkeypatch.setattr(shared_context, "ENOUGH", 1000)
    answers(model, questions=questions, batch_size=4)
    assert shapes[-2:] == [(4, 101), (4, 24)], "but padding is better than a batch too small"


def test_half_precision_shares_too_with_what_its_rounding_allows(strict):
    model = model_of("llama-gqa").bfloat16()
    exact = answers(model.float(), kind=HFLM)
    assert furthest(answers(model.bfloat16()), exact) < 0.5


@pytest.mark.parametrize("family", first_of(["lfm2", "falcon_h1", "qwen3_next", "jamba"]))
def test_layers_with_a_state_go_lm_evals_way_in_half_precision_too(family):
    """Rounding to bfloat16 is larger there than what a choice takes over from those before it."""
    model = model_of(family).bfloat16()
    with pytest.warns(UserWarning, match="7 of 7 questions .* (depends on the others|instead of)"):
        assert answers(model) == answers(model, kind=HFLM)


@pytest.mark.parametrize("family", ["llama-gqa", "mixtral", "gpt2"])
def test_other_choices_change_no_bit_in_half_precision(family, strict, monkeypatch):
    monkeypatch.setattr(shared_context, "TOLERANCE", 0.0)
    assert len(answers(model_of(family).bfloat16())) == len(requests())


def test_only_wanted_requests_are_scored(strict):
    model = model_of("llama-gqa")
    whole = answers(model)
    some = answers(model, wanted=lambda request: request.idx == 1)
    for request, every, one in zip(requests(), whole, some, strict=True):
        assert one[0] == (pytest.approx(every[0], abs=1e-4) if request.idx == 1 else -torch.inf)
