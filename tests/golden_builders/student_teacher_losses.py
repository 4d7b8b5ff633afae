"""Builders of the recorded losses, schedules, optimisers and votes of students and teachers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.lars import LARS
from lightning_modules.schedules import AverageWarmup, CosineArc, WarmupCosine
from models.self_supervised.byol import regression_loss
from models.self_supervised.dino import DINO
from models.self_supervised.knn import knn_votes
from models.semi_supervised.fixmatch import fixmatch_loss
from models.semi_supervised.mean_teacher import (
    consistency_kl,
    consistency_mse,
    sigmoid_ramp,
    tie,
)
from tests.library.processes import on_two_processes

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5


def byol_schedules(case: Case) -> dict[str, Tensor]:
    config = case.config
    steps = config["max_steps"]
    lr = WarmupCosine(warmup_steps=config["warmup_steps"], steady_warmup=True)
    x = case.inputs["x"].requires_grad_()
    losses = regression_loss(x, case.inputs["y"])
    losses.sum().backward()
    return {
        "out.tau": as_tensor(WarmupCosine(min_lr=1.0).table(config["base_ema"], steps, steps)),
        "out.lr": as_tensor(lr.table(config["base_lr"] * config["batch"] / 256, steps, steps)),
        "out.regression": losses,
        "grad.x": x.grad,
    }


def as_tensor(table: np.ndarray) -> Tensor:
    return torch.from_numpy(table).to(torch.get_default_dtype())


def dino_schedules(case: Case) -> dict[str, Tensor]:
    config = case.config
    per_epoch, epochs = config["iters"], config["epochs"]
    steps = per_epoch * epochs
    lr = WarmupCosine(config["warmup_epochs"], min_lr=config["min_lr"])
    decay, momentum = WarmupCosine(min_lr=config["weight_decay_end"]), WarmupCosine(min_lr=1.0)
    return {
        "out.lr": as_tensor(lr.table(config["lr"], per_epoch, steps)),
        "out.wd": as_tensor(decay.table(config["weight_decay"], per_epoch, steps)),
        "out.momentum": as_tensor(momentum.table(config["momentum_teacher"], per_epoch, steps)),
        "out.temp": as_tensor(temperatures(config, epochs, per_epoch)[::per_epoch]),
    }


def temperatures(config: dict[str, Any], epochs: int, per_epoch: int = 1) -> np.ndarray:
    """Temperature of the teacher at each step, as a config of ours writes the published schedule."""
    last = config["teacher_temp"]
    rising = WarmupCosine(
        config["warmup_teacher_temp_epochs"], min_lr=last, warmup_lr=config["warmup_teacher_temp"], by_epoch=True
    )
    # As long as the warm-up leaves something of it.
    longer = epochs + config["warmup_teacher_temp_epochs"]
    return rising.table(last, per_epoch, longer * per_epoch)[: epochs * per_epoch]


def dino_calls(
    config: dict[str, Any], students: Tensor, teachers: Tensor, centre: Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Losses of a sequence of batches, the student's logits that they are of, and the centre after each, [T, 1, K].

    Args:
        config: Of the case.
        students: Logits [T, views * B, K].
        teachers: Logits [T, 2 * B, K].
        centre: At the beginning, [1, K].
    """
    learner = DINO(OneFeature(), {"out_dim": config["K"], "hidden_dim": 1, "bottleneck_dim": 1})
    learner.centre.load_state_dict({"value": centre})
    temps = temperatures(config, config["nepochs"])
    losses, inputs, centres = [], [], []
    for epoch, student, teacher in zip(config["epochs"], students, teachers, strict=True):
        learner.teacher_temp = float(temps[epoch])
        logits = student.clone().requires_grad_()
        crops = logits.unflatten(0, (config["ncrops"], -1))
        losses.append(learner.compare(crops, teacher.unflatten(0, (2, -1))))
        learner.advance()
        inputs.append(logits)
        centres.append(learner.centre.value.clone())
    return losses, inputs, torch.stack(centres)


class OneFeature(nn.Module):
    """Stands for a backbone where logits are given."""

    num_features = 1


def dino_loss(case: Case) -> dict[str, Tensor]:
    losses, logits, centres = dino_calls(
        case.config, case.inputs["student"], case.inputs["teacher"], case.state["center"]
    )
    gradients = [torch.autograd.grad(*pair)[0] for pair in zip(losses, logits, strict=True)]
    return {"out.loss": torch.stack(losses), "out.center": centres, "grad.student": torch.stack(gradients)}


def dino_loss_ddp2(case: Case) -> dict[str, Tensor]:
    def of_rank(rank: int) -> dict[str, Tensor]:
        losses, _, centres = dino_calls(
            case.config, case.inputs["student"][rank], case.inputs["teacher"][rank], case.state["center"]
        )
        return {"out.loss": torch.stack(losses), "out.center": centres}

    with tempfile.TemporaryDirectory() as folder:
        first, second = on_two_processes(of_rank, Path(folder))
    return {name: torch.stack([value, second[name]]) for name, value in first.items()}


def dino_knn(case: Case) -> dict[str, Tensor]:
    config, labels = case.config, case.inputs["test_labels"]
    results = {}
    for k in config["k"]:
        votes = knn_votes(
            case.inputs["test"], case.inputs["train"], case.inputs["train_labels"], config["classes"], k, config["T"]
        )
        hits = votes.argsort(1, descending=True) == labels[:, None]
        results[f"out.votes_k{k}"] = votes
        results[f"out.top1_k{k}"] = 100 * hits[:, :1].any(1).double().mean()[None]
        results[f"out.top5_k{k}"] = 100 * hits[:, : min(5, k)].any(1).double().mean()[None]
    return results


def fixmatch(case: Case) -> dict[str, Tensor]:
    config = case.config
    logits = case.inputs["logits"].requires_grad_()
    count = config["B"]
    weak, strong = logits[count:].chunk(2)
    labelled = F.cross_entropy(logits[:count], case.inputs["targets"])
    unlabelled, mask = fixmatch_loss(weak, strong, config["threshold"], config["T"])
    loss = labelled + config["lambda_u"] * unlabelled
    loss.backward()
    return {
        "out.loss": loss[None],
        "out.loss_x": labelled[None],
        "out.loss_u": unlabelled[None],
        "out.mask_mean": mask.mean()[None],
        "grad.logits": logits.grad,
    }


def fixmatch_lr(case: Case) -> dict[str, Tensor]:
    config = case.config
    total = config["total"]
    return {"out.lr": as_tensor(CosineArc(warmup_steps=config["warmup"]).table(1.0, total, total))}


def mean_teacher_losses(case: Case) -> dict[str, Tensor]:
    results = {}
    for name, loss in {"mse": consistency_mse, "kl": consistency_kl, "sym": tie}.items():
        logits = {key: case.inputs[key].clone().requires_grad_() for key in ("a", "b")}
        value = loss(logits["a"], logits["b"])
        value.backward()
        results[f"out.{name}"] = value
        results |= {f"grad.{name}.{key}": each.grad for key, each in logits.items() if each.grad is not None}
    return results


def mean_teacher_ema(case: Case) -> dict[str, Tensor]:
    config = case.config
    teacher, teachers = case.state["teacher"], []
    momentum = AverageWarmup().table(config["ema_decay"], config["steps"], config["steps"])
    for student, share in zip(case.inputs["student"], momentum, strict=True):
        teacher = teacher.lerp(student, 1 - float(share))
        teachers.append(teacher)
    # Epochs may be fractions.
    steps = (100 * case.inputs["epoch"]).round().long()
    epochs, total = case.inputs["epoch"].tolist(), int(steps.max()) + 1
    rising = WarmupCosine(config["ramp"], min_lr=1.0, steady_warmup=True)
    falling = WarmupCosine(cosine_epochs=config["ramp_down"])
    return {
        "out.teacher": torch.stack(teachers),
        "out.sigmoid": torch.tensor([sigmoid_ramp(epoch, config["ramp"]) for epoch in epochs]),
        "out.linear": as_tensor(rising.table(1.0, 100, total))[steps],
        "out.cosine": as_tensor(falling.table(1.0, 100, total))[steps],
    }


def lars(case: Case) -> dict[str, Tensor]:
    config = case.config
    options = {"lr": config["lr"], "momentum": config["momentum"], "eta": config["eta"]}
    results: dict[str, Tensor] = {}
    for variant in sorted({name.split(".")[1] for name in case.shapes}):
        weights = {name: nn.Parameter(value.clone()) for name, value in case.state.items()}
        wide = [weight for weight in weights.values() if weight.ndim > 1]
        flat = [weight for weight in weights.values() if weight.ndim == 1]
        decay = config["weight_decay"]
        groups = [
            {"params": wide, "weight_decay": decay},
            {"params": flat, "weight_decay": 0.0 if variant == "lightly" else decay, "lars_exclude": True},
        ]
        optimizer = LARS(groups, variant=variant, **options)
        after: dict[str, list[Tensor]] = {name: [] for name in weights}
        for step in range(config["steps"]):
            for name, weight in weights.items():
                weight.grad = case.inputs[f"grad.{name}"][step].clone()
            optimizer.step()
            for name, weight in weights.items():
                after[name].append(weight.detach().clone())
        results |= {f"out.{variant}.{name}": torch.stack(values) for name, values in after.items()}
    return results


CASES = {
    "byol_schedules": byol_schedules,
    "dino_schedules": dino_schedules,
    "dino_loss": dino_loss,
    "dino_loss_ddp2": dino_loss_ddp2,
    "dino_knn": dino_knn,
    "fixmatch_loss": fixmatch,
    "fixmatch_lr": fixmatch_lr,
    "mean_teacher_losses": mean_teacher_losses,
    "mean_teacher_ema": mean_teacher_ema,
    "lars": lars,
}
