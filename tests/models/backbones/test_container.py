"""CONTAINER: what it costs, which images it takes, how it mixes, and that every host takes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models  # noqa: F401 (registers the backbones)
from lightning_modules.parameter_groups import parameter_groups
from models import decisions
from models.compute import count, flop_counter
from models.detectors import DETR, SMCA, MaskRCNN, RetinaNet
from models.layers.context_aggregation import ContextAggregation, Mixture
from models.mistakes import Mistake
from models.official import load
from models.official.container import LAYOUT
from models.segmenters.upernet import UperNet
from models.self_supervised import DINO

SMALL: dict[str, Any] = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": 2}
PAM: dict[str, Any] = {"embed_dim": 12, "depth": 3, "num_heads": 3}
NOWHERE = (False,) * 4
WIDE = (8, 8, 4, 4)


def small(name: str = "container_light", **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **SMALL | {"num_classes": 5} | options)


@pytest.mark.parametrize(
    ("name", "options", "size", "params", "macs"),
    [
        ("container_v1_light", {}, (224, 224), 20_633_643, 3.8477),
        ("container_light", {}, (224, 224), 20_008_235, 3.1284),
        ("container", {}, (224, 224), 21_808_826, 8.2319),
        ("container", {"mlp_ratios": WIDE}, (224, 224), 22_434_234, 8.9512),
        ("container_v1_light", {"dynamic": NOWHERE}, (224, 224), 19_057_704, 3.7633),
        ("container_v1_light", {}, (448, 448), 20_633_643, 15.48),
        ("container", {"mlp_ratios": WIDE}, (448, 448), 22_434_234, 91.1),
        ("container_v1_light", {}, (800, 1344), 20_633_643, 85.7),
        ("container", {"mlp_ratios": WIDE}, (800, 1344), 22_434_234, 2210),
    ],
)
def test_cost_is_the_measured_one(
    name: str, options: dict[str, Any], size: tuple[int, int], params: int, macs: float
) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, **options)
    report = count(network, (3, *size))
    assert report.params == params
    # As many digits as were told.
    digits = len(str(macs).partition(".")[2])
    assert round(report.macs / 1e9, digits) == macs


def test_small_networks_are_as_large_as_those_of_the_official_blocks() -> None:
    sizes = {"dims": (24, 48, 64, 96), "patch_sizes": (4, 2, 1, 1), "mlp_ratios": (3,) * 4, "num_heads": 4}
    for name, params in (("container", 189_894), ("container_light", 175_667)):
        assert sum(p.numel() for p in small(name, **sizes, num_classes=10).parameters()) == params


@pytest.mark.parametrize("name", ["container", "container_light", "container_mh_dw"])
@torch.no_grad()
def test_images_of_any_size(name: str) -> None:
    """Sides that no patch divides are filled up, and nothing is cut off."""
    network, features = small(name).eval(), small(name, num_classes=0, features_only=True).eval()
    for height, width in ((75, 101), (33, 64), (20, 7)):
        images = torch.randn(1, 3, height, width)
        maps = features(images)
        assert [tuple(x.shape[2:]) for x in maps] == [(-(-height // r), -(-width // r)) for r in (4, 8, 16, 32)]
        assert network(images).isfinite().all()
        changed = images.clone()
        changed[..., -1, -1] += 1
        assert not torch.equal(features(changed)[0], maps[0])


@pytest.mark.parametrize(
    "build",
    [
        partial(small, dynamic=NOWHERE, static="mlp", img_size=(32, 64)),
        partial(small, "container", static="mh_mlp", img_size=(32, 64)),
        partial(timm.create_model, "container_pam", num_classes=5, img_size=(32, 64), **PAM),
        partial(timm.create_model, "container_mh_mlp", num_classes=5, img_size=(32, 64), **PAM),
    ],
)
def test_matrices_are_of_one_size_of_images(build: Callable[[], nn.Module]) -> None:
    network = build().train()
    network(torch.randn(2, 3, 32, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    for height, width in ((64, 64), (64, 32), (32, 70)):
        with pytest.raises(Mistake, match=r"a static MLP affinity is of .* to the img_size that .*") as told:
            network(torch.randn(2, 3, height, width))
        assert "\n" not in str(told.value)


def aggregation(**options: Any) -> ContextAggregation:
    torch.manual_seed(0)
    return ContextAggregation(12, 3, **options)


def share_of_attention(layer: ContextAggregation) -> list[float]:
    assert layer.mixing is not None
    alpha, beta = layer.mixing.coefficients(torch.zeros(1))
    torch.testing.assert_close(alpha + beta, torch.ones_like(alpha))
    return alpha.tolist()


@torch.no_grad()
def test_a_mixture_lies_between_its_parts() -> None:
    """The same weights, mixed in every way: all attention, all convolution, and in between."""
    x, learned = torch.randn(2, 12, 6, 5), aggregation()
    state = learned.state_dict()
    del state["mixing.logit"]

    def fixed(share: float) -> Tensor:
        layer = aggregation(mixing=share)
        layer.load_state_dict(state)
        return layer(x)

    attention, convolution = fixed(1.0), fixed(0.0)
    assert not torch.allclose(attention, convolution, atol=1e-2)
    torch.testing.assert_close(learned(x), (attention + convolution) / 2)
    assert learned.mixing is not None
    assert learned.mixing.logit is not None
    learned.mixing.logit.fill_(1.0986123)
    assert share_of_attention(learned) == pytest.approx([0.75])
    torch.testing.assert_close(learned(x), 0.75 * attention + 0.25 * convolution)

    plain = aggregation(static="none")
    plain.load_state_dict({name: value for name, value in state.items() if not name.startswith("mixing")})
    torch.testing.assert_close(plain(x), attention)

    # Both parts run through one projection, which adds its bias once.
    bias = state["proj_out.bias"][:, None, None]
    total = aggregation(mixing="sum")
    total.load_state_dict(state)
    torch.testing.assert_close(total(x), attention + convolution - bias)
    scales = aggregation(mixing="scales")
    scales.load_state_dict(state | {"mixing.scale": torch.tensor([2.0, -1.0])})
    torch.testing.assert_close(scales(x) - bias, 2 * (attention - bias) - (convolution - bias))


@torch.no_grad()
def test_heads_mix_for_themselves() -> None:
    layer, x = aggregation(mixing="per_head"), torch.randn(2, 12, 4, 4)
    layer.proj_out.weight.copy_(torch.eye(12)[..., None, None])
    ends = []
    assert layer.mixing is not None
    assert layer.mixing.logit is not None
    for logit in (40.0, -40.0):
        layer.mixing.logit.fill_(logit)
        ends.append(layer(x))
    layer.mixing.logit.copy_(torch.tensor([40.0, -40.0, 40.0]))
    mixed = layer(x)
    for head, end in enumerate((0, 1, 0)):
        channels = slice(4 * head, 4 * head + 4)
        torch.testing.assert_close(mixed[:, channels], ends[end][:, channels])


@pytest.mark.parametrize("mixing", ["sigmoid", "per_head", "scales", "sum", 0.25])
def test_what_is_mixed_is_noted_by_layer(mixing: Any) -> None:
    network = small("container", mixing=mixing).eval()
    network(torch.randn(3, 3, 32, 32))
    noted = decisions.noted(network)
    assert list(noted) == [f"stages.{stage}.blocks.0.aggregation.mixing" for stage in range(4)]
    for decision in noted.values():
        assert (decision.kind, decision.names) == ("balance", ("dynamic", "static"))
        assert decision.values.shape == (3, 2 if mixing == "per_head" else 1, 2)
        start = [0.25, 0.75] if mixing == 0.25 else [1.0 if mixing == "sum" else 0.5] * 2
        assert (decision.values == torch.tensor(start)).all()


def test_coefficients_learn_and_do_not_decay() -> None:
    for mixing in ("sigmoid", "per_head", "scales"):
        network = small("container", mixing=mixing)
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        mixtures = [module for module in network.modules() if isinstance(module, Mixture)]
        own = {id(each) for module in mixtures for each in (module.logit, module.scale) if each is not None}
        assert len(own) == 4
        for group in parameter_groups(network, 1e-3, 0.05):
            for parameter in group["params"]:
                if id(parameter) in own:
                    assert group["weight_decay"] == 0
                    assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads divides the channels, 8, which 3 does not"),
        ({"static": "conv"}, "static is one of none, dw, mh_dw, mlp, mh_mlp, not 'conv'"),
        ({"static": "none"}, "an aggregation needs an affinity"),
        ({"kernel_size": 4}, "kernel_size is odd"),
        ({"mixing": "mean"}, "mixing is one of sigmoid, per_head, scales, sum or a number from 0 to 1, not 'mean'"),
        ({"mixing": 1.5}, "share of self-attention, from 0 to 1, not 1.5"),
        ({"depths": (1, 1, 1)}, "each stage has an entry in every list"),
    ],
)
def test_what_does_not_exist_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        small(**options)


@torch.no_grad()
def test_compiled_and_channels_last_it_is_the_same() -> None:
    network, images = small("container").eval(), torch.randn(2, 3, 32, 32)
    expected = network(images)
    torch.testing.assert_close(torch.compile(network, backend="eager", fullgraph=True)(images), expected)
    last = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected)


PYRAMID: dict[str, Any] = {"options": SMALL, "num_classes": 3, "fpn_chans": 32, "frozen_stages": 0}
QUERIES: dict[str, Any] = {
    "backbone_options": SMALL,
    "frozen_stages": 0,
    "num_classes": 3,
    "num_queries": 5,
    "hidden_dim": 16,
    "num_heads": 4,
    "feedforward_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
}
DETECTORS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "retinanet": (RetinaNet, PYRAMID | {"num_convs": 1, "output_norm": True}),
    "mask_rcnn": (MaskRCNN, PYRAMID | {"fc_dim": 8, "frozen_norm": False}),
    "detr": (DETR, QUERIES),
    "smca": (SMCA, QUERIES | {"frozen_norm": False}),
}


@pytest.mark.parametrize("host", DETECTORS)
def test_detectors_train_and_find_on_it(host: str) -> None:
    torch.manual_seed(0)
    build, options = DETECTORS[host]
    network = build(backbone="container_light", **options)
    image, mask = torch.rand(3, 70, 90), torch.zeros(1, 70, 90, dtype=torch.bool)
    mask[0, 8:40, 8:40] = True
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1]), "masks": mask}
    losses = network.train()([image], [target])
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    with torch.no_grad():
        (found,) = network.eval()([image])
    assert found["boxes"].shape[1:] == (4,)


def test_a_segmenter_trains_on_it() -> None:
    network = UperNet(3, "container_light", hidden_dim=8, aux_dim=8, options=SMALL)
    exits = network.train()(torch.randn(2, 3, 70, 90))
    assert [tuple(logits.shape) for logits in exits] == [(2, 3, 70, 90)] * 2
    sum(logits.square().mean() for logits in exits).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_dino_learns_with_it() -> None:
    network = DINO(small(num_classes=0), {"out_dim": 8, "hidden_dim": 8, "bottleneck_dim": 4}).train()
    loss = network([torch.rand(2, 4, 3, 32, 32), torch.rand(2, 4, 3, 20, 20)])
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.student.backbone.parameters())
    with torch.no_grad():
        assert network.eval()(torch.rand(4, 3, 32, 32)).shape == (4, 16)


@torch.no_grad()
def test_official_weights_know_which_blocks_attend() -> None:
    network = small("container_light").eval()
    official = LAYOUT.to_official(network.state_dict())
    assert {"blocks1.0.attn.weight", "blocks4.0.conv.weight", "blocks4.0.sa_weight"} <= official.keys()
    assert not {"blocks1.0.conv.weight", "blocks1.0.sa_weight", "blocks4.0.attn.weight"} & official.keys()
    other = small("container_light", drop_path_rate=0.1).eval()
    load(other, LAYOUT.to_ours(official))
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(other(images), network(images))
    # What was never published has no official names.
    for options in ({"mixing": "scales"}, {"static": "mh_dw"}):
        with pytest.raises(ValueError, match=r"(unknown|missing) .*aggregation"):
            LAYOUT.to_official(small(**options).state_dict())


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_is_fused(layout: torch.memory_format) -> None:
    """No matrix of all pairs of positions in memory: at stride 4 of 448 pixels one would take 10 GB."""
    images = torch.randn(1, 3, 64, 64).to(memory_format=layout)
    with flop_counter() as counter:
        small("container").eval().to(memory_format=layout)(images)
    operators = {str(operator) for operator in counter.get_flop_counts()["Global"]}
    assert not [operator for operator in operators if "bmm" in operator]
    assert [operator for operator in operators if "scaled_dot_product" in operator]


def plain(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """A training forward of a network of one block a stage, in official names, with every affinity as a matrix."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        scale, shift = (weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def conv(x: Tensor, name: str, **options: Any) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    for stage, patch in enumerate((4, 2, 2, 2), start=1):
        embed, block = f"patch_embed{stage}", f"blocks{stage}.0"
        x = conv(x, f"{embed}.proj", stride=patch).movedim(1, -1)
        parts = (weights[f"{embed}.norm.{part}"] for part in ("weight", "bias"))
        x = F.layer_norm(x, x.shape[-1:], *parts, 1e-5).movedim(-1, 1)
        chans = x.shape[1]
        x = x + conv(x, f"{block}.pos_embed", padding=1, groups=chans)
        y = conv(norm(x, f"{block}.norm1"), f"{block}.conv1")
        if f"{block}.sa_weight" in weights:
            query, key, value = (each.flatten(2).unflatten(1, (2, -1)) for each in y.chunk(3, 1))
            affinity = (query.mT @ key / (chans / 2) ** 0.5).softmax(-1)
            attended = (value @ affinity.mT).reshape(x.shape)
            eps = weights[f"{block}.sa_weight"].sigmoid()
            y = eps * attended + (1 - eps) * conv(y[:, -chans:], f"{block}.conv", padding=2, groups=chans)
        else:
            y = conv(y, f"{block}.attn", padding=2, groups=chans)
        x = x + conv(y, f"{block}.conv2")
        x = x + conv(F.gelu(conv(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return F.linear(norm(x, "norm").mean((2, 3)), weights["head.weight"], weights["head.bias"])


@pytest.mark.parametrize("name", ["container", "container_light"])
def test_a_step_of_training_is_that_of_plain_torch(name: str) -> None:
    network = small(name).double().train()
    state = {key: value.clone() for key, value in LAYOUT.to_official(network.state_dict()).items()}
    trained = {LAYOUT.official_name(key) for key, _ in network.named_parameters()}
    weights = {key: state[key].requires_grad_() for key in state if key in trained}
    images, labels = torch.randn(4, 3, 64, 96, dtype=torch.float64), torch.tensor([0, 3, 1, 4])

    loss = F.cross_entropy(network(images), labels)
    loss.backward()
    torch.optim.AdamW(parameter_groups(network, 1e-2, 0.05)).step()

    expected = F.cross_entropy(plain(weights, images), labels)
    expected.backward()
    flat = [value for value in weights.values() if value.ndim == 1]
    others = {"params": [value for value in weights.values() if value.ndim > 1], "weight_decay": 0.05}
    torch.optim.AdamW([{"params": flat, "weight_decay": 0.0}, others], lr=1e-2).step()

    torch.testing.assert_close(loss, expected)
    after = LAYOUT.to_official(network.state_dict())
    for key, value in weights.items():
        # Biases before a norm have a gradient of zero but for rounding, whose sign is all that Adam sees.
        if value.grad.abs().max() > 1e-12:
            torch.testing.assert_close(after[key], value.detach(), rtol=1e-6, atol=1e-8, msg=key)
