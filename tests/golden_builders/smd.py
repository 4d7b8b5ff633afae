"""Builders of the recorded cases of Spherical Motion Dynamics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.spherical_motion import (
    Setting,
    angular_update,
    block_dot,
    equilibrium_angle,
    equilibrium_norm,
    rescaling,
    tangential_update,
    unit_gradient,
)

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5
# Weights that a norm follows stand across their gradients: zero but for the epsilon of the norm and rounding.
ZERO = {"out.cos_filter": 3e-5, "out.cos": 1e-4}
CONVS = ("conv1", "conv2")


class Net(nn.Module):
    """The recorded network: two convolutions with a norm each, mean pooling and a classifier."""

    def __init__(self, config: dict[str, Any], in_chans: int) -> None:
        super().__init__()
        a, b = config["a"], config["b"]
        self.conv1 = nn.Conv2d(in_chans, a, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(a)
        self.conv2 = nn.Conv2d(a, b, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(b) if config.get("norm2", "bn") == "bn" else nn.GroupNorm(2, b)
        self.fc = nn.Linear(b, config["k"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return self.fc(x.mean((2, 3)))


def net(case: Case, in_chans: int) -> Net:
    network = Net(case.config, in_chans)
    network.load_state_dict(case.state)
    return network.train()


def angle_measure(case: Case) -> dict[str, Tensor]:
    results = {}
    for conv in CONVS:
        # An angle is measured of the weights as they are, in the precision that is asked for.
        before, after = (case.state[f"{when}.{conv}.weight"].double() for when in ("before", "after"))
        for unit, blocks in (("layer", 1), ("filter", len(before))):
            shape = case.shapes[f"out.{unit}.{conv}"]
            results[f"out.{unit}.{conv}"] = angular_update(before, after, blocks).reshape(shape)
            name = "norm" if unit == "layer" else "filter_norm"
            norms = block_dot([before], [before], blocks).sqrt()
            results[f"out.{name}.{conv}"] = norms.reshape(case.shapes[f"out.{name}.{conv}"])
    return results


def scale_invariance(case: Case) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    for name, scale in (("", 1.0), ("_scaled", case.config["scale"])):
        network = net(case, case.config["shape"][1])
        network.conv1.weight.data *= scale
        weight = network.conv1.weight
        loss = F.cross_entropy(network(case.inputs["x"]), case.inputs["target"])
        (gradient,) = torch.autograd.grad(loss, [weight])
        results |= {f"out.loss{name}": loss, f"out.g1{name}": gradient}
        results[f"out.unit_grad_norm{name}"] = unit_gradient(weight, gradient)[0]
        if not scale > 1:
            blocks = len(weight)
            product = block_dot([weight], [gradient], blocks).abs()
            results["out.cos_filter"] = product / unit_gradient(weight, gradient, blocks)
    return results


def angular_sgd(case: Case) -> dict[str, Tensor]:
    config = case.config
    network = net(case, case.inputs["x"].shape[2])
    options = {"momentum": config["momentum"], "weight_decay": config["weight_decay"], "nesterov": config["nesterov"]}
    optimizer = torch.optim.SGD(network.parameters(), lr=config["lr"][0], **options)
    weights = [getattr(network, conv).weight for conv in CONVS]
    rows: dict[str, list[Tensor]] = {name: [] for name in ("w_n", "g_n", "d_n", "cos", "au", "angle_exact", "loss")}
    for step, lr in enumerate(config["lr"]):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = F.cross_entropy(network(case.inputs["x"][step]), case.inputs["target"][step])
        loss.backward()
        before = [weight.detach().clone() for weight in weights]
        gradients = [weight.grad.clone() for weight in weights]  # type: ignore[union-attr]
        optimizer.step()
        buffers = [optimizer.state[weight]["momentum_buffer"] for weight in weights]
        found = {
            "w_n": [w.norm() for w in before],
            "g_n": [g.norm() for g in gradients],
            "d_n": [v.norm() for v in buffers],
            "cos": [(w * g).sum() / (w.norm() * g.norm() + 1e-5) for w, g in zip(before, gradients, strict=True)],
            "au": [tangential_update(w, v, lr) for w, v in zip(before, buffers, strict=True)],
            "angle_exact": [angular_update(w, now)[0] for w, now in zip(before, weights, strict=True)],
        }
        for name, values in found.items():
            rows[name].append(torch.stack(values))
        rows["loss"].append(loss.detach())
    parameters = {f"out.param.{name}": value for name, value in network.named_parameters()}
    return {f"out.{name}": torch.stack(values) for name, values in rows.items()} | parameters


def equilibrium(case: Case) -> dict[str, Tensor]:
    config, results = case.config, dict[str, Tensor]()
    eta, decay, alpha, steps = (config[name] for name in ("eta", "lam", "alpha", "steps"))
    setting = Setting("sgdm" if alpha else "sgd", eta, decay, alpha)
    for variant in ("plain", "rescaled"):
        weight = nn.Parameter(case.inputs["w0"].clone())
        optimizer = torch.optim.SGD([weight], lr=eta, momentum=alpha, weight_decay=decay)
        rows: dict[str, list[Tensor]] = {name: [] for name in ("norm", "angle", "unit_grad_sq", "h_tilde")}
        for step in range(steps):
            if step == config["drop_step"]:
                optimizer.param_groups[0]["lr"] = eta / config["drop"]
                if variant == "rescaled":
                    weight.data *= rescaling(setting, config["drop"])
            optimizer.zero_grad()
            (case.inputs["xi"][step] @ weight / weight.norm()).backward()
            assert weight.grad is not None
            before, gradient = weight.detach().clone(), weight.grad.clone()
            buffer = optimizer.state[weight].get("momentum_buffer") if alpha else None
            cross = (buffer * gradient).sum() if buffer is not None else torch.zeros(())
            optimizer.step()
            square = before.square().sum()
            rows["norm"].append(square.sqrt())
            rows["angle"].append(angular_update(before, weight.detach())[0])
            rows["unit_grad_sq"].append(unit_gradient(before, gradient)[0].square())
            rows["h_tilde"].append((gradient.square().sum() + 2 * alpha * cross) * square)
        rows["norm"].append(weight.detach().norm())
        results |= {f"out.{name}_{variant}": torch.stack(values) for name, values in rows.items()}
        results[f"out.w_final_{variant}"] = weight
    drop, at = config["drop"], config["drop_step"]
    level = results["out.h_tilde_plain"][at // 2 : at].mean().item()
    norm = equilibrium_norm(setting, level, config["dim"])
    angles = [equilibrium_angle(Setting(setting.theory, lr, decay, alpha)) for lr in (eta, eta / drop)]
    results["out.theory_angle"] = torch.tensor(angles)
    results["out.theory_norm"] = torch.tensor([norm, norm * rescaling(setting, drop)])
    return results


CASES = {
    "angle_measure": angle_measure,
    "angular_sgd": angular_sgd,
    "equilibrium_sgd": equilibrium,
    "equilibrium_sgdm": equilibrium,
    "scale_invariance": scale_invariance,
}
