"""The Dynamic Vision Transformer: published sizes, early exit, and what it refuses."""

from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from timm.layers import DropPath
from torch import Tensor, nn

from models.anytime import Policy, compact, exit_costs, run
from models.classifiers import DVT
from models.classifiers.dvt import PUBLISHED
from models.classifiers.dvt_blocks import Attention, Upsample
from models.classifiers.tokens_to_token import TokenPerformer, first_split, sinusoid
from models.compute import parameter_count
from models.official import LayoutError, load
from models.official.dvt import LAYOUT
from tests.library.dvt_costs import TABLE

TINY = {
    "num_classes": 5,
    "image_size": 32,
    "grids": (2, 4, 8),
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "token_dim": 6,
    "reuse_dim": 4,
    "reuse_hidden_dim": 8,
}
REUSE = {
    "both": {},
    "features": {"relation_reuse": False},
    "relations": {"feature_reuse": False},
    "none": {"feature_reuse": False, "relation_reuse": False},
}


def tiny(**options: object) -> DVT:
    torch.manual_seed(0)
    network = DVT(**TINY | options)
    # At their initialisation the exits say the same of every image.
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return network.eval()


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


STAGE_PARAMS = {
    "t2t_vit_12": [6_989_824, 7_744_510, 7_727_182],
    "t2t_vit_14": [21_574_656, 23_156_110, 23_151_070],
    "deit_small": [22_878_952, 23_920_456, 23_642_824],
}


@pytest.mark.parametrize(("name", "reuse", "params", "trainable", "macs"), TABLE)
def test_published_sizes(name: str, reuse: str, params: int, trainable: int, macs: tuple[float, ...]) -> None:
    with torch.device("meta"):
        network = DVT(**PUBLISHED[name], **REUSE[reuse])
    assert parameter_count(network) == params
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == trainable
    assert np.diff(exit_costs(network, (3, 224, 224)), prepend=0) / 1e9 == pytest.approx(macs, abs=6e-5)
    if reuse == "both":
        assert [parameter_count(stage) for stage in network.stages] == STAGE_PARAMS[name]


@pytest.mark.parametrize(
    ("reuse", "params"), [("none", 21_188), ("features", 24_284), ("relations", 21_300), ("both", 24_396)]
)
def test_sizes_of_the_pilot(reuse: str, params: int) -> None:
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "reuse_dim": 12, "reuse_hidden_dim": 24}
    network = DVT(num_classes=10, in_chans=1, image_size=8, grids=(2, 4), **sizes, **REUSE[reuse])
    assert parameter_count(network) == params


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_train_the_published_networks(name: str) -> None:
    configs = Path(__file__).parents[3] / "configs" / "classification"
    arguments: dict = {}
    for file in ("t2t_12", name.replace("t2t_vit", "t2t")):
        config = yaml.safe_load((configs / f"dvt_{file}_imagenet1k.yaml").read_text())
        arguments |= config["model"]["init_args"]["network"]["init_args"]
    assert {key: arguments[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    rest = {key: value for key, value in arguments.items() if key not in PUBLISHED[name]}
    defaults = {key: value.default for key, value in signature(DVT).parameters.items() if key in rest}
    assert rest == defaults | {"grids": [7, 10, 14], "drop_path_rate": 0.1}


@pytest.mark.parametrize("host", ["deit", "t2t"])
@pytest.mark.parametrize("reuse", REUSE)
def test_exits_one_by_one_are_forward(host: str, reuse: str) -> None:
    network = tiny(host=host, **REUSE[reuse])
    together = network(images())
    state = network.start(images())
    for exit in range(network.num_exits):
        logits, state = network.advance(exit, state)
        assert logits.shape == (4, 5)
        assert torch.equal(logits, together[exit])
        expected = {"both": {"tokens", "relations"}, "features": {"tokens"}, "relations": {"relations"}, "none": set()}
        assert set(state) == (expected[reuse] | {"images"} if exit + 1 < network.num_exits else set())
    assert len(together) == network.num_exits == 3
    for first, second in ((0, 1), (1, 2)):
        assert not torch.allclose(together[first], together[second], atol=1e-2)


@pytest.mark.parametrize("host", ["deit", "t2t"])
@pytest.mark.parametrize("reuse", REUSE)
def test_images_that_leave_change_nothing_for_the_others(host: str, reuse: str) -> None:
    network = tiny(host=host, **REUSE[reuse])
    together = network(images())
    _, state = network.advance(0, network.start(images()))
    state = compact(state, torch.tensor([3, 0, 2]))
    logits, state = network.advance(1, state)
    torch.testing.assert_close(logits, together[1][[3, 0, 2]])
    logits, _ = network.advance(2, compact(state, torch.tensor([2])))
    torch.testing.assert_close(logits, together[2][[2]])


def test_early_exit_runs_only_what_is_needed() -> None:
    network = tiny(host="t2t")
    with torch.no_grad():
        together = torch.stack(network(images()))
    second = together[0].softmax(-1).amax(-1).sort().values[1:3].mean().item()
    seen: list[tuple[int, int]] = []
    for i, stage in enumerate(network.stages):
        stage.register_forward_pre_hook(lambda _, inputs, i=i: seen.append((i, len(inputs[0]))))
    logits, exits = run(network, images(), Policy("max_prob", (second, 2.0, -1.0)))
    assert seen == [(0, 4), (1, 2), (2, 2)]
    assert sorted(exits.tolist()) == [0, 0, 2, 2]
    torch.testing.assert_close(logits, together[exits, torch.arange(4)])
    seen.clear()
    _, exits = run(network, images(), Policy("max_prob", (2.0, 0.0, -1.0)))
    assert seen == [(0, 4), (1, 4)]
    assert exits.tolist() == [1, 1, 1, 1]


def test_what_is_reused_reaches_the_next_exit_and_its_gradient_the_previous_stage() -> None:
    for reuse, reached in (("both", True), ("features", True), ("relations", True), ("none", False)):
        network = tiny(**REUSE[reuse])
        network(images())[2].sum().backward()
        stage = network.stages[1]
        assert (stage.blocks[0].attn.qkv.weight.grad is not None) == reached
        assert stage.head.weight.grad is None


def test_every_trainable_parameter_gets_a_gradient() -> None:
    network = tiny(host="t2t", drop_path_rate=0.5).train()
    sum(logits.square().mean() for logits in network(images())).backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == {
        f"stages.{stage}.{name}"
        for stage in range(3)
        for name in ("pos_embed", "tokenizer.attention1.w", "tokenizer.attention2.w")
    }
    rates = [module.drop_prob for module in network.stages[1].modules() if isinstance(module, DropPath)]
    assert rates == [0.5]


@pytest.mark.parametrize(("n", "m"), [(7, 10), (10, 14), (2, 4), (1, 3), (3, 4), (2, 7)])
def test_upsample_is_doubling_and_pooling(n: int, m: int) -> None:
    tokens = torch.randn(2, 5, 1 + n * n, dtype=torch.float64)
    maps = tokens[..., 1:].unflatten(2, (n, n))
    pooled = F.adaptive_avg_pool2d(F.interpolate(maps, scale_factor=2, mode="nearest"), m).flatten(2)
    expected = torch.cat([tokens[..., :1], pooled], dim=2)
    upsample = Upsample(n, m).double()
    torch.testing.assert_close(upsample(tokens, dim=2), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(upsample(tokens.mT, dim=1), expected.mT, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(upsample(tokens, dim=-1), expected, rtol=1e-6, atol=1e-6)


def test_attention_is_the_same_whether_its_logits_are_wanted_or_not() -> None:
    attention = Attention(8, 2, qkv_bias=True)
    x, reused = torch.randn(2, 5, 8), torch.randn(2, 2, 5, 5)
    with_logits, logits = attention(x, reused, hand_on=True)
    without, none = attention(x, reused)
    assert none is None
    torch.testing.assert_close(with_logits, without)
    added = logits - attention(x, hand_on=True)[1]
    torch.testing.assert_close(added, reused)


def test_a_constant_added_to_all_logits_has_no_gradient() -> None:
    # Softmax does not see it: recorded gradients of this bias in the last stage are nothing but rounding.
    network = tiny().double()
    network(images().double())[2].square().sum().backward()
    conv = network.stages[2].relation_reuse.mlp.fc2
    assert conv.bias.grad.abs().max() < 1e-12 * conv.weight.grad.abs().max()
    earlier = network.stages[1].relation_reuse.mlp.fc2
    assert earlier.bias.grad.abs().max() > 1e-6 * earlier.weight.grad.abs().max()


def test_performer_approximates_softmax_attention() -> None:
    torch.manual_seed(0)
    performer = TokenPerformer(8, 8)
    assert not performer.w.requires_grad
    torch.testing.assert_close(performer.w @ performer.w.T, 4 * torch.eye(4))
    many = TokenPerformer(8, 8, kernel_ratio=2000)
    nn.init.normal_(many.w)
    keys, queries, values = 0.3 * torch.randn(3, 1, 20, 8)
    exact = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    torch.testing.assert_close(many._attend(keys, queries, values), exact, rtol=0, atol=0.01)
    assert (exact - values.mean(1, keepdim=True)).abs().max() > 0.03


@pytest.mark.parametrize(
    ("image_size", "grid", "expected"),
    [(224, 7, (14, 8, 3)), (224, 10, (11, 6, 5)), (224, 14, (7, 4, 2))],
)
def test_soft_splits_are_the_published_ones(image_size: int, grid: int, expected: tuple[int, int, int]) -> None:
    assert first_split(image_size, grid) == expected


@pytest.mark.parametrize(("grid", "kernel", "padding"), [(7, 32, 0), (10, 23, 3), (14, 16, 0)])
def test_patches_are_the_published_ones(grid: int, kernel: int, padding: int) -> None:
    with torch.device("meta"):
        conv = DVT(grids=[grid], depth=1).stages[0].tokenizer.proj
    assert (conv.kernel_size, conv.stride, conv.padding) == ((kernel,) * 2, (kernel,) * 2, (padding,) * 2)


def test_sinusoid() -> None:
    table = sinusoid(3, 4)
    angles = torch.tensor([0.0, 1.0, 2.0])
    expected = [angles.sin(), angles.cos(), (angles / 100).sin(), (angles / 100).cos()]
    torch.testing.assert_close(table[0], torch.stack(expected, dim=1))


@pytest.mark.parametrize("grids", [(1, 3), (2, 3, 5), (4, 6, 8)])
def test_any_ascending_grids(grids: tuple[int, ...]) -> None:
    exits = tiny(grids=grids)(images(2))
    assert [logits.shape for logits in exits] == [(2, 5)] * len(grids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "pvt"}, r"unknown host 'pvt': deit or t2t"),
        ({"grids": (4, 4)}, r"ascending .* not \(4, 4\)"),
        ({"grids": (8, 4)}, r"ascending .* not \(8, 4\)"),
        ({"grids": ()}, r"ascending"),
        ({"grids": (0, 4)}, r"ascending"),
        ({"grids": (4, 23)}, r"32 pixels do not divide into 23 patches a side; they do into 1, 2, .*16, .*32$"),
        ({"grids": (4, 33)}, r"do not divide into 33"),
        ({"grids": (3, 6), "host": "t2t"}, r"does not split images of 32 pixels into 6 tokens a side; it does into 1,"),
        ({"num_heads": 5}, r"5 heads do not divide embed_dim=12; these do: 1, 2, 3, 4, 6, 12"),
        ({"depth": 0}, r"depth must be at least 1, not 0"),
        ({"num_classes": 0}, r"num_classes must be at least 1"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio=0.0 leaves no channel of embed_dim=12"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), not 1.0"),
        ({"token_dim": 1, "host": "t2t"}, r"a performer of 1 channels has no random features"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DVT(**TINY | options)


def test_grids_offered_in_a_refusal_can_be_had() -> None:
    for host in ("deit", "t2t"):
        with pytest.raises(ValueError, match=r"(they do|it does) into") as refusal:
            DVT(**TINY | {"host": host, "grids": (32 if host == "t2t" else 31,)})
        for grid in str(refusal.value).split("into ")[-1].split(", "):
            network = DVT(**TINY | {"host": host, "grids": (int(grid),), "depth": 1}).eval()
            assert network(images(1))[0].shape == (1, 5)


def test_upsampling_to_a_coarser_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="not from 4 to 4"):
        Upsample(4, 4)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="images are 32x64, but this network takes 32x32"):
        tiny()(torch.randn(1, 3, 32, 64))


@pytest.mark.parametrize("host", ["deit", "t2t"])
def test_half_precision(host: str) -> None:
    network = tiny(host=host)
    exact = network(images())
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(images())
    sum(logits.float().sum() for logits in rough).backward()
    for half, full in zip(rough, exact, strict=True):
        assert half.dtype == torch.bfloat16
        assert 0 < (half.float() - full).abs().max() < 0.1 * full.abs().max()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


def test_compiles() -> None:
    network = tiny(host="t2t", grids=(2, 4), depth=1)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for actual, expected in zip(compiled(images()), network(images()), strict=True):
        torch.testing.assert_close(actual, expected)


def test_official_names() -> None:
    names = {
        "less_less_token.cls_token": "stages.0.cls_token",
        "less_token.patch_embed.proj.weight": "stages.1.tokenizer.proj.weight",
        "less_token.tokens_to_token.attention2.proj.bias": "stages.1.tokenizer.attention2.proj.bias",
        "normal_token.tokens_to_token.project.bias": "stages.2.tokenizer.project.bias",
        "normal_token.tokens_to_token.attention1.mlp.2.bias": "stages.2.tokenizer.attention1.mlp.fc2.bias",
        "normal_token.blocks.11.feature_resuse_mlp.0.bias": "stages.2.blocks.11.feature_reuse.norm.bias",
        "normal_token.blocks.11.feature_resuse_mlp.1.fc2.bias": "stages.2.blocks.11.feature_reuse.mlp.fc2.bias",
        "normal_token.relation_reuse_conv.2.weight": "stages.2.relation_reuse.mlp.fc2.weight",
    }
    for official, ours in names.items():
        assert LAYOUT.our_name(official) == ours
        assert LAYOUT.official_name(ours) == official


def test_two_stages_have_no_official_layout() -> None:
    with pytest.raises(LayoutError, match=r"our DVT layout: missing stages\.2\.cls_token"):
        LAYOUT.to_official(tiny(grids=(2, 4)).state_dict())


def test_new_classes_get_new_heads() -> None:
    network = tiny(num_classes=7)
    dropped = load(network, tiny().state_dict())
    assert dropped == [f"stages.{i}.head.{kind}" for i in range(3) for kind in ("weight", "bias")]
    assert torch.equal(network.stages[2].norm.weight, tiny().stages[2].norm.weight)
