"""Training steps of MoCo as they are recorded, on one process or on each of two."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from models.official import load
from models.official.moco import LAYOUT
from models.self_supervised.moco import MoCo
from tests.library.golden import default_dtype


class TwoConvs(nn.Module):
    """The recorded backbone."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.num_features = second
        self.conv1 = nn.Conv2d(3, first, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images))))))
        return x.mean((2, 3))


class Recorded(MoCo):
    """MoCo that shuffles as recorded, and moves its teacher at the beginning of a step."""

    orders: Tensor
    step = 0
    momentum = 0.0

    def order(self, count: int) -> Tensor:
        return self.orders[self.step]

    def forward(self, views: Any) -> Tensor:
        with torch.no_grad():
            for teacher, student in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                teacher.lerp_(student, 1 - self.momentum)
        return self.logits(*views)


def moco_steps(
    rank: int, config: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """All steps of a process, under the names of the recorded tensors.

    Args:
        rank: Of the process.
        config, state, inputs: Of the recorded case, in float64.
    """
    with default_dtype(torch.float64):
        learner = Recorded(
            TwoConvs(config["w1"], config["w2"]),
            config["dim"],
            None if config["mlp"] else 0,
            queue_size=config["K"],
            temperature=config["T"],
        )
        load(learner, LAYOUT.to_ours(state))
        learner.orders, learner.momentum = inputs["shuffle"], config["m"]
        network = DistributedDataParallel(learner) if distributed.is_initialized() else learner
        optimizer = torch.optim.SGD(
            learner.student.parameters(), config["lr"], momentum=0.9, weight_decay=config["weight_decay"]
        )
        found: dict[str, list[Tensor]] = {"logits": [], "loss": [], "queue": [], "queue_ptr": []}
        gradients: dict[str, Tensor] = {}
        for learner.step in range(config["steps"]):
            logits = network([inputs[name][learner.step, rank] for name in ("im_q", "im_k")])
            loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            if not gradients:
                trained = {name: each.grad for name, each in learner.named_parameters() if each.grad is not None}
                gradients = copy.deepcopy(LAYOUT.to_official(learner.state_dict() | trained))
            optimizer.step()
            learner.advance()
            values = logits[None], loss[None], learner.queue.keys, learner.queue.pointer
            for name, value in zip(found, values, strict=True):
                found[name].append(value.detach().clone())
        after = LAYOUT.to_official(learner.state_dict())
    return {
        **{f"out.{name}": torch.stack(values) for name, values in found.items()},
        **{f"grad.{name}": value for name, value in gradients.items()},
        **{f"out.after.{name}": value for name, value in after.items()},
        **{f"out.after_rank{rank}.{name}": value for name, value in after.items()},
    }
