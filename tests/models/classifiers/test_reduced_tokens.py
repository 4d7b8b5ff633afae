"""Vision transformers that merge or drop tokens: what they compute, what it costs, and what they say of it."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.classifiers import merged_tokens, pruned_tokens, timm_classifier
from models.compute import count, executed, expected, static_macs
from models.decisions import noted
from models.layers.token_merging import Merged, MergingBlock, merge_targets
from models.mistakes import Mistake
from models.official import load

DIM, DEPTH, SIDE = 12, 4, 6
HOST: dict[str, Any] = {
    "name": "deit_tiny_patch16_224",
    "num_classes": 5,
    "options": {"img_size": 24, "patch_size": 4, "embed_dim": DIM, "depth": DEPTH, "num_heads": 3, "init_values": 0.5},
}
DISTILLED = HOST | {"name": "deit_tiny_distilled_patch16_224"}
MEAN = HOST | {"name": "vit_tiny_patch16_224", "options": HOST["options"] | {"global_pool": "avg"}}
PATCHES = SIDE * SIDE


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def host_and(make: Any, host: dict[str, Any] = HOST, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A host, and the same weights in a network that leaves tokens out."""
    torch.manual_seed(0)
    plain = timm_classifier(**host).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            # Tokens that differ more than those of fresh weights.
            parameter.mul_(3.0)
    reduced = make(**host, **options).eval()
    load(reduced, plain.state_dict())
    return plain, reduced


def branches(tokens: int, after: int | None = None) -> int:
    """Multiply-adds of a block, by hand: q, k, v and output, two products of attention, an MLP four times as wide."""
    return tokens * 4 * DIM**2 + 2 * tokens**2 * DIM + (tokens if after is None else after) * 8 * DIM**2


@torch.no_grad()
@pytest.mark.parametrize("host", [HOST, DISTILLED, MEAN])
def test_without_merges_it_is_the_host_exactly(host: dict[str, Any]) -> None:
    plain, reduced = host_and(merged_tokens, host, merges=0)
    assert reduced.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(reduced(images()), plain(images()))


@torch.no_grad()
def test_the_most_alike_tokens_are_merged() -> None:
    # The extra token is counted: of the others, those at 2, 4 and 6 look for a partner among those at 1, 3, 5 and 7.
    angles = torch.tensor([0.0, 0.0, 1.5, 3.0, 1.51, 1.5, 2.9, 4.5])
    keys = torch.stack([angles.cos(), angles.sin()], 1)[None] * torch.arange(1, 9)[:, None]
    # The two best pairs: 2 with 5 (the same), 4 with 5 (0.01 apart); 6 with 3 (0.1) stays.
    assert merge_targets(keys, 2, 1).tolist() == [[0, 2, 4, 3, 4, 4, 1, 5]]
    # With two extra tokens the first set begins at once.
    assert merge_targets(keys, 1, 2).tolist() == [[0, 1, 5, 4, 2, 5, 3, 6]]


@torch.no_grad()
@pytest.mark.parametrize("host", [HOST, DISTILLED])
def test_tokens_are_means_of_their_patches_and_count_as_many_times(host: dict[str, Any]) -> None:
    _, network = host_and(merged_tokens, host, merges=5)
    extra = network.num_prefix_tokens
    x = network._pos_embed(network.patch_embed(images()))
    first, second = network.blocks[0], network.blocks[1]
    assert isinstance(first, MergingBlock)
    assert isinstance(second, MergingBlock)
    tokens, merged = first(x, first_state(x, extra))
    assert tokens.shape[1] == extra + PATCHES - 5
    assert merged.sizes is not None
    assert merged.sizes.sum(1).tolist() == [extra + PATCHES] * 3
    assert (merged.sizes[:, :extra] == 1).all()
    attended, _ = first.attended(x)
    for i in range(3):
        for token in range(extra, tokens.shape[1]):
            members = (merged.token[i] == token).nonzero().squeeze(1) + extra
            assert len(members) == merged.sizes[i, token]
            mean = attended[i, members].mean(0)
            torch.testing.assert_close(tokens[i, token], first.fed(mean[None, None])[0, 0])
    # A token of s patches is s equal tokens to those that look at it.
    weighed, _ = second.attended(tokens, merged.sizes.log())
    for i in range(3):
        repeated = tokens[i].repeat_interleave(merged.sizes[i].long(), 0)
        firsts = merged.sizes[i].long().cumsum(0) - merged.sizes[i].long()
        torch.testing.assert_close(weighed[i], second.attended(repeated[None])[0][0, firsts])


def first_state(x: Tensor, extra: int) -> Any:
    return Merged(None, torch.arange(extra, x.shape[1]).expand(len(x), -1))


@torch.no_grad()
@pytest.mark.parametrize("merges", [3, [2, 0, 7, 1]])
def test_merging_saves_what_it_should(merges: int | list[int]) -> None:
    plain, network = host_and(merged_tokens, merges=merges)
    saved, tokens = executed(plain, images()).macs, 1 + PATCHES
    for number in [merges] * DEPTH if isinstance(merges, int) else merges:
        patches = tokens - 1
        # Keys of one head's width are compared between the two sets.
        likeness = (patches // 2) * (patches - patches // 2) * (DIM // 3) if number else 0
        saved += branches(tokens, tokens - number) + likeness - branches(1 + PATCHES)
        tokens -= number
    assert executed(network, images()).macs == saved < executed(plain, images()).macs
    sizes = noted(network)
    assert [decision.values.shape for decision in sizes.values()][-1] == (3, SIDE, SIDE)
    assert list(sizes)[-1] == "blocks.3"
    assert count(network.to("meta"), (3, 24, 24)).macs == saved


@torch.no_grad()
def test_each_image_is_merged_by_itself_and_at_most_to_half() -> None:
    _, network = host_and(merged_tokens, merges=1000)
    x = images()
    torch.testing.assert_close(torch.cat([network(image[None]) for image in x]), network(x))
    assert network.forward_features(x).shape[1] == 1 + 3  # 36, 18, 9, 5, 3


@torch.no_grad()
def test_the_mean_of_tokens_is_that_of_patches() -> None:
    _, network = host_and(merged_tokens, MEAN, merges=6)
    features = network.forward_features(images())
    assert features.shape[1] == network.num_prefix_tokens + PATCHES
    assert len(features[0].unique(dim=0)) <= network.num_prefix_tokens + PATCHES - 6 * DEPTH


@torch.no_grad()
def test_evaluation_drops_what_training_hides() -> None:
    plain, network = host_and(pruned_tokens, keep=0.5)
    lively(network)
    x = images()
    logits = network(x)
    # The choices of the evaluation as masks of a training without noise.
    chosen = {name: decision.values.flatten(1).float() for name, decision in noted(network).items()}
    assert [values.sum(1).tolist() for values in chosen.values()] == [[18.0] * 3, [9.0] * 3, [4.0] * 3]
    assert list(chosen) == ["blocks.1", "blocks.2", "blocks.3"]
    for name, values in chosen.items():
        block = network.get_submodule(name)
        block._drawn = masked(values)
    torch.testing.assert_close(network.train()(x), logits)
    assert not torch.allclose(plain(x), logits)
    network.eval()
    torch.testing.assert_close(torch.cat([network(image[None]) for image in x]), logits)


def lively(network: nn.Module) -> None:
    """Gives predictors scores that differ from token to token."""
    for name, parameter in network.named_parameters():
        if "predictor.outer" in name and name.endswith("weight"):
            nn.init.normal_(parameter)


def masked(mask: Tensor) -> Any:
    return lambda x, kept, scores: (x, kept._replace(mask=mask))


@torch.no_grad()
def test_dropping_saves_what_it_should() -> None:
    plain, network = host_and(pruned_tokens, keep=0.5)
    predictor = DIM**2 + DIM * (DIM // 2) + (DIM // 2) * (DIM // 4) + (DIM // 4) * 2
    rest = executed(plain, images()).macs - DEPTH * branches(1 + PATCHES)
    choices = [branches(1 + after) + predictor * before for before, after in ((36, 18), (18, 9), (9, 4))]
    static = rest + branches(1 + PATCHES)
    assert executed(network, images()).macs == static + sum(choices)
    network(images())
    said = expected(network, static)
    assert said.macs.tolist() == [static + sum(choices)] * 3
    assert said.planned == static + sum(choices)
    assert said.dense_macs == static + 3 * (branches(1 + PATCHES) + PATCHES * predictor)
    assert static_macs(network.to("meta"), (3, 24, 24)) == static


def test_a_training_is_told_how_much_it_keeps_and_learns_it() -> None:
    _, network = host_and(pruned_tokens, keep=0.5)
    network.train()
    torch.manual_seed(0)
    logits = network(images())
    masks = [decision.values.flatten(1).float() for decision in noted(network).values()]
    for earlier, later in pairwise(masks):
        assert (later <= earlier).all()
    said = expected(network, 0.0)
    predictor = 2 * DIM**2 - DIM**2 // 2 + DIM**2 // 8 + DIM // 2
    asked = [torch.full((3,), 36.0), *(mask.sum(1) for mask in masks[:-1])]
    kept = [1 + mask.sum(1) for mask in masks]
    by_hand = sum(12 * DIM**2 * n + 2 * n**2 * DIM + predictor * m for n, m in zip(kept, asked, strict=True))
    torch.testing.assert_close(said.macs, by_hand)
    for loss in (logits.square().sum(), said.macs.sum()):
        gradients = torch.autograd.grad(
            loss, [p for name, p in network.named_parameters() if "predictor" in name], retain_graph=True
        )
        assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_weights_of_the_host_start_a_training_without_predictors() -> None:
    plain, network = host_and(pruned_tokens, keep=0.7, places=[2])
    assert set(network.state_dict()) - set(plain.state_dict()) == {
        f"blocks.2.predictor.{name}"
        for name in (
            f"{layer}.{kind}"
            for layer in ("inner.0", "inner.1", "outer.0", "outer.2", "outer.4")
            for kind in ("weight", "bias")
        )
    }
    assert [type(block).__name__ for block in network.blocks] == ["Block", "Block", "PruningBlock", "PruningBlock"]


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (merged_tokens, {"name": "resnet18"}, "takes a vision transformer of timm's, such as deit_small.*not ResNet"),
        (merged_tokens, {"name": "deit_dge_s124_tiny_patch16_256"}, "block 0 of GrainedVision.* is GrainedBlock"),
        (merged_tokens, {"merges": [1, 2]}, r"one for each of the 4 blocks, not \[1, 2\]"),
        (merged_tokens, {"merges": -1}, "from 0 on"),
        (pruned_tokens, {"keep": 1.0}, "between 0 and 1, not 1.0"),
        (pruned_tokens, {"places": [4]}, r"blocks from 0 to 3, in order, not \[4\]"),
        (pruned_tokens, MEAN, "needs a class token for the classifier, not global_pool='avg'"),
    ],
)
def test_what_does_not_fit_is_said(make: Any, options: dict[str, Any], says: str) -> None:
    config = HOST | options
    if config["name"] == "resnet18":
        config = config | {"options": {}}
    if "dge" in config["name"]:
        config = config | {"options": {name: value for name, value in HOST["options"].items() if name != "init_values"}}
    with pytest.raises(Mistake, match=says):
        make(**config)


@pytest.mark.parametrize("make", [merged_tokens, pruned_tokens])
def test_there_are_no_maps_of_features(make: Any) -> None:
    network = make(**HOST)
    with pytest.raises(Mistake, match="no maps of features"):
        network.forward_intermediates(images())
