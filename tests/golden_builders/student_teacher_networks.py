"""Builders of the recorded networks and training steps of students and teachers.

What is recorded in double precision is computed in it: a batch norm over a tiny batch amplifies rounding, and AdamW
makes a step of it where a gradient is zero.
"""

from __future__ import annotations

import math
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models.backbones  # noqa: F401  registers our networks with timm
from lightning_modules.lars import LARS
from lightning_modules.parameter_groups import parameter_groups
from lightning_modules.schedules import CosineArc, WarmupCosine
from lightning_modules.self_supervised import clip_each
from models.classifiers.wide_resnet import WideResNet
from models.official import load
from models.official.dino import LAYOUT as DINO_LAYOUT
from models.official.fixmatch import LAYOUT as FIXMATCH_LAYOUT
from models.self_supervised.byol import BYOL
from models.self_supervised.dino import DINO
from models.self_supervised.encoder import DINOHead
from models.semi_supervised.fixmatch import fixmatch_loss
from tests.library.golden import default_dtype, section
from tests.library.moco_steps import moco_steps
from tests.library.processes import on_two_processes

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5
# Biases that feed a batch norm, be it behind other linear maps, have no gradient but rounding.
ZERO = {f"grad.{layer}.b": 1e-9 for layer in ("encoder/embed", "projector/linear", "predictor/linear")}


def doubled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moves the parameters of a teacher, as the moving average of every host does."""
    followed = dict(student.named_parameters())
    for name, parameter in teacher.named_parameters():
        parameter.lerp_(followed[name], 1 - momentum)


def dino_head(case: Case) -> dict[str, Tensor]:
    results: dict[str, Any] = {}
    for i, options in enumerate(case.config["variants"]):
        head = DINOHead(
            options["in_dim"],
            options["out_dim"],
            norm=options["use_bn"],
            frozen_length=options["norm_last_layer"],
            num_layers=options["nlayers"],
            hidden_dim=options["hidden_dim"],
            bottleneck_dim=options["bottleneck_dim"],
        )
        ours = names_of_a_head(section(case.state, f"v{i}."))
        head.load_state_dict({mine: case.state[f"v{i}.{theirs}"] for theirs, mine in ours.items()})
        y = head(case.inputs[f"x{i}"])
        (y * case.inputs[f"w{i}"]).sum().backward()
        parameters, state = dict(head.named_parameters()), head.state_dict()
        results[f"out.y{i}"] = y
        # Which of the variants have norms is in the file alone.
        if options["use_bn"]:
            ZERO.update({f"grad.v{i}.mlp.{3 * layer}.bias": 1e-5 for layer in range(options["nlayers"] - 1)})
        for theirs, mine in ours.items():
            results[f"grad.v{i}.{theirs}"] = parameters[mine].grad if mine in parameters else None
            results[f"out.after{i}.{theirs}"] = state[mine]
        results[f"out.eval{i}"] = head.eval()(case.inputs[f"x{i}"])
    return results


def names_of_a_head(state: dict[str, Tensor]) -> dict[str, str]:
    """Our names of the parameters of an official head, read off the layout of a training with two of them."""
    whole = {f"{side}.head.{name}": value for side in ("student", "teacher") for name, value in state.items()}
    whole |= {f"{side}.backbone.norm.weight": torch.ones(1) for side in ("student", "teacher")}
    marked = {name: torch.tensor([i]) for i, name in enumerate([*whole, "center"])}
    places = {int(value): name for name, value in DINO_LAYOUT.to_ours(marked).items() if value.numel()}
    start = "student.head."
    return {
        name.removeprefix(start): places[i].removeprefix("student.projector.")
        for i, name in enumerate(whole)
        if name.startswith(start)
    }


def vit(config: dict[str, Any]) -> nn.Module:
    options = {key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")}
    return timm.create_model("vit_tiny_patch16_dino", num_classes=0, **options)


def dino_vit(case: Case) -> dict[str, Tensor]:
    network: Any = vit(case.config).eval()
    load(network, case.state)
    results = {}
    for i in range(len(case.config["sizes"])):
        x, last = case.inputs[f"x{i}"], case.config["n_last"]
        inner = network.forward_intermediates(
            x, last, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
        )
        results[f"out.cls{i}"] = network(x)
        results[f"out.attn{i}"] = network.attention_maps(x)
        results[f"out.inter{i}"] = torch.stack([torch.cat([prefix, rest], 1) for rest, prefix in inner])
    return results


def wideresnet(case: Case) -> dict[str, Tensor]:
    network = wide_resnet(case)
    results = {"out.logits_eval": network.eval()(case.inputs["x"])}
    logits = network.train()(case.inputs["x"])
    F.cross_entropy(logits, case.inputs["y"]).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    names = {FIXMATCH_LAYOUT.official_name(name): name for name in network.state_dict()}
    state = network.state_dict()
    return {
        **results,
        "out.logits_train": logits,
        **{f"out.after.{theirs}": state[mine] for theirs, mine in names.items()},
        **{f"grad.{theirs}": gradients.get(mine) for theirs, mine in names.items()},
    }


def wide_resnet(case: Case) -> WideResNet:
    config = case.config
    network = WideResNet(config["depth"], config["widen"], config["classes"], config["base"], dead_preact=True)
    load(network, FIXMATCH_LAYOUT.to_ours(case.state))
    return network


def fixmatch_train_steps(case: Case) -> dict[str, Tensor]:
    config = case.config
    network, average = wide_resnet(case).train(), wide_resnet(case)
    lr = CosineArc().table(config["lr"], config["total_steps"], config["total_steps"]).tolist()
    lr.append(config["lr"] * math.cos(7 / 16 * math.pi))
    groups = parameter_groups(network, config["lr"], config["wdecay"])
    optimizer = torch.optim.SGD(groups, lr=config["lr"], momentum=0.9, nesterov=True)
    found: dict[str, list[Tensor]] = {"loss": [], "loss_x": [], "loss_u": [], "mask": []}
    count = config["B"]
    for step in range(config["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = lr[step]
        images = torch.cat([case.inputs[name][step] for name in ("x", "u_weak", "u_strong")])
        logits = network(images)
        weak, strong = logits[count:].chunk(2)
        labelled = F.cross_entropy(logits[:count], case.inputs["y"][step])
        unlabelled, mask = fixmatch_loss(weak, strong, config["threshold"], config["T"])
        loss = labelled + config["lambda_u"] * unlabelled
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follow(average, network, config["ema_decay"])
        buffers = dict(network.named_buffers())
        for name, buffer in average.named_buffers():
            buffer.copy_(buffers[name])
        for name, value in zip(found, (loss, labelled, unlabelled, mask.mean()), strict=True):
            found[name].append(value.detach())
    states = {"model": network, "ema": average}
    return {
        **{f"out.{name}": torch.stack(values) for name, values in found.items()},
        "out.lr": torch.tensor(lr[config["steps"]]),
        **{
            f"out.{key}.{name}": value
            for key, each in states.items()
            for name, value in FIXMATCH_LAYOUT.to_official(each.state_dict()).items()
        },
    }


def moco_single(case: Case) -> dict[str, Tensor]:
    return moco_steps(0, case.config, doubled(case.state), doubled(case.inputs))


def moco_ddp2(case: Case) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        steps = partial(moco_steps, config=case.config, state=doubled(case.state), inputs=doubled(case.inputs))
        first, second = on_two_processes(steps, Path(folder), picklable=True)
    beside = {name: torch.cat([first[name], second[name]], 1) for name in ("out.logits", "out.loss")}
    return first | second | beside


def byol_update(case: Case) -> dict[str, Tensor]:
    with default_dtype(torch.float64):
        return byol_steps(case, doubled(case.state), doubled(case.inputs))


class Embed(nn.Module):
    """The recorded stand-in for an encoder: one linear map of the pixels."""

    def __init__(self, pixels: int, embed: int) -> None:
        super().__init__()
        self.num_features = embed
        self.layer = nn.Linear(pixels, embed)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


# Modules of the official network, ours, and what they hold: the names there and here.
LINEAR, LAST, NORM = {"w": "weight", "b": "bias"}, {"w": "weight"}, {"scale": "weight", "offset": "bias"}
BYOL_MODULES = {
    "encoder/embed": ("backbone.layer", LINEAR),
    **{
        f"{head}/{theirs}": (f"{head}.{place}", what)
        for head in ("projector", "predictor")
        for theirs, place, what in (("linear", 0, LINEAR), ("batch_norm", 1, NORM), ("linear_1", 3, LAST))
    },
    "classifier": ("classifier", LINEAR),
}


def byol_names(side: str) -> dict[str, str]:
    """Official names to ours; the student's predictor and classifier have counterparts that nobody uses."""
    names: dict[str, str] = {}
    for theirs, (mine, what) in BYOL_MODULES.items():
        inside = "" if mine.startswith(("predictor", "classifier")) else f"{side}."
        names |= {f"{theirs}.{key}": f"{inside}{mine}.{value}" for key, value in what.items()}
    return names


def as_haiku(name: str, value: Tensor) -> Tensor:
    """A tensor of ours as Haiku keeps it, or back."""
    return value.T if name.endswith(".w") else value[None] if name.endswith((".scale", ".offset")) else value


def byol_steps(case: Case, state: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    config = case.config
    pixels = 3 * config["size"][0] * config["size"][1]

    def network(side: str, name: str) -> BYOL:
        made = BYOL(Embed(pixels, config["embed"]), config["hidden"], config["out"])
        made.add_module("classifier", nn.Linear(config["embed"], config["num_classes"]))
        own = made.state_dict()
        for theirs, mine in byol_names(side).items():
            recorded = state[f"{name}.{theirs}"]
            own[mine].copy_(recorded.T if theirs.endswith(".w") else recorded.reshape(own[mine].shape))
        return made

    # The target tree has a predictor and a classifier of its own, which the average moves as well.
    learner, target = network("student", "online"), network("teacher", "target")
    learner.teacher.load_state_dict(target.teacher.state_dict())
    steps = config["max_steps"]
    schedule = WarmupCosine(warmup_steps=config["warmup_steps"], steady_warmup=True)
    rates = schedule.table(config["base_lr"] * config["batch"] / 256, steps, steps)
    taus = WarmupCosine(min_lr=1.0).table(config["base_target_ema"], steps, steps)
    groups = parameter_groups(learner, 1.0, config["weight_decay"])
    optimizer = LARS(groups, momentum=config["momentum"], eta=config["eta"])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found: dict[str, list[Tensor]] = {"loss": [], "repr_loss": [], "classif_loss": []}
    results: dict[str, Tensor] = {}
    for step in range(config["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        views = [(inputs[f"view{i}"][step] - mean) / std for i in (1, 2)]
        representation = learner.loss([torch.stack(views)])
        logits = learner.get_submodule("classifier")(learner.student.features(views[0]).detach())
        probe = F.cross_entropy(logits, inputs["labels"][step])
        optimizer.zero_grad()
        (representation + probe).backward()
        if step == 0:
            parameters = dict(learner.named_parameters())
            for theirs, mine in byol_names("student").items():
                gradient = parameters[mine].grad
                assert gradient is not None
                results[f"grad.{theirs}"] = as_haiku(theirs, gradient)
        optimizer.step()
        follow(learner.teacher, learner.student, float(taus[step]))
        for name in ("predictor", "classifier"):
            follow(target.get_submodule(name), learner.get_submodule(name), float(taus[step]))
        for name, value in zip(found, (representation + probe, representation, probe), strict=True):
            found[name].append(value.detach())
    target.teacher.load_state_dict(learner.teacher.state_dict())
    for name, side, each in (("online", "student", learner), ("target", "teacher", target)):
        own = each.state_dict()
        for theirs, mine in byol_names(side).items():
            results[f"out.after.{name}.{theirs}"] = as_haiku(theirs, own[mine])
    return {
        **results,
        **{f"out.{name}": torch.stack(values) for name, values in found.items()},
        "out.lr": torch.from_numpy(rates[: config["steps"]]),
        "out.tau": torch.from_numpy(taus[: config["steps"]]),
    }


def dino_train_steps(case: Case) -> dict[str, Tensor]:
    with default_dtype(torch.float64):
        return dino_steps(case, doubled(case.state), doubled(case.inputs))


def dino_steps(case: Case, state: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    config = case.config
    head = {
        "out_dim": config["out_dim"],
        "hidden_dim": config["hidden_dim"],
        "bottleneck_dim": config["bottleneck_dim"],
        "frozen_length": config["norm_last_layer"],
    }
    learner = DINO(vit(config), head, freeze_last_layer=config["freeze_last_layer"])
    load(learner, DINO_LAYOUT.to_ours(state))
    per_epoch, epochs = config["iters"], config["epochs"]
    steps = per_epoch * epochs
    lr = WarmupCosine(config["warmup_epochs"], min_lr=config["min_lr"]).table(config["lr"], per_epoch, steps)
    first = config["weight_decay"]
    decay = WarmupCosine(min_lr=config["weight_decay_end"]).table(first, per_epoch, steps)
    momentum = WarmupCosine(min_lr=1.0).table(config["momentum_teacher"], per_epoch, steps)
    rising = WarmupCosine(
        config["warmup_teacher_temp_epochs"],
        min_lr=config["teacher_temp"],
        warmup_lr=config["warmup_teacher_temp"],
        by_epoch=True,
    )
    # As long as the warm-up leaves something of it; what follows the training does not matter.
    temps = rising.table(config["teacher_temp"], 1, epochs + config["warmup_teacher_temp_epochs"])
    groups = parameter_groups(learner, 1.0, first)
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        learner.teacher_temp = float(temps[epoch])
        for group in optimizer.param_groups:
            group["lr"] = float(lr[step])
            group["weight_decay"] = float(decay[step]) if group["weight_decay"] else 0.0
        loss = learner.loss([inputs["global"][epoch, place], inputs["local"][epoch, place]])
        optimizer.zero_grad()
        loss.backward()
        clip_each(learner.parameters(), config["clip_grad"])
        for parameter in learner.frozen_parameters(epoch):
            parameter.grad = None
        optimizer.step()
        learner.advance()
        follow(learner.teacher, learner.student, float(momentum[step]))
        losses.append(loss.detach())
    return {
        **{f"out.after.{name}": value for name, value in DINO_LAYOUT.to_official(learner.state_dict()).items()},
        "out.loss": torch.stack(losses).unflatten(0, (epochs, per_epoch)),
        "out.lr": torch.from_numpy(lr),
        "out.wd": torch.from_numpy(decay),
        "out.momentum": torch.from_numpy(momentum),
    }


CASES = {
    "dino_head": dino_head,
    "dino_vit": dino_vit,
    "dino_train_steps": dino_train_steps,
    "wideresnet": wideresnet,
    "fixmatch_train_steps": fixmatch_train_steps,
    "moco_single": moco_single,
    "moco_ddp2": moco_ddp2,
    "byol_update": byol_update,
}
