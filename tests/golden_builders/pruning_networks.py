"""Builders of the recorded networks of "Rethinking the Value of Network Pruning", dense and pruned."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.models.resnet import Bottleneck, downsample_conv
from torch import Tensor, nn

from models import official
from models.backbones.resnet_pruned import narrow
from models.classifiers import VGG, CIFARDenseNet, CIFARResNet, PreActResNet
from models.layers.channel_selection import ChannelSelection
from models.official import pruned_regression, pruned_resnet, pruned_vgg, slimmed
from models.pruning.counting import published_flops, scratch_b_epochs
from models.pruning.criteria import l1_norm
from models.pruning.masks import rewound
from models.pruning.norm_channels import kept_widths, norm_plan
from models.pruning.plan import Plan
from models.pruning.removal import remove
from models.pruning.selection import keep_largest, kept_count, slimming_mask, slimming_threshold
from models.pruning.sparsity import batch_norms, zero_channels

if TYPE_CHECKING:
    from models.official import Layout
    from tests.library.golden import Case

TOLERANCE = 1e-5
# That the published networks are trained for.
EPOCHS = 160


def l1_vgg(case: Case) -> dict[str, Tensor]:
    config = case.config
    network = vgg(case, hidden=hidden_width(case.state))
    kept = largest(network, [width for width in config["target_cfg"] if width != "M"])
    smaller = pruned_copy(network, norm_plan(network, kept))
    load_into(VGG(config["target_cfg"], classes(case), hidden_width(case.state)), smaller.state_dict())
    return pruned(case, pruned_vgg.LAYOUT, network, smaller) | masks(kept)


def l1_resnet(case: Case) -> dict[str, Tensor]:
    config = case.config
    network = CIFARResNet(config["depth"], num_classes=classes(case), detached_shortcuts=True).eval()
    official.load(network, pruned_resnet.LAYOUT.to_ours(case.state))
    places = network.norm_channels()
    counts = []
    for i, place in enumerate(places):
        width = len(network.get_parameter(f"{place.norm}.weight"))
        # The stem is the first convolution, and those of a block are two.
        number = 2 + 2 * i
        stage = sum(number > bound for bound in config["stage_bounds"])
        counts.append(width if number in config["skip"] else kept_count(width, config["prune_prob"][stage]))
    kept = largest(network, counts)
    smaller = pruned_copy(network, norm_plan(network, kept))
    load_into(CIFARResNet(config["depth"], counts, classes(case)), smaller.state_dict())
    results = pruned(case, pruned_resnet.LAYOUT, network, smaller) | masks(kept)
    loss = F.cross_entropy(network.train()(case.inputs["x"]), case.inputs["target"])
    loss.backward()
    results |= {
        f"grad.{pruned_resnet.LAYOUT.official_name(name)}": parameter.grad
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    return results | {"out.loss_train": loss, "out.cfg": torch.tensor(kept_widths(network, kept))}


def slimming_vgg(case: Case) -> dict[str, Tensor]:
    network = vgg(case)
    smaller, results = slimmed_results(case, pruned_vgg.LAYOUT, network)
    # The widths alone, with the halvings in between, say what the smaller network is.
    widths = iter(results["out.cfg"].tolist())
    load_into(
        VGG([width if width == "M" else next(widths) for width in case.config["cfg"]], classes(case)),
        smaller.state_dict(),
    )
    return results


def slimming_preresnet(case: Case) -> dict[str, Tensor]:
    network = PreActResNet(case.config["depth"], num_classes=classes(case)).eval()
    official.load(network, slimmed.LAYOUT.to_ours(case.state))
    smaller, results = slimmed_results(case, slimmed.LAYOUT, network)
    widths = results["out.cfg"].tolist()
    load_into(PreActResNet(case.config["depth"], widths, classes(case)), smaller.state_dict())
    return results


def slimming_densenet(case: Case) -> dict[str, Tensor]:
    growth = len(case.state["dense1.0.conv1.weight"])
    network = CIFARDenseNet(case.config["depth"], growth, case.config["cfg"], classes(case)).eval()
    official.load(network, slimmed.LAYOUT.to_ours(case.state))
    smaller, results = slimmed_results(case, slimmed.LAYOUT, network)
    widths = results["out.cfg"].tolist()
    load_into(CIFARDenseNet(case.config["depth"], growth, widths, classes(case)), smaller.state_dict())
    return results


def lottery_structured(case: Case) -> dict[str, Tensor]:
    layout = pruned_vgg.LAYOUT
    initial = {name.removeprefix("init."): value for name, value in case.state.items() if name.startswith("init.")}
    trained = {layout.our_name(name.removeprefix("trained.")): value for name, value in case.state.items()}
    network = VGG(case.config["cfg"], len(initial["classifier.3.bias"]), hidden_width(initial)).eval()
    sign = {"large": 1, "small": -1}[case.config["prune"]]
    counts = [width for width in case.config["target_cfg"] if width != "M"]
    kept, filters = {}, {}
    for place, count in zip(network.norm_channels(), counts, strict=True):
        name = f"{place.writer}.weight"
        mask = torch.zeros(len(trained[name]), dtype=torch.bool)
        mask[keep_largest(sign * l1_norm(trained[name]), count)] = True
        kept[place.norm], filters[name] = mask, mask[:, None, None, None]
    ticket = rewound(layout.to_ours(initial), filters)
    official.load(network, ticket)
    results = {f"out.rewound.{name}": value for name, value in layout.to_official(ticket).items()}
    return results | masks(kept) | {"out.logits_rewound": network(case.inputs["x"])}


def channel_selection_block(case: Case) -> dict[str, Tensor]:
    config = case.config
    inputs, outputs = config["inplanes"], 4 * config["planes"]
    downsample = downsample_conv(inputs, outputs, 1, config["stride"]) if config["downsample"] else None
    if downsample is not None:
        downsample[0] = nn.Conv2d(inputs, outputs, 1, config["stride"])  # type: ignore[index]
    block = Bottleneck(inputs, config["planes"], config["stride"], downsample)
    narrow(block, config["cfg"])
    block.eval()
    layout = pruned_regression.LAYOUT
    ours = {layout.our_name(f"layer1.0.{name}").removeprefix("layer1.0."): v for name, v in case.state.items()}
    block.load_state_dict(ours)
    return {
        "out.y": block(case.inputs["x"]),
        "out.selected": block.conv1.select.positions,  # type: ignore[union-attr]
    }


def vgg(case: Case, hidden: int = 0) -> VGG:
    network = VGG(case.config["cfg"], classes(case), hidden).eval()
    official.load(network, pruned_vgg.LAYOUT.to_ours(case.state))
    return network


def classes(case: Case) -> int:
    return case.shapes["out.logits_full"][-1]


def hidden_width(state: Mapping[str, Tensor]) -> int:
    return len(state["classifier.0.weight"])


def largest(network: nn.Module, counts: list[int]) -> dict[str, Tensor]:
    """Of each norm, the channels whose filters are largest."""
    kept = {}
    for place, count in zip(network.norm_channels(), counts, strict=True):  # type: ignore[operator]
        scores = l1_norm(network.get_parameter(f"{place.writer}.weight"))
        kept[place.norm] = torch.zeros(len(scores), dtype=torch.bool)
        kept[place.norm][keep_largest(scores, count)] = True
    return kept


def slimmed_results(case: Case, layout: Layout, network: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    norms = {place.norm: network.get_submodule(place.norm) for place in network.norm_channels()}  # type: ignore[operator]
    assert set(norms) == set(batch_norms(network))
    gammas = {name: norm.get_parameter("weight") for name, norm in norms.items()}
    threshold = slimming_threshold(list(gammas.values()), case.config["percent"])
    kept = {name: slimming_mask(gamma, threshold) for name, gamma in gammas.items()}
    full = published_flops(network, case.inputs["x"]), count(network), network(case.inputs["x"])
    for name, norm in norms.items():
        zero_channels(norm, kept[name])
    smaller = pruned_copy(network, norm_plan(network, kept))
    results = pruned(case, layout, network, smaller) | masks(kept)
    results |= {
        "out.threshold": threshold,
        "out.cfg": torch.tensor(kept_widths(network, kept)),
        "out.logits_masked": network(case.inputs["x"]),
    }
    names = ("out.flops_full", "out.params_full", "out.logits_full")
    return smaller, results | {name: torch.as_tensor(value) for name, value in zip(names, full, strict=True)}


def pruned(case: Case, layout: Layout, network: nn.Module, smaller: nn.Module) -> dict[str, Tensor]:
    """What the dense and the physically pruned network answer and cost, and the weights of the second."""
    images = case.inputs["x"]
    weights = {f"out.pruned.{name}": value for name, value in layout.to_official(smaller.state_dict()).items()}
    full, less = published_flops(network, images), published_flops(smaller, images)
    return {
        "out.logits_full": network(images),
        "out.logits_pruned": smaller(images),
        "out.flops_full": torch.tensor(full),
        "out.flops_pruned": torch.tensor(less),
        "out.params_full": torch.tensor(count(network)),
        "out.params_pruned": torch.tensor(count(smaller)),
        "out.scratch_b_epochs": torch.tensor(scratch_b_epochs(EPOCHS, full, less)),
        # Of some of them the first filters are recorded.
        **{name: value[: case.shapes[name][0]] for name, value in weights.items() if name in case.shapes},
    }


def pruned_copy(network: nn.Module, plan: Plan) -> nn.Module:
    smaller = copy.deepcopy(network)
    remove(smaller, plan)
    return smaller


def count(network: nn.Module) -> int:
    """Parameters, and the selections that are parameters in the published code."""
    selections = [module.indexes for module in network.modules() if isinstance(module, ChannelSelection)]
    return sum(value.numel() for value in [*network.parameters(), *selections])


def masks(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"out.mask{i}": mask for i, mask in enumerate(kept.values())}


def load_into(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """A network built at the smaller widths has a place for everything."""
    official.load(network, state)


CASES = {
    "l1_vgg": l1_vgg,
    "l1_resnet": l1_resnet,
    "slimming_vgg": slimming_vgg,
    "slimming_preresnet": slimming_preresnet,
    "slimming_densenet": slimming_densenet,
    "lottery_structured": lottery_structured,
    "channel_selection_block": channel_selection_block,
}
