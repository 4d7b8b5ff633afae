"""What a task adds to its loss when another network teaches its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn

from datamodules import Digits
from lightning_modules import Classification, Distillation
from models.distillation import Hints, Logits, Term
from models.mistakes import Mistake
from models.pixels import HALVES


class Flat(nn.Module):
    """A linear classifier that notes what it is given."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 10)
        self.norm = nn.BatchNorm1d(10)
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.given.append(images)
        return self.norm(self.layer(images.flatten(1)))


def pair(terms: dict[str, Term], lr: float = 0.5, **options: Any) -> Classification:
    torch.manual_seed(0)
    teacher = Flat()
    torch.manual_seed(1)
    distillation = Distillation(teacher, terms, **options)
    return Classification(Flat(), distillation=distillation, optimizer=lambda groups: torch.optim.SGD(groups, lr=lr))


def train(task: Classification, folder: Path, steps: int = 1) -> Digits:
    data = Digits(batch_size=32)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    trainer.fit(task, data)
    return data


def test_a_step_is_that_of_plain_torch(tmp_path: Path) -> None:
    task = pair({"kd": Logits(weight=0.9, temperature=3.0)}, task_weight=0.1)
    assert task.distillation is not None
    own, theirs = (
        {name: value.clone() for name, value in each.state_dict().items()}
        for each in (task.network, task.distillation.teacher)
    )
    data = train(task, tmp_path)
    images, labels = task.network.given[-1], next(iter(data.train_dataloader()))["label"]

    student, teacher = Flat(), Flat().eval()
    student.load_state_dict(own)
    teacher.load_state_dict(theirs)
    logits = student(images)
    with torch.no_grad():
        target = (teacher(images) / 3).softmax(1)
    kd = 9 * (target * (target.log() - (logits / 3).log_softmax(1))).sum(1).mean()
    loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * kd
    loss.backward()
    torch.testing.assert_close(task.losses["distil_kd"], 0.9 * kd.detach())
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(task.network.get_parameter(name), parameter - 0.5 * parameter.grad)
    # The teacher is as it was, its running statistics too, and is called once a step and once before.
    torch.testing.assert_close(dict(task.distillation.teacher.state_dict()), dict(theirs), rtol=0, atol=0)
    assert len(task.distillation.teacher.given) == 2


def test_the_teacher_sees_its_own_pixels(tmp_path: Path) -> None:
    task = pair({"kd": Logits()})
    assert task.distillation is not None
    task.distillation.adopt_pixels(HALVES)
    data = train(task, tmp_path)
    mean, std = (torch.tensor(each)[:, None, None] for each in (data.pixels.mean, data.pixels.std))
    as_halves = (task.network.given[-1] * std + mean - 0.5) / 0.5
    torch.testing.assert_close(task.distillation.teacher.given[-1], as_halves, rtol=1e-4, atol=1e-5)


def test_what_is_inherited_begins_as_the_teachers(tmp_path: Path) -> None:
    task = pair({"kd": Logits()}, lr=1e-9, inherit=["norm"])
    assert task.distillation is not None
    with torch.no_grad():
        task.distillation.teacher.norm.bias.fill_(3.0)
    layer = task.network.layer.weight.clone()
    train(task, tmp_path)
    torch.testing.assert_close(task.network.norm.bias, torch.full((10,), 3.0))
    torch.testing.assert_close(task.network.layer.weight, layer)
    with pytest.raises(Mistake, match="under 'neck' the teacher has no weights"):
        train(pair({"kd": Logits()}, inherit=["neck"]), tmp_path)


def test_mistakes_name_the_term(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="give it a term"):
        pair({})
    with pytest.raises(Mistake, match=r"Flat has no layer 'layers'.*did you mean 'layer'"):
        train(pair({"hint": Hints(["layers"])}), tmp_path)
    with pytest.raises(Mistake, match=r"distillation\.terms\.hint: Hints compares maps"):
        train(pair({"hint": Hints(["layer"], ["layer", "norm"])}), tmp_path)
