import pytest
import timm
import torch
from torch import nn

import models  # noqa: F401 (registers the backbones)
from lightning_modules.convnext_layers import layer_wise_id, stage_wise_id
from lightning_modules.parameter_groups import LayerDecay, describe, parameter_groups

SMALL = {"depths": (1, 1, 4, 1), "dims": (8, 16, 24, 32), "num_classes": 5}


def by_name(groups: list[dict], key: str) -> dict[str, float]:
    return {name: group[key] for group in groups for name in group["param_names"]}


def test_who_decays() -> None:
    network = timm.create_model("convnext_tiny", **SMALL)
    groups = parameter_groups(network, lr=0.1, weight_decay=0.05)
    assert [group["name"] for group in groups] == ["decay", "no_decay"]
    assert {(group["lr"], group["lr_scale"]) for group in groups} == {(0.1, 1.0)}
    decay = by_name(groups, "weight_decay")
    assert decay["stages.0.blocks.0.conv_dw.weight"] == decay["stages.0.blocks.0.mlp.fc1.weight"] == 0.05
    for name in ("stages.0.blocks.0.gamma", "stem.1.weight", "head.fc.bias", "stages.0.blocks.0.conv_dw.bias"):
        assert decay[name] == 0
    assert len(decay) == len(list(network.parameters()))


def test_everything_but_norms_may_decay() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.LayerNorm([4]),
        nn.MultiheadAttention(4, 2),
        nn.ModuleDict({"scale": Scale()}),
    )
    decay = by_name(parameter_groups(network, 1.0, 0.05, decay_all="but_norms"), "weight_decay")
    of_norms = {f"{layer}.{own}" for layer in (1, 2, 3) for own in ("weight", "bias")}
    assert {name for name, value in decay.items() if not value} == of_norms
    assert decay["0.bias"] == decay["4.in_proj_bias"] == decay["5.scale.factor"] == 0.05
    for value, expected in ((True, {0.05}), (False, {0.0, 0.05})):
        assert set(by_name(parameter_groups(network, 1.0, 0.05, decay_all=value), "weight_decay").values()) == expected
    with pytest.raises(ValueError, match="decay_all must be true, false or but_norms, not 'norms'"):
        parameter_groups(network, 1.0, 0.05, decay_all="norms")  # type: ignore[arg-type]


class Scale(nn.Module):
    """A learned factor, which is no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))


def test_modules_may_exempt_their_own() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(4, 4))
            self.scale_a = nn.Parameter(torch.zeros(4, 4))
            self.bias = nn.Parameter(torch.zeros(4, 4))

        def no_weight_decay(self) -> set[str]:
            return {"position", "scale_*"}

    inside = by_name(parameter_groups(nn.Sequential(Embedded(), nn.Linear(4, 4)), 1.0, 0.05), "weight_decay")
    assert [name for name, decay in inside.items() if decay] == ["1.weight"]
    alone = by_name(parameter_groups(Embedded(), 1.0, 0.05), "weight_decay")
    assert not any(alone.values())


def test_frozen_parameters_are_left_out() -> None:
    network = timm.create_model("convnext_tiny", **SMALL)
    network.stem.requires_grad_(False)
    names = by_name(parameter_groups(network, 0.1, 0.05), "lr")
    assert not any(name.startswith("stem") for name in names)
    network.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(network, 0.1, 0.05)


def test_timm_layers() -> None:
    network = timm.create_model("ladder_r50_11_layernorm", **SMALL)
    groups = parameter_groups(network, 0.1, 0.05, LayerDecay(0.5))
    scale = by_name(groups, "lr_scale")
    assert scale["head.fc.weight"] == 1
    assert scale["stages.3.blocks.0.branch.conv1.weight"] == 0.5
    assert scale["stages.2.blocks.0.branch.conv1.weight"] == 0.5**5
    assert scale["stem.0.weight"] == 0.5**8
    assert groups[0]["name"] == "layer_0_decay"
    assert groups[0]["lr"] == 0.1 * 0.5**8


@pytest.mark.parametrize("rule", ["timm", "convnext_layer_wise", "convnext_stage_wise"])
def test_everything_outside_the_backbone_is_head(rule: str) -> None:
    backbone = timm.create_model("convnext_tiny_dense", features_only=True, **{**SMALL, "num_classes": 0})
    network = nn.ModuleDict({"backbone": backbone, "neck": nn.Linear(4, 4)})
    scale = by_name(parameter_groups(network, 1.0, 0.0, LayerDecay(0.5, rule, 6, "backbone")), "lr_scale")
    assert scale["neck.weight"] == 1
    assert scale["backbone.stem.0.weight"] == min(scale.values()) < 0.5
    assert scale["backbone.norm0.weight"] == (0.5 if rule == "timm" else 1)


def test_published_layers_of_a_long_stage() -> None:
    assert [layer_wise_id(f"stages.2.blocks.{block}.gamma") for block in range(27)] == [3 + b // 3 for b in range(27)]
    parts = ("downsample.0.weight", "blocks.2.norm.weight")
    names = ["stem.1.bias", *(f"stages.{stage}.{part}" for stage in range(4) for part in parts)]
    names += ["norm3.weight", "head.norm.weight", "head.fc.bias"]
    assert [layer_wise_id(name, 6) for name in names] == [0, 0, 1, 2, 2, 3, 3, 6, 6, 7, 7, 7]
    assert [stage_wise_id(name, 6) for name in names] == [0, 0, 1, 0, 2, 0, 3, 0, 4, 7, 7, 7]


def test_too_few_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="needs num_layers=12"):
        layer_wise_id("stages.2.blocks.26.gamma", num_layers=6)


def test_impossible_layer_decay_is_refused() -> None:
    with pytest.raises(ValueError, match="no group_matcher"):
        parameter_groups(nn.Linear(2, 2), 1.0, 0.0, LayerDecay(0.5))
    with pytest.raises(ValueError, match="no module 'backbone'"):
        parameter_groups(nn.Linear(2, 2), 1.0, 0.0, LayerDecay(0.5, prefix="backbone"))


def test_table_for_people() -> None:
    network = timm.create_model("convnext_tiny", **SMALL)
    groups = parameter_groups(network, 0.1, 0.05, LayerDecay(0.8, "convnext_layer_wise", 6))
    header, *rows = describe(groups).splitlines()
    assert header.split() == ["group", "tensors", "parameters", "lr", "scale", "lr", "weight", "decay", "from"]
    assert len(rows) == len(groups)
    assert rows[0].split() == ["layer_0_decay", "1", "384", "0.209715", "2.097e-02", "0.05", "stem.0.weight"]


def test_optimizers_take_the_groups() -> None:
    network = timm.create_model("convnext_tiny", **SMALL)
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.1, 0.05, LayerDecay(0.8)))
    restored = torch.optim.AdamW(parameter_groups(network, 0.1, 0.05, LayerDecay(0.8)))
    restored.load_state_dict(optimizer.state_dict())
    assert [group["name"] for group in restored.param_groups] == [group["name"] for group in optimizer.param_groups]


def test_learning_rates_by_name() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = parameter_groups(network, 0.1, 0.05, lr_multipliers={"0.": 0.5, "bias": 3.0})
    assert [(group["name"], group["lr_scale"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("0._decay", 0.5, 0.05, 0.05),
        ("0._no_decay", 0.5, 0.05, 0.0),
        ("decay", 1.0, 0.1, 0.05),
        ("bias_no_decay", 3.0, pytest.approx(0.3), 0.0),
    ]
    for factor in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"'0.' has the factor {factor:g}, which must be above 0"):
            parameter_groups(network, 0.1, 0.05, lr_multipliers={"0.": factor})
    with pytest.raises(ValueError, match="no parameter's name contains 'neck'; they begin with 0, 1"):
        parameter_groups(network, 0.1, 0.05, lr_multipliers={"neck": 1.0})
