"""A decoder whose code lies beside its weights is analysed, cut, trained, saved and loaded like any other."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from families import random_scores
from remote_family import CODE, build_remote, prompts, remote_tokenizer
from transformers import AutoModelForCausalLM

from pruner_lib import discover, load_model, mask_, prune_, save_model, select
from pruner_lib.evaluation.efficiency import latency, macs
from pruner_lib.method.groups import Plan
from pruner_lib.method.trace import trace
from pruner_lib.recovery.recover import add_adapter
from pruner_lib.recovery.settings import RecoverySettings
from pruner_lib.recovery.trainer import _ResponseTrainer

UNEVEN = dict(ratio=0.4, scope="global", protect_first=1)
HEADS, SIZE, INNER = 6, 8, 192
OURS = {"modeling_pruned.py", "layout.py"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_remote(tmp_path_factory.mktemp("hub") / "interleaved")


@pytest.fixture(scope="module")
def axes(model):
    return discover(model)


@pytest.fixture
def uneven(model, axes):
    return prune_(copy.deepcopy(model), select(axes, random_scores(axes), **UNEVEN), axes=axes)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def only(axes, kind: str) -> Plan:
    """Every second group of one kind goes, in every layer."""
    mine = axes.of_kind(kind)
    return Plan(
        {n: torch.arange(0, a.n_groups, 2) for n, a in mine.items()}, {n: a.n_groups for n, a in mine.items()}
    )


def test_the_prompt_is_seen_whole_and_the_answer_from_the_left(model):
    ids = prompts(1)  # gmask and bos at places 3 and 4
    for changed, earlier_change in ((2, True), (8, False)):
        other = ids.clone()
        other[0, changed] = 5 if ids[0, changed] != 5 else 6
        moved = (logits(model, ids) - logits(model, other)).abs().amax(-1)[0]
        assert (moved[:changed] > 1e-4).all() == earlier_change and (moved[changed:] > 1e-4).all()
        assert earlier_change or moved[:changed].max() == 0
    with pytest.raises(ValueError, match="gmask and bos"):
        model(torch.tensor([[5, 6, 7]]))


def test_axes_are_those_that_a_person_would_draw(axes):
    """Head h holds rows 24 h to 24 h + 23 of the fused projection: its query, its key, its value."""
    assert not axes.notes and len(axes.of_kind("attention")) == len(axes.of_kind("mlp")) == 3
    for axis in axes.of_kind("attention").values():
        weight, bias, dense = axis.members
        assert (axis.n_groups, axis.width, dense.dim) == (HEADS, SIZE, 1)
        for member in (weight, bias):
            assert torch.equal(member.indices.sort().values, torch.arange(3 * HEADS * SIZE).view(HEADS, -1))
        assert torch.equal(dense.indices.sort().values, torch.arange(HEADS * SIZE).view(HEADS, SIZE))
    for axis in axes.of_kind("mlp").values():
        assert (axis.n_groups, axis.width, len(axis.members)) == (INNER, 1, 3)
    assert axes["hidden"].n_groups == HEADS * SIZE


def test_factors_of_the_forward_pass_are_seen_without_weights(model):
    """Its own scaling of the residual, twice a layer; the prompt must hold its special tokens."""
    found = trace(copy.deepcopy(model).to("meta")).factors
    numbers = [value for _, *values in found for value in values if isinstance(value, float)]
    assert sum(abs(value - 6**0.5) < 1e-6 for value in numbers) == 2 * 3


def test_cut_equals_mask(model, axes):
    """And channels are cut, and it is recovered, in test_architectures."""
    ids, plan = prompts(3), select(axes, random_scores(axes), **UNEVEN)
    cut, masked = (change(copy.deepcopy(model), plan, axes=axes) for change in (prune_, mask_))
    assert (logits(cut, ids) - logits(masked, ids)).abs().max() < 1e-4
    assert (logits(model, ids) - logits(masked, ids)).abs().max() > 1e-2
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in model.parameters())


def test_its_operations_and_seconds_are_counted(model):
    assert macs(model) > 0 and min(latency(model, tokens=8, repeats=2, warmup=0)) > 0


def test_cut_model_learns_and_generates(uneven):
    ids = prompts(3)
    with_cache, without = (
        uneven.generate(ids, max_new_tokens=8, do_sample=False, use_cache=c) for c in (True, False)
    )
    assert torch.equal(with_cache, without) and with_cache.shape[1] == ids.shape[1] + 8
    step = uneven(ids, use_cache=True)
    more = uneven.prepare_inputs_for_generation(with_cache[:, :13], 1, step.past_key_values, use_cache=True)
    assert (uneven(**more).logits[:, -1] - logits(uneven, with_cache[:, :13])[:, -1]).abs().max() < 1e-4
    uneven(ids, labels=ids).loss.backward()
    for name, parameter in uneven.named_parameters():
        assert parameter.grad.shape == parameter.shape and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("shape", [(3, 9), (9, 9)])
def test_labels_meet_their_own_tokens_where_tokens_come_first(shape, uneven):
    ids = prompts(*shape)
    labels = torch.where(torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5, ids, -100)
    wanted = F.cross_entropy(logits(uneven, ids)[:, :-1].transpose(1, 2), labels[:, 1:])
    trainer = object.__new__(_ResponseTrainer)  # its loss alone is asked for
    trainer.model = add_adapter(copy.deepcopy(uneven), RecoverySettings()).eval()
    trainer.accelerator = SimpleNamespace(num_processes=1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    n = (labels[:, 1:] != -100).sum()
    assert torch.isclose(trainer.compute_loss(trainer.model, batch, num_items_in_batch=n), wanted, rtol=1e-5)


@pytest.mark.slow
def test_folder_is_loaded_cut_and_saved_again(uneven, tmp_path):
    one = tmp_path / "interleaved"  # named as the dense folder, transformers takes their code for the same
    save_model(uneven, remote_tokenizer(), one)
    assert {path.name for path in CODE} | OURS | {"plan.json"} <= {path.name for path in one.iterdir()}
    model, tokenizer = load_model(one, trust_remote_code=True)
    assert torch.equal(logits(model, prompts()), logits(uneven, prompts())) and not model.training
    axes = discover(model)
    prune_(model, select(axes, random_scores(axes, 5), ratio=0.3))
    save_model(model, tokenizer, tmp_path / "two")
    model.save_pretrained(tmp_path / "three")  # as Trainer would
    for folder in ("two", "three"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / folder, trust_remote_code=True).eval()
        assert torch.equal(logits(again, prompts()), logits(model, prompts()))


def test_what_its_own_config_can_say_needs_no_code_of_ours(model, axes, tmp_path):
    even = prune_(copy.deepcopy(model), only(axes, "mlp"))
    assert even.pruning_layout is None and even.config.inner_hidden_size == INNER // 2
    save_model(even, remote_tokenizer(), tmp_path / "m")
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert {path.name for path in CODE} <= names and not names & OURS
    again, _ = load_model(tmp_path / "m", trust_remote_code=True)
    assert torch.equal(logits(again, prompts()), logits(even, prompts()))


@pytest.mark.parametrize("pruned", [False, True])
def test_code_runs_only_when_it_is_trusted(pruned, model, uneven, tmp_path):
    folder, mark = tmp_path / "m", tmp_path / "ran"
    save_model(uneven if pruned else model, remote_tokenizer(), folder)
    for path in CODE:
        (folder / path.name).write_text(f"open({str(mark)!r}, 'w').close()\n" + path.read_text())
    with pytest.raises(ValueError, match=r"modeling_interleaved.py.*trust_remote_code=True"):
        load_model(folder)
    assert not mark.exists()
    again, _ = load_model(folder, trust_remote_code=True)
    assert mark.exists() and torch.equal(
        logits(again, prompts()), logits(uneven if pruned else model, prompts())
    )


def test_our_own_code_builds_a_trusted_folder_not_the_copy_in_it(uneven, tmp_path):
    save_model(uneven, remote_tokenizer(), tmp_path / "m")
    (tmp_path / "m" / "modeling_pruned.py").write_text("raise SystemExit('ran')")
    again, _ = load_model(tmp_path / "m", trust_remote_code=True)
    assert again.pruning_layout == json.loads((tmp_path / "m" / "config.json").read_text())["pruning_layout"]
