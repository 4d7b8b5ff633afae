"""Builders of the recorded methods of "Rethinking the Value of Network Pruning", on networks written out here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.pruning.counting import published_flops, scratch_b_epochs
from models.pruning.criteria import l2_norm
from models.pruning.masks import apply_masks, conv_weights, mask_gradients, rewound, sparse_std
from models.pruning.selection import magnitude_masks, slimming_mask, slimming_threshold
from models.pruning.sparsity import (
    add_sparsity_gradient,
    batch_norms,
    mask_norm_gradients,
    soft_prune,
    zero_channels,
)

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5


class DenseLayer(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.conv1 = nn.Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv1(self.relu(self.bn1(x)))], 1)


class Transition(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(self.relu(self.bn1(x))), 2)


class DenseNet(nn.Sequential):
    def __init__(self, depth: int, growthRate: int) -> None:
        layers, width = (depth - 4) // 3, 2 * growthRate
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        for stage in (1, 2, 3):
            block = [DenseLayer(width + i * growthRate, growthRate) for i in range(layers)]
            self.add_module(f"dense{stage}", nn.Sequential(*block))
            width += layers * growthRate
            if stage < 3:
                self.add_module(f"trans{stage}", Transition(width))
        self.bn, self.relu, self.pool = nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(8)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, 10)


class BasicBlock(nn.Module):
    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.narrow = in_chans != width
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1 + self.narrow, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.narrow:
            # The published shortcut has no gradient where it changes its width.
            half = F.avg_pool2d(x, 2).detach()
            x = torch.cat([half, half * 0], 1)
        return F.relu(x + y)


class ResNet(nn.Sequential):
    def __init__(self, depth: int) -> None:
        blocks, width = (depth - 2) // 6, 16
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        for stage, wide in enumerate((16, 32, 64), 1):
            layers = [BasicBlock(wide if i else width, wide) for i in range(blocks)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            width = wide
        self.pool, self.flatten, self.fc = nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10)


class SlimmedVGG(nn.Module):
    def __init__(self, cfg: list[int | str]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for entry in cfg:
            if isinstance(entry, int):
                layers += [nn.Conv2d(width, entry, 3, padding=1, bias=False), nn.BatchNorm2d(entry), nn.ReLU()]
                width = entry
            else:
                layers.append(nn.MaxPool2d(2))
        self.feature = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.avg_pool2d(self.feature(x), 2).flatten(1))


def unstructured(case: Case) -> dict[str, Tensor]:
    network = dense_net(case, "")
    full = published_flops(network, case.inputs["x"], non_zero=True)
    masks, threshold = magnitude_masks(conv_weights(network), case.config["percent"])
    apply_masks(network, masks)
    pruned = published_flops(network, case.inputs["x"], non_zero=True)
    results = {
        "out.threshold": threshold,
        "out.flops_full": torch.tensor(full),
        "out.flops_pruned": torch.tensor(pruned),
        "out.scratch_b_epochs": torch.tensor(scratch_b_epochs(160, full, pruned)),
        "out.logits_pruned": evaluated(network, case.inputs["x"]),
    }
    results |= {f"out.mask.{layer(name)}": mask for name, mask in masks.items()}
    results |= {f"out.init_std.{layer(name)}": torch.tensor(sparse_std(mask)) for name, mask in masks.items()}
    return results | steps(case, network, lambda: mask_gradients(network, masks))


def lottery_iterative(case: Case) -> dict[str, Tensor]:
    trained = dense_net(case, "trained.")
    results: dict[str, Tensor] = {}
    for number, percent in enumerate(case.config["percents"]):
        masks, threshold = magnitude_masks(conv_weights(trained), percent, of_survivors=True)
        apply_masks(trained, masks)
        results[f"out.threshold_round{number}"] = threshold
        results |= {f"out.mask_round{number}.{layer(name)}": mask for name, mask in masks.items()}
    network = dense_net(case, "init.")
    network.load_state_dict(rewound(network.state_dict(), masks))
    results["out.logits_rewound"] = evaluated(network, case.inputs["x"])
    results |= steps(case, network, lambda: mask_gradients(network, masks))
    # The record kept the rewound tensors themselves, not copies, and so what the steps made of them; that they were
    # rewound rightly shows in their logits.
    return results | {f"out.rewound.{name}": value for name, value in network.state_dict().items()}


def soft_filter_pruning(case: Case) -> dict[str, Tensor]:
    network = ResNet(case.config["depth"])
    load(network, case.state)
    results: dict[str, Tensor] = {}
    masks = soft_prune(conv_weights(network), case.config["rate"])
    results |= {f"out.mask0.{layer(name)}": mask for name, mask in masks.items()}
    results["out.logits0"] = evaluated(network, case.inputs["x"])
    results |= steps(case, network, lambda: None, nesterov=True)
    results |= {f"out.before_mask1.{name}": value.clone() for name, value in network.state_dict().items()}
    masks = soft_prune(conv_weights(network), case.config["rate"])
    assert all(torch.equal(mask, l2_norm(network.get_parameter(name)) > 0) for name, mask in masks.items())
    results |= {f"out.mask1.{layer(name)}": mask for name, mask in masks.items()}
    results |= {f"out.param.{name}": value.clone() for name, value in network.state_dict().items()}
    results["out.logits1"] = evaluated(network, case.inputs["x"])
    return results


def slimming_sparsity_step(case: Case) -> dict[str, Tensor]:
    network = SlimmedVGG(case.config["cfg"])
    load(network, case.state)
    gammas = {f"{name}.weight": norm.weight for name, norm in batch_norms(network).items()}
    results: dict[str, Tensor] = {}

    def penalise() -> None:
        first = {f"out.g_before.{name}": gamma.grad.clone() for name, gamma in gammas.items()}
        add_sparsity_gradient(gammas.values(), case.config["s"])
        first |= {f"out.g_after.{name}": gamma.grad.clone() for name, gamma in gammas.items()}
        results.update(first | results)

    return results | steps(case, network, penalise, batches="x") | results


def slimming_mask_impl(case: Case) -> dict[str, Tensor]:
    a, b = case.config["a"], case.config["b"]
    holder = nn.ModuleDict({"bn2d_a": nn.BatchNorm2d(a), "bn2d_b": nn.BatchNorm2d(b), "bn1d": nn.BatchNorm1d(b)})
    holder["fc"] = nn.Linear(b, len(case.state["fc.bias"]))
    load(holder, case.state)
    norms = list(batch_norms(holder, one_dimensional=True).values())
    threshold = slimming_threshold([norm.weight for norm in norms], case.config["percent"])
    masks = [slimming_mask(norm.weight, threshold) for norm in norms]
    for norm, mask in zip(norms, masks, strict=True):
        zero_channels(norm, mask)
    for name, parameter in holder.named_parameters():
        parameter.grad = case.inputs[f"g.{name}"].clone()
    mask_norm_gradients(norms, masks)
    after = {f"out.g_after.{name}": parameter.grad.clone() for name, parameter in holder.named_parameters()}
    optimiser = torch.optim.SGD(holder.parameters(), case.config["lr"], 0.9, weight_decay=case.config["weight_decay"])
    optimiser.step()
    return (
        {"out.threshold": threshold, "out.cfg": torch.stack([mask.sum() for mask in masks])}
        | {f"out.mask{i}": mask for i, mask in enumerate(masks)}
        | after
        | {f"out.param.{name}": value for name, value in holder.state_dict().items()}
    )


def dense_net(case: Case, prefix: str) -> nn.Module:
    network = DenseNet(**case.config["model"])
    load(network, {k.removeprefix(prefix): v for k, v in case.state.items() if k.startswith(prefix)})
    return network


def load(network: nn.Module, state: dict[str, Tensor]) -> None:
    keys = network.load_state_dict(state, strict=False)
    assert not keys.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in keys.missing_keys)


def layer(name: str) -> str:
    return name.removesuffix(".weight")


def evaluated(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(images)


def steps(
    case: Case, network: nn.Module, before_step: Callable[[], None], nesterov: bool = False, batches: str = "x_train"
) -> dict[str, Tensor]:
    config = case.config
    optimiser = torch.optim.SGD(
        network.parameters(), config["lr"], 0.9, weight_decay=config["weight_decay"], nesterov=nesterov
    )
    network.train()
    losses = []
    for images, target in zip(case.inputs[batches], case.inputs["target"], strict=True):
        loss = F.cross_entropy(network(images), target)
        optimiser.zero_grad()
        loss.backward()
        before_step()
        optimiser.step()
        losses.append(loss.detach())
    return {"out.loss": torch.stack(losses)} | {
        f"out.param.{name}": value.clone() for name, value in network.state_dict().items()
    }


CASES: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    build.__name__: build
    for build in (
        unstructured,
        lottery_iterative,
        soft_filter_pruning,
        slimming_sparsity_step,
        slimming_mask_impl,
    )
}
