from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from pruner_lib.data.windows import adds_bos
from pruner_lib.evaluation.perplexity import (
    CHUNK_MB,
    LOGITS_MB,
    _until_end,
    automatic_batch,
    chunk_rows,
    generate_samples,
    perplexity,
    perplexity_result,
    repetition_rate,
    window_nll,
)
from pruner_lib.method.offload import evaluating
from pruner_lib.models.load import load_model

VOCABULARY = 61
CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3, embd_pdrop=0.5, resid_pdrop=0.5, attn_pdrop=0.5,
    ),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, initializer_range=0.3,
    ),
}  # fmt: skip


def make(name: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


def windows(n: int = 5, tokens: int = 12) -> torch.Tensor:
    return torch.randint(VOCABULARY, (n, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_perplexity_is_the_exponential_of_the_models_own_loss(name):
    model, ids = make(name), windows()
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert perplexity(model, ids) == pytest.approx(math.exp(loss), rel=1e-5)
    assert perplexity(model, ids.flip(1)) != pytest.approx(math.exp(loss), rel=1e-2)


def test_uniform_logits_give_the_vocabulary_size():
    model = make("llama")
    assert perplexity(model, windows()) > 1.1 * VOCABULARY  # random and confident: worse than knowing nothing
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, windows()) == pytest.approx(VOCABULARY, rel=1e-6)


def test_a_window_counts_by_itself():
    model, ids = make("llama"), windows()
    together = perplexity_result(model, ids).nll
    alone = np.array([perplexity_result(model, ids[i : i + 1]).nll[0] for i in range(len(ids))])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    changed = ids.clone()
    changed[3] = changed[3].flip(0)
    moved = np.abs(perplexity_result(model, changed).nll - together) > 1e-3
    assert moved.tolist() == [False, False, False, True, False]


def test_the_batch_size_changes_nothing():
    model, ids = make("gpt_neox"), windows(7)
    values = [perplexity(model, ids, batch_size=size) for size in (1, 3, 7, 50)]
    assert values == pytest.approx([perplexity(model, ids)] * 4, rel=1e-5)


def test_standard_error_follows_from_the_windows():
    result = perplexity_result(make("llama"), windows(6))
    assert result.value == pytest.approx(math.exp(result.nll.mean()))
    assert result.stderr == pytest.approx(result.value * result.nll.std(ddof=1) / math.sqrt(6))
    assert result.n_tokens == 6 * 11
    assert math.isnan(perplexity_result(make("llama"), windows(1)).stderr)


def test_long_windows_are_summed_in_float32_chunk_by_chunk(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    monkeypatch.setitem(CHUNK_MB, "cpu", 50 * 4 * VOCABULARY / 2**20)
    tokens = 2 * chunk_rows(VOCABULARY, "cpu") + 37
    assert tokens == 137
    logits = (8 * torch.randn(tokens, VOCABULARY, generator=generator)).bfloat16()
    ids = torch.randint(VOCABULARY, (tokens,), generator=generator)
    rows = -logits[:-1].double().log_softmax(-1)[torch.arange(tokens - 1), ids[1:]]
    assert window_nll(logits, ids).item() == pytest.approx(rows.mean().item(), rel=1e-6)
    half = -logits[:-1].log_softmax(-1)[torch.arange(tokens - 1), ids[1:]]  # what bfloat16 would have given
    assert half.mean().item() != pytest.approx(rows.mean().item(), rel=1e-4)


@pytest.mark.parametrize("vocabulary", [100, 49_152, 256_000, 10**8])
def test_chunks_fit_the_caches_of_a_cpu_and_are_large_on_a_gpu(vocabulary):
    rows = {device: chunk_rows(vocabulary, device) for device in ("cpu", "cuda", "mps")}
    assert rows["cpu"] == 1 or rows["cpu"] * vocabulary * 4 <= 4 * 2**20
    assert rows["cuda"] == rows["mps"] >= rows["cpu"] >= 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("vocabulary", [100, 49_152, 256_000])
def test_automatic_batches_bound_the_logits(device, vocabulary):
    for tokens in (16, 128, 2048):
        batch = automatic_batch(tokens, vocabulary, device)
        assert batch == 1 or batch * tokens * vocabulary * 4 <= LOGITS_MB * 2**20
    assert automatic_batch(16, 100, device) > 1
    assert automatic_batch(128, 100, "cuda") > automatic_batch(128, 100, "cpu")


def test_the_last_token_of_the_vocabulary_is_good():
    assert perplexity(make("llama"), torch.full((2, 4), VOCABULARY - 1)) > 0


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_broken_model_is_an_error_and_no_number(poison):
    model = make("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = poison
    with pytest.raises(ValueError, match="window 0 has a loss of"):
        perplexity(model, windows())


def test_measuring_switches_dropout_off_and_gives_every_mode_back():
    model = make("gpt2")
    expected = perplexity(model, windows())
    model.train()
    model.transformer.h[1].eval()
    assert perplexity(model, windows()) == pytest.approx(expected, rel=1e-6)
    assert model.training and model.transformer.h[0].mlp.training and not model.transformer.h[1].training
    with torch.no_grad():
        noisy = model(input_ids=windows(), labels=windows()).loss.exp().item()
    assert noisy != pytest.approx(expected, rel=1e-3)  # so dropout would have shown


def test_modes_come_back_after_an_error():
    model = make("gpt2").train()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        raise RuntimeError
    assert all(module.training for module in model.modules()) and torch.is_grad_enabled()


def test_repetition_is_counted_as_by_hand():
    # a b c d a b c d has the 4-grams abcd bcda cdab dabc abcd: 5, of them 4 different
    assert repetition_rate(list("abcdabcd")) == pytest.approx(1 / 5)
    assert repetition_rate(list("abcdefgh")) == 0
    assert repetition_rate(list("aaaaaaa")) == pytest.approx(3 / 4)
    assert repetition_rate(list("abab"), n=2) == pytest.approx(1 / 3)
    assert repetition_rate(list("abc")) == 0


def test_a_prompts_text_follows_from_its_seed_alone():
    model, tokenizer = load_model("tiny")
    both = generate_samples(model, tokenizer, ["one", "two"], max_new_tokens=12)
    assert both == generate_samples(model, tokenizer, ["one", "two"], max_new_tokens=12)
    assert both[1].text == generate_samples(model, tokenizer, ["two"], max_new_tokens=12, seed=1)[0].text
    assert both[1].text != generate_samples(model, tokenizer, ["two"], max_new_tokens=12, seed=2)[0].text


def test_draws_of_a_prompt_end_where_each_ends():
    model, tokenizer = load_model("tiny")
    three = generate_samples(model, tokenizer, ["one", "two"], max_new_tokens=12, draws=3)
    assert [sample.prompt for sample in three] == ["one"] * 3 + ["two"] * 3
    assert len({sample.text for sample in three[:3]}) == 3
    assert three == generate_samples(model, tokenizer, ["one", "two"], max_new_tokens=12, draws=3)
    assert _until_end([5, 7, 2, 3, 3], [2, 9]) == [5, 7, 2] and _until_end([5, 7], [None]) == [5, 7]


def test_greedy_text_needs_no_seed_and_sampling_spares_the_global_generator():
    model, tokenizer = load_model("tiny")
    state = torch.get_rng_state()
    texts = [
        generate_samples(model, tokenizer, ["one"], max_new_tokens=12, do_sample=False, seed=seed)[0].text
        for seed in (0, 1)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != generate_samples(model, tokenizer, ["one"], max_new_tokens=12)[0].text
    assert torch.equal(state, torch.get_rng_state())


SETTINGS = [
    {"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}, {"num_beams": 2}, {"min_p": 0.9},
    {"suppress_tokens": [*range(100, 260)]}, {"forced_eos_token_id": 4},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_texts_depend_on_arguments_and_not_on_the_generation_settings_of_the_model(settings):
    model, tokenizer = load_model("tiny")
    arguments = {"prompts": ["one", "two"], "max_new_tokens": 12, "draws": 2}
    plain = generate_samples(model, tokenizer, **arguments)
    assert generate_samples(model, tokenizer, **arguments, **settings) != plain
    config = model.generation_config
    for name, value in settings.items():
        setattr(config, name, value)
    saved = config.to_dict()
    assert generate_samples(model, tokenizer, **arguments) == plain
    assert model.generation_config is config and config.to_dict() == saved
    with pytest.raises(ValueError, match="'nope'"):
        generate_samples(model, tokenizer, nope=1)
    assert config.to_dict() == saved


def test_the_end_tokens_of_the_model_end_a_text():
    model, tokenizer = load_model("tiny")
    ids = tokenizer("one", return_tensors="pt")["input_ids"]
    new = model.generate(input_ids=ids, do_sample=False, max_new_tokens=12, pad_token_id=3)[0, ids.shape[1] :]
    model.generation_config.eos_token_id = [2, int(new[5])]
    (sample,) = generate_samples(model, tokenizer, ["one"], max_new_tokens=12, do_sample=False)
    assert sample.text == tokenizer.decode(new[: new.tolist().index(int(new[5])) + 1])


def test_texts_are_continued_after_bos_if_the_tokenizer_adds_it(bos_folder, monkeypatch):
    model, begins = load_model(bos_folder)
    other, seen, generate = load_model("tiny")[1], [], model.generate
    assert adds_bos(begins) and not adds_bos(other)

    def spy(input_ids, **options):
        seen.append(input_ids[0].tolist())
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "generate", spy)
    for tokenizer in (begins, other):
        generate_samples(model, tokenizer, ["one"], max_new_tokens=2)
    assert seen == [begins("one")["input_ids"], other("one")["input_ids"]] and seen[0] == [1, *seen[1]]


def test_a_stuck_model_shows_in_repetition_and_variety():
    model, tokenizer = load_model("tiny")
    wild = {"max_new_tokens": 40, "temperature": 5.0, "top_k": 0, "top_p": 1.0}
    lively = generate_samples(model, tokenizer, ["one"], **wild)[0]
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    torch.nn.init.zeros_(head.weight)
    head.bias.data.zero_()[tokenizer("z", add_special_tokens=False)["input_ids"][0]] = 50
    model.lm_head = head
    stuck = generate_samples(model, tokenizer, ["one"], max_new_tokens=40)[0]
    assert stuck.text == "z" * 40 and stuck.prompt == "one"
    assert stuck.repetition_rate == pytest.approx(36 / 37) and stuck.distinct == pytest.approx(1 / 39)
    assert lively.repetition_rate < 0.1 and lively.distinct > 0.8
