from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    Qwen3Config,
)

from pruner_lib.evaluation import meters
from pruner_lib.evaluation.efficiency import (
    MacCounter,
    count_parameters,
    latency,
    macs,
    memory_mb,
    operator_macs,
    weight_bytes,
)

T = 64
HEAD = 128  # of LLaMA-7B
SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MLP = {"intermediate_size": 48, "num_key_value_heads": 2}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, **MLP),
    "qwen3": Qwen3Config(**SMALL, **MLP, head_dim=8),
    "phi3": Phi3Config(**SMALL, **MLP, **ENDS),
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, **ENDS),
    "gpt_neox": GPTNeoXConfig(**SMALL, intermediate_size=48),
    "bloom": BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4),
}
# Table 3: hidden size; heads and MLP width of the cut layers, and which; parameters, MACs (G), memory (MiB)
TABLE_3 = {
    "base": (4096, 32, 11008, range(0), 6_738_415_616, 424.02, 12884.5),
    "channel 20 %": (3276, 32, 11008, range(0), 5_389_416_396, 339.36, 10363.6),
    "block 20 %": (4096, 24, 8256, range(4, 30), 5_422_977_024, 339.60, 10375.5),
    "channel 50 %": (2048, 32, 11008, range(0), 3_369_207_808, 212.58, 6556.3),
    "block 50 %": (4096, 13, 4403, range(3, 31), 3_350_188_032, 206.59, 6534.0),
}


def llama_7b(hidden: int, heads: int, width: int, cut: range):
    """Build LLaMA-7B on the meta device, some of its layers narrower."""
    config = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, head_dim=HEAD)
    config.hidden_size = hidden  # 3276 is no multiple of the heads, which the constructor would refuse
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        narrow = copy.deepcopy(model.config)
        narrow.num_attention_heads = narrow.num_key_value_heads = heads
        narrow.intermediate_size = width
        for i in cut:
            model.model.layers[i] = type(model.model.layers[i])(narrow, i)
    return model


def closed_form(hidden: int, heads: int, width: int, cut: range) -> int:
    """Count by the formula that reproduces the paper's hooks, and the rotary table beside it."""

    def layer(h: int, f: int) -> int:
        attention = 4 * T * hidden * h * HEAD + h * (2 * T * T * HEAD + T * T) + 4 * T * h * HEAD
        return attention + 3 * T * hidden * f + T * f + 2 * (2 * T * hidden)

    whole = (32 - len(cut)) * layer(32, 11008) + len(cut) * layer(heads, width)
    return whole + 2 * T * hidden + T * hidden * 32000 + T * HEAD // 2


@pytest.mark.parametrize("row", TABLE_3)
def test_table_3_is_reproduced(row):
    *shape, parameters, giga_macs, mib = TABLE_3[row]
    model = llama_7b(*shape)
    assert count_parameters(model) == parameters
    counted = macs(model)
    assert counted == closed_form(*shape) and round(counted / 1e9, 2) == giga_macs
    assert memory_mb(model, tables_mb=32) == pytest.approx(mib, abs=0.05)
    assert memory_mb(model, tables_mb=32) > 2 * parameters / 2**20 + 31.9  # weights, tables, and rounding


def test_counting_follows_the_number_of_tokens():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    attention = 2 * 4 * (2 * 8 + 1)  # layers x heads x (scores, values, softmax), a pair of tokens
    linear = (macs(model, 16) - attention * 16**2) // 16
    assert macs(model, 32) == 32 * linear + attention * 32**2


@pytest.mark.parametrize("name", CONFIGS)
def test_the_meta_device_and_the_attention_kernel_change_no_count(name):
    counts = set()
    for device in ("cpu", "meta"):
        for kernel in ("eager", "sdpa"):
            if name == "bloom" and kernel == "sdpa":
                continue  # this model has no such kernel
            with torch.device(device):
                model = AutoModelForCausalLM.from_config(
                    copy.deepcopy(CONFIGS[name]), attn_implementation=kernel
                )
            counts.add(macs(model, 16))
    assert len(counts) == 1


def test_gpt2_is_counted_as_by_hand():
    model = AutoModelForCausalLM.from_config(CONFIGS["gpt2"])
    t, d, h, v = 16, 32, 4, 96
    matrices = t * (3 * d * d + d * d + 2 * d * 4 * d) + 2 * t * t * d  # qkv, out, MLP; scores and values
    entries = h * t * t + 2 * 2 * t * d + t * 4 * d  # softmax, two norms, the product inside gelu_new
    assert macs(model, t) == 2 * (matrices + entries) + 2 * t * d + t * d * v
    assert macs(model, t) != macs(model, t + 1)


def test_a_mixture_counts_the_experts_it_visits():
    counts = []
    for visited in (1, 2):
        config = MixtralConfig(**SMALL, **MLP, num_local_experts=4, num_experts_per_tok=visited)
        counts.append(macs(AutoModelForCausalLM.from_config(config), 16))
    expert = 2 * 16 * 3 * 32 * 48  # layers x tokens x three matrices
    assert counts[1] - counts[0] == pytest.approx(expert, rel=0.05)


def test_a_narrower_layer_costs_less():
    wide, narrow = (
        AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, **MLP | {"intermediate_size": f}))
        for f in (48, 40)
    )
    assert macs(wide, 16) - macs(narrow, 16) == 2 * 8 * (3 * 16 * 32 + 16)
    assert macs(wide, 16) == macs(copy.deepcopy(wide), 16)


def test_only_products_of_two_tensors_count():
    x = torch.ones(3, 5)
    with MacCounter() as counter:
        _ = x + x, x * 2, x * torch.tensor(2.0), x.pow(2), x.relu(), x.mean()
    assert counter.macs == 0
    with MacCounter() as counter:
        _ = x * x, x @ x.T, x.softmax(-1), x * torch.ones(5), (x > 0) * (x > 0)
    assert counter.macs == 15 + 45 + 15 + 15


def test_a_fused_product_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="_cslt_sparse_mm"):
        operator_macs(torch.ops.aten._cslt_sparse_mm, (), {}, torch.ones(1))
    assert operator_macs(torch.ops.aten.add, (), {}, torch.ones(1)) == 0


def test_a_model_that_needs_values_is_refused_on_the_meta_device():
    class Peeking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(8, 4)

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, input_ids, attention_mask, use_cache):
            return self.embedding(input_ids) * self.embedding(input_ids).sum().item()

    assert macs(Peeking(), 4) == 0
    with pytest.raises(ValueError, match="Peeking can't be counted on the meta device"):
        macs(Peeking().to("meta"), 4)


def test_tied_weights_count_once():
    tied = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, **MLP, tie_word_embeddings=True))
    untied = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, **MLP, tie_word_embeddings=False))
    assert count_parameters(untied) - count_parameters(tied) == 96 * 32
    assert weight_bytes(untied) - weight_bytes(tied) == 4 * 96 * 32
    assert weight_bytes(untied) == 2 * weight_bytes(untied.half())


@pytest.mark.parametrize(
    ("entries", "mib"),
    [
        (1, 512 / 2**20),  # the smallest block
        (256, 512 / 2**20),
        (257, 1024 / 2**20),
        (5 * 2**20, 10),  # exactly 10 MiB: not rounded
        (11 * 2**19 - 256, 12 - 1 - 512 / 2**20),  # the rest of the 2 MiB is over 1 MiB: given back
        (11 * 2**19, 12),  # the rest is 1 MiB: kept
    ],
)
def test_memory_rounds_as_the_allocator_does(entries, mib):
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.empty(entries, device="meta"))
    assert memory_mb(module) == pytest.approx(mib, rel=1e-12)
    assert memory_mb(module, tables_mb=3) == pytest.approx(mib + 3, rel=1e-12)


def test_the_warm_up_is_not_timed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: clock[0])

    class Sleeping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.calls = torch.nn.Embedding(8, 4), 0

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, input_ids, use_cache):
            self.calls += 1
            clock[0] += 100.0 if self.calls <= 2 else self.calls

    assert latency(Sleeping(), tokens=10, batch=3, repeats=3, warmup=2) == [3.0, 4.0, 5.0]
    assert latency(Sleeping(), repeats=2, warmup=0) == [100.0, 100.0]


def test_latency_refuses_what_it_cannot_time():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    with pytest.raises(ValueError, match="meta device"):
        latency(model.to("meta"))
