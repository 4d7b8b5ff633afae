"""Builders of the recorded networks and steps of BYOL with a spatial ensemble as teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models.backbones  # noqa: F401  registers our networks with timm
from lightning_modules.schedules import WarmupCosine
from models.official import load
from models.official.spatial_ensemble import LAYOUT
from models.self_supervised.byol import BYOL
from tests.library.golden import default_dtype

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5
# Biases that feed a batch norm, be it behind another linear map.
ZERO = {f"grad.student_encoder.fc.{i}.bias": 1e-9 for i in (0, 3, 4)}


def learner_of(config: dict[str, Any]) -> BYOL:
    backbone = timm.create_model("narrow_resnet", layers=config["layers"], width=config["stem_width"], num_classes=0)
    return BYOL(backbone, config["hidden_dim"], config["low_dim"], last_bias=True)


def con_loss(case: Case) -> dict[str, Tensor]:
    class Linear(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight.clone())

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight)

    class Pixels(nn.Module):
        num_features = 1

    learner = BYOL(Pixels(), 1, 1)
    student = Linear(case.state["student"])
    learner.student, learner.teacher = student, Linear(case.state["teacher"])  # type: ignore[assignment]
    learner.predictor = nn.Identity()  # type: ignore[assignment]
    loss = learner.loss([torch.stack([case.inputs["view1"], case.inputs["view2"]])])
    loss.backward()
    return {"out.loss": loss, "grad.student": student.weight.grad}


def encoder_eval(case: Case) -> dict[str, Tensor]:
    learner, x = learner_of(case.config).eval(), case.inputs["x"]
    load(learner, LAYOUT.to_ours(case.state))
    return {
        "out.feat_student": learner.student.features(x),
        "out.feat_teacher": learner.teacher.features(x),
        "out.student_pred": F.normalize(learner.predictor(learner.student(x)), dim=1),
        "out.teacher_proj": F.normalize(learner.teacher(x), dim=1),
    }


def byol_sts_steps(case: Case) -> dict[str, Tensor]:
    """In double precision, as recorded: a batch norm over a tiny batch amplifies rounding."""
    state, inputs = ({name: value.double() for name, value in each.items()} for each in (case.state, case.inputs))
    with default_dtype(torch.float64):
        return steps(case.config, state, inputs)


@torch.no_grad()
def stitch(learner: BYOL, draws: Tensor, keep: float, momentum: float) -> None:
    """Moves those of the teacher's tensors whose draw is not below the probability of keeping them."""
    pairs = zip(learner.teacher.parameters(), learner.student.parameters(), strict=True)
    for draw, (teacher, student) in zip(draws, pairs, strict=True):
        if draw >= keep:
            teacher.lerp_(student, 1 - momentum)


def steps(config: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    learner, keep = learner_of(config), config["perserving_prob"]
    load(learner, LAYOUT.to_ours(state))
    stitch(learner, inputs["draws_init"], keep, 0.0)
    encoder = "teacher_encoder."
    results = {
        f"out.teacher_init.{name.removeprefix(encoder)}": value.clone()
        for name, value in LAYOUT.to_official(learner.state_dict()).items()
        if name.startswith(encoder)
    }
    momentum = WarmupCosine(min_lr=1.0).table(config["param_momentum"], config["total_iters"], config["total_iters"])
    optimizer = torch.optim.SGD(
        [each for each in learner.parameters() if each.requires_grad],
        config["lr"],
        momentum=config["sgd_momentum"],
        weight_decay=config["weight_decay"],
    )
    losses = []
    for step in range(config["n_steps"]):
        stitch(learner, inputs["draws"][step], keep, float(momentum[step]))
        loss = learner.loss([torch.stack([inputs["view1"][step], inputs["view2"][step]])])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for name, parameter in learner.named_parameters():
                gradient = parameter.grad
                official = LAYOUT.official_name(name)
                results |= {} if gradient is None else {f"grad.{official}": gradient.clone()}
        optimizer.step()
        losses.append(loss.detach())
    after = LAYOUT.to_official(learner.state_dict())
    return {
        **results,
        "out.loss": torch.stack(losses),
        "out.m": torch.from_numpy(momentum[: config["n_steps"]]),
        **{f"out.after.{name}": value for name, value in after.items()},
    }


CASES = {"con_loss": con_loss, "encoder_eval": encoder_eval, "byol_sts_steps": byol_sts_steps}
