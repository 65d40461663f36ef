"""The frame of groups says what discovery found, run by run."""

from __future__ import annotations

import pytest
from families import build

from pruner_lib import discover
from pruner_lib.method.layout import set_parameter_
from pruner_lib.study.figures.groups import slices_frame


def runs(frame, ending, kind):
    """(dim, start, stop) of the chosen group's runs in one parameter."""
    part = frame[frame.parameter.str.endswith(ending) & (frame.kind == kind) & frame.chosen]
    return [*zip(part.dim, part.start, part.stop, strict=True)]


def test_llama_columns_are_those_of_figure_2():
    """embed | norm | q k v | o | norm | gate up | down | norm | head."""
    model = build("llama-gqa")
    frame = slices_frame(model, discover(model), layer=1)
    columns = frame.groupby("stage").structure.unique().map(lambda s: [x.split(".")[-1] for x in s]).tolist()
    assert columns == [
        ["embed_tokens"], ["input_layernorm"], ["q_proj", "k_proj", "v_proj"], ["o_proj"],
        ["post_attention_layernorm"], ["gate_proj", "up_proj"], ["down_proj"], ["norm"], ["lm_head"],
    ]  # fmt: skip
    inside = frame[frame.parameter.str.contains("layers")]
    assert inside.parameter.str.startswith("model.layers.1.").all()


def test_runs_are_the_rows_and_columns_of_the_chosen_group():
    model = build("llama-gqa")  # 2 KV heads of width 8, each with 3 query heads
    groups = {"attention": 1, "mlp": 7, "hidden": 23}
    frame = slices_frame(model, discover(model), groups=groups)
    assert runs(frame, "q_proj.weight", "attention") == [(0, 24, 48)]
    assert runs(frame, "k_proj.weight", "attention") == [(0, 8, 16)]
    assert runs(frame, "o_proj.weight", "attention") == [(1, 24, 48)]
    assert runs(frame, "up_proj.weight", "mlp") == [(0, 7, 8)]
    assert runs(frame, "down_proj.weight", "mlp") == [(1, 7, 8)]
    assert runs(frame, "o_proj.weight", "hidden") == [(0, 23, 24)]
    assert frame[~frame.chosen].kind.unique().tolist() == ["attention"]
    other = slices_frame(model, discover(model), groups=groups | {"attention": 0})
    assert runs(other, "q_proj.weight", "attention") == [(0, 0, 24)]


def test_fused_projection_has_several_runs_and_an_interleaved_one_has_one():
    for family, expected in {
        "phi3": [(0, 12, 24), (0, 28, 32), (0, 36, 40)],
        "gpt_neox": [(0, 12, 24)],
    }.items():
        model = build(family)
        frame = slices_frame(model, discover(model), groups={"attention": 1})
        fused = next(p for p in frame.parameter if "qkv" in p or "query_key_value" in p)
        assert runs(frame, fused, "attention") == expected


@pytest.mark.parametrize("family", ["llama-gqa", "phi3", "gpt_neox", "gpt2", "bloom", "olmo2"])
def test_no_entry_of_a_group_is_lost_and_none_is_added(family):
    model = build(family)
    axes = discover(model)
    frame = slices_frame(model, axes, layer=2, groups={"mlp": 0, "hidden": 3})
    for (axis, parameter, dim, group), part in frame.groupby(["axis", "parameter", "dim", "group"]):
        member = next(m for m in axes[axis].members if (m.parameter, m.dim) == (parameter, dim))
        listed = [i for row in part.itertuples() for i in range(row.start, row.stop)]
        assert listed == sorted(member.indices[group].tolist())
    names = set(frame.parameter)
    assert all(m.parameter in names for a in axes.values() if a.layer == 2 for m in a.members)
    assert set(frame.stage) == set(range(frame.stage.max() + 1))


def test_layer_that_is_not_there_is_refused():
    model = build("llama-gqa")
    axes = discover(model)
    with pytest.raises(ValueError, match="layer is 3; give one of the model's layers 0..2"):
        slices_frame(model, axes, layer=3)
    assert len(slices_frame(model, axes, layer=2))


def test_parameter_with_three_dims_is_refused_by_name():
    model = build("llama-gqa")
    axes = discover(model)
    name = "model.layers.0.mlp.up_proj.weight"
    set_parameter_(model, name, model.get_parameter(name).detach()[None])
    with pytest.raises(ValueError, match="up_proj.weight has 3 dims, but only 1 or 2 can be"):
        slices_frame(model, axes)
