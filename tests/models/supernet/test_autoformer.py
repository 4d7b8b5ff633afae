"""AutoFormer's networks and super networks: published sizes, shared weights, extraction."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.autoformer import SEARCHED
from models.compute import count, parameter_count
from models.layers.relative_position import distances
from models.mistakes import Mistake
from models.official import load
from models.official.autoformer import LAYOUT
from models.supernet import Searchable, TransformerSpace, autoformer_supernet, chosen
from models.supernet.entangled import EntangledQKV

SPACE = TransformerSpace([1, 2, 3], [8, 10, 12], [1, 2, 3], [2, 3.5])
SIZES: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "num_classes": 5,
    "head_dim": 4,
    "max_relative_position": 2,
}
# Super width, depths, widths, heads, ratios; parameters of the super network; parameters in M and multiply-adds in G of
# the smallest and the largest architecture; official complexity in G, parameters and multiply-adds of the searched one.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "tiny": (
        *(256, [12, 13, 14], [192, 216, 240], [3, 4], [3.5, 4]),
        *(11_669_224, (5.366, 1.345), (10.517, 2.541), 1.3440, 5_867_944, 1.4819),
    ),
    "small": (
        *(448, [12, 13, 14], [320, 384, 448], [5, 6, 7], [3, 3.5, 4]),
        *(34_790_440, (13.057, 3.065), (34.790, 7.684), 4.8921, 22_891_432, 5.1614),
    ),
    "base": (
        *(640, [14, 15, 16], [528, 576, 624], [9, 10], [3, 3.5, 4]),
        *(80_160_360, (41.688, 9.300), (76.882, 16.538), 11.2369, 53_691_688, 11.6912),
    ),
}
PLAIN = {"tiny": (5_768_104, 1.2832), "small": (22_791_592, 4.7739), "base": (53_584_168, 11.0454)}
KINDS: dict[str, dict[str, Any]] = {
    "official": {},
    "interleaved": {"qkv_bias_slicing": "interleaved"},
    "wide": {"embed_dim": 16},
    "classic": {"sharing": "classic"},
    "absolute": {"relative_position": False},
}


def supernet(kind: str = "official", space: TransformerSpace = SPACE, **options: Any) -> Any:
    """With weights of which no two are equal, biases included."""
    network = autoformer_supernet(space, **SIZES | KINDS[kind] | options)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return network.eval()


def drawn(number: int) -> list[tuple[Any, ...]]:
    random = Random(0)
    return [SPACE.smallest(), SPACE.largest(), *(SPACE.draw(random) for _ in range(number))]


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_are_the_published_ones(size: str) -> None:
    dim, depths, widths, heads, ratios, of_super, smallest, largest, official, params, macs = PUBLISHED[size]
    with torch.device("meta"):
        network = autoformer_supernet(TransformerSpace(depths, widths, heads, ratios), embed_dim=dim)
    assert parameter_count(network) == of_super
    for architecture, (millions, giga) in ((network.space.smallest(), smallest), (network.space.largest(), largest)):
        found = network.cost(architecture)
        assert found["params"] / 1e6 == pytest.approx(millions, abs=5.1e-4)
        assert found["multiply_adds"] / 1e9 == pytest.approx(giga, abs=5.1e-4)
    searched = SEARCHED[size]
    # The one of the first space has a ratio that its own list lacks.
    network.space = TransformerSpace(depths, widths, heads, sorted({*ratios, *searched["mlp_ratios"]}))
    architecture = (len(searched["num_heads"]), *searched["mlp_ratios"], *searched["num_heads"], searched["embed_dim"])
    found = network.cost(architecture)
    assert (found["params"], round(found["multiply_adds"] / 1e9, 4)) == (params, macs)
    assert found["complexity_official"] / 1e9 == pytest.approx(official, abs=5.1e-5)
    with torch.device("meta"):
        alone = timm.create_model(f"autoformer_{size}_patch16_224")
        absolute = timm.create_model(f"autoformer_{size}_patch16_224", relative_position=False)
    extracted = network.extracted(architecture)
    shapes = {name: value.shape for name, value in extracted.state_dict().items()}
    assert shapes == {name: value.shape for name, value in alone.state_dict().items()}
    counted = count(alone)
    assert (counted.params, counted.macs) == (params, found["multiply_adds"])
    counted = count(absolute)
    assert (counted.params, round(counted.macs / 1e9, 4)) == PLAIN[size]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_extracted_computes_the_same_bit_by_bit(kind: str) -> None:
    network, images = supernet(kind), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert isinstance(network, Searchable)
    names, seen = set(network.state_dict()), []
    for architecture in drawn(2):
        plain = network.extracted(architecture)
        assert type(plain).__name__ == "AutoFormer"
        assert all(parameter.requires_grad for parameter in plain.parameters())
        assert network.cost(architecture)["params"] == parameter_count(plain)
        network.choose(architecture)
        logits = network(images)
        assert torch.equal(logits, plain.eval()(images))
        seen.append(logits)
        # An extraction in between changes nothing, and what was chosen is no weight.
        network.extracted(SPACE.smallest())
        assert torch.equal(network(images), logits)
    macs = {count(each, (3, 16, 16)).macs for each in (network, plain)}
    assert macs == {network.cost(architecture)["multiply_adds"]}
    assert set(network.state_dict()) == names
    assert all(not torch.equal(seen[0], each) for each in seen[1:])


def test_inherited_weights_are_copies() -> None:
    network, images = supernet(), torch.randn(1, 3, 16, 16)
    plain = network.extracted(SPACE.largest()).eval()
    before = plain(images)
    for parameter in network.parameters():
        parameter.data.zero_()
    assert torch.equal(plain(images), before)


def test_a_step_is_that_of_the_plain_network() -> None:
    """Of the shared weights, those that an architecture has get the plain network's gradients, and others none."""
    network, architecture = supernet().train(), (2, 2, 3.5, 3, 1, 10)
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    plain = network.extracted(architecture).train()
    network.choose(architecture)
    for each in (network, plain):
        F.cross_entropy(each(images), labels).backward()
    own, theirs = dict(network.named_parameters()), dict(plain.named_parameters())
    assert {name for name, value in own.items() if value.grad is None} == set(own) - set(theirs)
    for name, value in theirs.items():
        assert value.grad is not None
        grad = own[name].grad
        assert grad is not None
        # Every element of the plain network's gradient is one of the shared weight, wherever it is.
        torch.testing.assert_close(grad.sum(), value.grad.sum(), rtol=1e-4, atol=1e-5)
        assert grad.count_nonzero() == value.grad.count_nonzero() <= value.numel()


def test_slices_of_queries_keys_and_values() -> None:
    weight = torch.arange(18.0)[:, None].expand(18, 4).contiguous()
    for slicing, bias in (("official", [0, 1, 2, 3, 4, 5]), ("interleaved", [0, 1, 6, 7, 12, 13])):
        layer = EntangledQKV(4, 6, bias_slicing=slicing)  # type: ignore[arg-type]
        layer.load_state_dict({"weight": weight, "bias": torch.arange(18.0)})
        layer.choose(3, 6)
        found = layer.part()
        assert found[0].tolist() == [[row] * 3 for row in (0, 1, 6, 7, 12, 13)]
        assert found[1].tolist() == bias  # type: ignore[union-attr]


def test_official_rows_take_turns() -> None:
    network = supernet()
    official = LAYOUT.to_official(network.state_dict())
    rows, theirs = network.blocks[0].attn.qkv.weight, official["blocks.0.attn.qkv.weight"]
    assert torch.equal(theirs[0::3], rows[:12])
    assert torch.equal(theirs[1::3], rows[12:24])
    other = autoformer_supernet(SPACE, **SIZES).eval()
    load(other, LAYOUT.to_ours({"model": official}))
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(other(images), network(images))


def test_options_follow_from_weights() -> None:
    for architecture in drawn(1):
        plain = supernet().extracted(architecture)
        assert LAYOUT.options is not None
        options = LAYOUT.options(plain.state_dict())
        again = timm.create_model("autoformer_tiny_patch16_224", num_classes=5, **options)
        load(again, plain.state_dict())
        described = SPACE.described(architecture)
        assert (options["mlp_ratios"], options["num_heads"]) == (described["ratios"], described["heads"])


def test_choosing_in_a_config() -> None:
    described = {"depth": 2, "ratios": [2, 3.5], "heads": [3, 1], "width": 10}
    network = chosen(autoformer_supernet(SPACE, **SIZES), described)
    assert network(torch.randn(1, 3, 16, 16)).shape == (1, 5)
    with pytest.raises(Mistake, match=r"heads of layer 2 is 4, but this space has 1, 2 or 3"):
        chosen(autoformer_supernet(SPACE, **SIZES), described | {"heads": [3, 4]})


def test_what_cannot_be() -> None:
    with pytest.raises(
        Mistake, match=r"embed_dim 8 has no room for a width of 12 and 3 heads of 4: .* embed_dim of 12"
    ):
        autoformer_supernet(SPACE, embed_dim=8, **SIZES)
    with pytest.raises(Mistake, match="not 'half' and 'official'"):
        autoformer_supernet(SPACE, sharing="half", **SIZES)  # type: ignore[arg-type]
    with pytest.raises(Mistake, match="num_heads has 2 layers, mlp_ratios has 1"):
        timm.create_model("autoformer_tiny_patch16_224", num_heads=(1, 2), mlp_ratios=(2,))


def test_classic_sharing_shares_equal_choices_only() -> None:
    network = supernet("classic")
    network.choose((2, 2, 2, 1, 1, 8))
    network(torch.randn(1, 3, 16, 16)).sum().backward()
    moved = {name.rpartition(".")[0][:15] for name, value in network.named_parameters() if value.grad is not None}
    assert {name for name in moved if name.startswith("layers")} == {"layers.0.8_1_2.", "layers.1.8_1_2."}
    assert {name for name in moved if name.startswith("frames")} >= {"frames.8", "frames.8.patch_"}


@pytest.mark.parametrize("size", [(16, 16), (21, 34)])
def test_relative_positions_against_their_definition(size: tuple[int, int]) -> None:
    """Any size of images, sides that patches do not divide included."""
    torch.manual_seed(0)
    network = timm.create_model(
        *("autoformer_tiny_patch16_224",),
        **SIZES | {"embed_dim": 8, "num_heads": (2,), "mlp_ratios": (2,), "in_chans": 3},
    ).eval()
    seen: list[tuple[Tensor, Tensor]] = []
    block: nn.Module = network.blocks[0]
    block.attn.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))  # type: ignore[operator, union-attr]
    assert network(torch.randn(1, 3, *size)).shape == (1, 5)
    attention: Any = block.attn
    x, found = seen[0][0][0], seen[0][1][0]
    rows, columns = (-(-side // 4) for side in size)
    places = [None, *((i // columns, i % columns) for i in range(rows * columns))]
    tables = {
        kind: (
            getattr(attention, f"rel_pos_embed_{kind}").embeddings_table_v,
            getattr(attention, f"rel_pos_embed_{kind}").embeddings_table_h,
        )
        for kind in "kv"
    }

    def relative(kind: str, i: int, j: int) -> Tensor:
        one, other = places[i], places[j]
        down = across = 0
        if one is not None and other is not None:
            down, across = (max(-2, min(2, b - a)) + 3 for a, b in zip(one, other, strict=True))
        return tables[kind][0][down] + tables[kind][1][across]

    queries, keys, values = attention.qkv(x).unflatten(1, (3, 2, 4)).permute(1, 2, 0, 3)
    tokens = len(places)
    of_keys = torch.stack([torch.stack([relative("k", i, j) for j in range(tokens)]) for i in range(tokens)])
    of_values = torch.stack([torch.stack([relative("v", i, j) for j in range(tokens)]) for i in range(tokens)])
    heads = []
    for q, k, v in zip(queries, keys, values, strict=True):
        shares = ((q @ k.T + (q[:, None] * of_keys).sum(2)) / 2).softmax(1)
        heads.append(shares @ v + (shares[..., None] * of_values).sum(1))
    torch.testing.assert_close(attention.proj(torch.cat(heads, 1)), found)


def test_distances_of_no_place_are_row_zero() -> None:
    vertical, horizontal = distances((2, 3), 1, 14, torch.device("cpu"))
    assert vertical[0].tolist() == vertical[:, 0].tolist() == [0] * 7
    assert vertical[1].tolist() == [0, 15, 15, 15, 16, 16, 16]
    assert horizontal[2].tolist() == [0, 14, 15, 16, 14, 15, 16]


@pytest.mark.parametrize("kind", ["official", "classic", "absolute"])
def test_pieces_add_up_to_the_network(kind: str) -> None:
    """By multiply-adds, as a table of latencies adds up what each was measured to take."""
    network, architecture = supernet(kind), (3, 2, 3.5, 2, 3, 1, 3, 10)
    pieces = network.pieces(architecture)
    assert pieces == {"frame 10": 1, "layer 10 3 20": 2, "layer 10 1 35": 1}
    total = 0.0
    for name, times in pieces.items():
        piece, inputs = network.piece(name, torch.zeros(1, 3, 16, 16))
        total += times * count(piece, inputs=inputs).macs
    assert total == network.cost(architecture)["multiply_adds"]
