"""Saved folders load everywhere with the same logits, bit for bit, or are not written at all."""

from __future__ import annotations

import copy
import json
import re
import shutil

import pytest
import torch
from families import FAMILIES, NO_HEAD_DIM, build, first_of, logits, random_scores, tokens
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from pruner_lib import discover, load_model, prune_, save_model, select
from pruner_lib.method.groups import Plan
from pruner_lib.models import modeling_pruned
from pruner_lib.models.tiny import tiny_tokenizer

UNEVEN = dict(ratio=0.4, scope="global", protect_first=1)
A_MODEL = {"config.json": '{"model_type": "llama"}', "model.safetensors": ""}
UNIFORM_HEADS = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 8}


def _pruned(family, changes=None, **options):
    model = build(family, **changes or {})
    axes = discover(model)
    return prune_(model, select(axes, random_scores(axes), **options), axes=axes)


@pytest.mark.parametrize("family", first_of(["llama-tied", "llama-biases", "qwen3", "gemma2", "phi3", "glm"]))
def test_uniform_checkpoint_is_a_plain_one(family, tmp_path):
    model = _pruned(family, ratio=0.5)
    assert model.pruning_layout is None
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert (
        not any(n.endswith((".py", ".bin", ".pt", ".pkl")) for n in names)
        and {"plan.json", "model.safetensors"} <= names
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert type(again).__name__ == type(build(family)).__name__
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))


FACTORS = {  # of the output matrix, made from a width of the config; the layers of equal width are cut alike
    "attention": (modeling_llama.LlamaAttention, "o_proj", lambda c: 8 / c.num_attention_heads),
    "mlp": (modeling_llama.LlamaMLP, "down_proj", lambda c: 8 / c.intermediate_size),
    "list": (modeling_llama.LlamaMLP, "down_proj", lambda c: [8 / c.intermediate_size]),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_float_that_a_class_makes_from_the_width_stays_the_dense_one(name, tmp_path, monkeypatch):
    part, output, factor = FACTORS[name]
    plain = part.__init__

    def build_part(self, config, **more):
        plain(self, config, **more)
        matrix = self.get_submodule(output)
        matrix.factor = factor(config)
        matrix.register_forward_hook(lambda m, _, out: out * torch.tensor(m.factor))

    monkeypatch.setattr(part, "__init__", build_part)
    model = _pruned("llama-mha", UNIFORM_HEADS, ratio=0.5, uniform=True)
    assert model.pruning_layout
    save_model(model, None, tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True).eval()
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))


def test_channel_pruned_checkpoint_is_a_plain_one_and_what_is_tied_stays_so(tmp_path):
    model = _pruned("llama-tied", ratio=0.25, granularity="channel")
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval(), load_model(tmp_path / "m")[0]):
        assert torch.equal(logits(again, tokens()), logits(model, tokens()))
        assert again.lm_head.weight is again.model.embed_tokens.weight


@pytest.mark.slow
def test_heads_that_do_not_divide_the_hidden_size_fall_back_to_a_layout(tmp_path):
    """llama's config refuses 5 heads for 24 hidden channels, so a plain folder could not be loaded."""
    model = _pruned("llama-mha", ratio=0.2)
    assert model.model.layers[0].self_attn.q_proj.out_features == 5 * 8 and model.pruning_layout
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    again, _ = load_model(tmp_path / "m")
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))


@pytest.fixture(scope="module")
def uneven():
    return _pruned("llama-gqa", **UNEVEN)


@pytest.fixture(scope="module")
def saved(uneven, tmp_path_factory):
    return save_model(uneven, tiny_tokenizer(), tmp_path_factory.mktemp("saved") / "m")


def test_layout_is_plain_json_and_the_plan_lies_beside_the_weights(uneven, saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["pruning_layout"] == uneven.pruning_layout
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_pruned.PrunedModelForCausalLM"
    assert config["model_type"] == "llama" and "trust_remote_code=True" in config["transformers_weights"]
    assert Plan.from_json(saved / "plan.json").to_dict() == uneven.pruned_by[0].to_dict()


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved folder, to be damaged."""
    return shutil.copytree(saved, tmp_path / "m")


def change_config(folder, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_code_of_a_tampered_folder_is_not_run(folder):
    (folder / "modeling_pruned.py").write_text("raise SystemExit('ran')")
    model, _ = load_model(folder)
    assert model.pruning_layout


def lead_astray(folder, auto_map: str, **layout):
    """Let the config name code that leaves a mark when it runs; give the mark."""
    mark = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Model: ...\n")
    change_config(folder, lambda config: config.update(auto_map={"AutoModelForCausalLM": auto_map}, **layout))
    return mark


@pytest.mark.parametrize("layout", [None, {}, "", 0, [], False, {"shapes": {}}, "evil.Model"])
def test_a_damaged_layout_is_refused_and_runs_no_code(layout, folder, monkeypatch):
    looked_up = []
    monkeypatch.setattr(modeling_pruned, "get_class_from_dynamic_module", lambda *a, **k: looked_up.append(a))
    for auto_map in ("evil.Model", "some/hub--evil.Model"):
        mark = lead_astray(folder, auto_map, pruning_layout=layout)
        with pytest.raises(ValueError, match="pruning_layout must be a dict"):
            load_model(folder)
        assert not mark.exists() and not looked_up


def test_a_whole_layout_with_a_foreign_auto_map_loads_by_our_own_code(uneven, folder):
    mark = lead_astray(folder, "evil.Model")
    again, _ = load_model(folder)
    assert again.pruning_layout == uneven.pruning_layout and not mark.exists()


@pytest.mark.parametrize(
    "part, entry",
    [
        ("shapes", {"lm_head.weight": "os.system"}),
        ("attributes", {"model": {"forward": "exit"}}),
        ("attributes", {"model": {"a b": 1}}),
        ("config", {"model.layers.0": {"head_dim": None}}),
        ("inputs", {"model": {"0": {"dim": 0, "total": 4, "keep": "all"}}}),
    ],
)
def test_an_entry_that_is_no_number_is_refused(part, entry, folder):
    change_config(folder, lambda config: config["pruning_layout"][part].update(entry))
    with pytest.raises(ValueError, match=f"damaged: pruning_layout, {part} of"):
        load_model(folder)


@pytest.mark.slow
def test_widths_of_a_tied_matrix_hold_whichever_name_comes_first(tmp_path, monkeypatch):
    """camembert makes its head before its embedding, and ties them after both have their widths."""
    monkeypatch.setitem(FAMILIES, "camembert", ("CamembertConfig", NO_HEAD_DIM | {"is_decoder": True}))
    model = _pruned("camembert", ratio=0.25, granularity="channel")
    assert next(model.named_parameters())[0].startswith("lm_head.") and model.pruning_layout
    save_model(model, tiny_tokenizer(), tmp_path / "m")
    again, _ = load_model(tmp_path / "m")
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"notes.txt": "mine"}, "notes.txt"),
        ({"config.json": '{"my": "settings"}'}, "no config.json of a model"),
        (A_MODEL | {"src/thesis.tex": "mine"}, "src"),
        (A_MODEL | {"train.py": "mine"}, "train.py"),
        (A_MODEL | {".git/HEAD": "a clone", "README.md": ""}, ".git, README.md"),
    ],
)
def test_folder_that_holds_anything_but_a_model_is_not_replaced(tmp_path, files, named):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"is not empty and holds {re.escape(named)}; give a new folder"):
        save_model(build("llama-gqa"), None, tmp_path)
    there = {p.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert there == files


@pytest.mark.slow
def test_every_folder_that_was_saved_here_is_replaced(tmp_path):
    folder = tmp_path / "m"
    for uniform in (False, True):
        how = {"ratio": 0.25, "uniform": True} if uniform else UNEVEN
        save_model(_pruned("llama-gqa", **how), tiny_tokenizer(), folder)
        assert (folder / "modeling_pruned.py").is_file() != uniform and load_model(folder)


def test_full_disk_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    model = build("llama-gqa")
    save_model(model, None, tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()

    def full(*args, **kwargs):
        (args[0] / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, None, tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def _wider_by_hand(model):
    mlp = model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = torch.nn.Linear(24, 50), torch.nn.Linear(24, 50)
    mlp.down_proj = torch.nn.Linear(50, 24)


def _another_module(model):
    model.model.layers[1].mlp = torch.nn.Sequential(model.model.layers[1].mlp)


def _another_config(model):
    model.config.num_hidden_layers = 2


def _config_that_builds_nothing(model):
    model.config.num_attention_heads = 7


def _tied_by_hand(model):
    model.lm_head.weight = model.model.embed_tokens.weight


DESCRIBED_OTHERWISE = [_wider_by_hand, _another_module, _another_config, _config_that_builds_nothing]


@pytest.mark.parametrize("change", [*DESCRIBED_OTHERWISE, _tied_by_hand])
def test_a_model_that_its_config_does_not_describe_is_not_saved(change, tmp_path):
    model = build("llama-gqa")
    save_model(model, None, tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    change(model)
    with pytest.raises(ValueError, match="nothing was saved"):
        save_model(model, None, tmp_path / "m")
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("family", first_of(["llama-gqa", "gemma3_text", "deepseek_v3", "bloom"]))
def test_model_with_fewer_layers_is_saved_and_loaded(family, tmp_path):
    """The first layer of deepseek_v3 is of another make, which its config counts from the front."""
    model = build(family)
    for keep in ([1, 2], [0, 2]):
        cut = prune_(copy.deepcopy(model), Plan({"layers": keep}, {"layers": 3}))
        save_model(cut, tiny_tokenizer(), tmp_path / "m")
        again, _ = load_model(tmp_path / "m")
        assert torch.equal(logits(copy.deepcopy(again), tokens()), logits(cut, tokens()))


def test_layers_that_the_config_cannot_name_are_refused_and_nothing_is_changed():
    model = build("deepseek_v3", num_hidden_layers=4)
    layers = model.model.layers
    layers[3] = copy.deepcopy(layers[0])  # of the first layer's make, where no config can have it
    before = logits(model, tokens())
    with pytest.raises(ValueError, match="can't describe the layers"):
        prune_(model, Plan({"layers": [0, 1, 3]}, {"layers": 4}))
    assert torch.equal(logits(model, tokens()), before) and len(model.model.layers) == 4
