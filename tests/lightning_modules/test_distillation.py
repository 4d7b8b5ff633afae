"""What a task adds to its loss when another network teaches its own."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn

from datamodules import Digits
from lightning_modules import Classification, Detection, Distillation
from lightning_modules.teacher_cache import TeacherCache
from models.distillation import Hints, InstanceConditional, Logits, Term
from models.mistakes import Mistake
from models.pixels import HALVES
from tests.library.dense_networks import small
from tests.library.processes import on_two_processes


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


def train(
    task: Classification, folder: Path, data: Digits | None = None, ckpt_path: Any = None, **options: Any
) -> Digits:
    data = data or Digits(batch_size=32)
    trainer = Trainer(
        **({"max_steps": 1} | options),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    trainer.fit(task, data, ckpt_path=ckpt_path)
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


def detectors(**student: Any) -> Detection:
    """A tiny DETR that is taught by a wider one, at the maps of their encoders."""
    torch.manual_seed(0)
    term = InstanceConditional(5, ["encoder_maps"], num_heads=2, warm_up=0)
    distillation = Distillation(small(hidden_dim=32), {"icd": term}, optimizer=torch.optim.SGD)
    return Detection(
        student.pop("network", None) or small(**student),
        distillation=distillation,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
    )


class Scenes:
    """An example of images with objects."""

    def example(self, samples: int) -> dict[str, Any]:
        boxes = torch.tensor([[4.0, 4.0, 40.0, 30.0]])
        return {
            "image": [torch.randn(3, 70, 64), torch.randn(3, 60, 72)],
            "target": [
                {"boxes": boxes, "labels": torch.tensor([2])},
                {"boxes": boxes[:0], "labels": boxes[:0, 0].long()},
            ],
        }


def test_a_detection_transformer_follows_a_wider_ones_encoder() -> None:
    task, data = detectors(hidden_dim=16), Scenes()
    task.distillation.attach(task, data)
    assert set(task.penalties) == {f"distil_icd_{each}" for each in InstanceConditional.names}
    task.train()
    task._trainer = SimpleNamespace(global_step=5, estimated_stepping_batches=10)
    task.network(*task.inputs(data.example(2)))
    loss = sum(penalty() for penalty in task.penalties.values())
    loss.backward()
    assert task.network.input_proj.weight.grad.any()
    assert all(parameter.grad is None for parameter in task.distillation.teacher.parameters())
    # What is behind the encoder has nothing to learn from it.
    assert task.network.bbox_embed.layers[0].weight.grad is None


class Padding(nn.Module):
    """A detector that pads images to a multiple, and halves them."""

    num_classes = 5

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple, self.neck = multiple, nn.Conv2d(3, 4, 2, 2)

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        sides = [max(each.shape[side] for each in images) for side in (1, 2)]
        height, width = (-(-side // self.multiple) * self.multiple for side in sides)
        padded = [F.pad(each, (0, width - each.shape[2], 0, height - each.shape[1])) for each in images]
        return [self.neck(torch.stack(padded))]


def test_other_padding_is_refused_though_the_example_would_not_show_it() -> None:
    distillation = Distillation(Padding(8), {"icd": InstanceConditional(5, num_heads=2)})
    task, data = Detection(Padding(4), distillation=distillation), Scenes()
    batch = data.example(2)
    data.example = lambda samples: batch | {"image": [torch.randn(3, 64, 64)] * 2}  # type: ignore[method-assign]
    with pytest.raises(Mistake, match=r"distillation\.terms\.icd: .*map 0 is 18x18 in the student and 20x20 in the"):
        distillation.attach(task, data)


def still() -> Digits:
    """Digits that are the same in every epoch, in few batches of which the last is not full."""
    return Digits(batch_size=512, train_transforms=[])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_is_kept_of_a_teacher_is_what_it_would_say_at_each_step(tmp_path: Path, precision: Any) -> None:
    kept, resumed, asked = (pair({"kd": Logits(), "hint": Hints(["layer"])}, cache=cache) for cache in (1.0, 1.0, None))
    options = {"max_steps": -1, "precision": precision, "data": still()}
    train(asked, tmp_path, max_epochs=2, **options)
    train(kept, tmp_path, max_epochs=1, **options)
    kept.trainer.save_checkpoint(tmp_path / "kept.ckpt")
    train(resumed, tmp_path, max_epochs=2, ckpt_path=tmp_path / "kept.ckpt", **options)
    learnt = resumed.network.state_dict()
    assert all(torch.equal(learnt[name], value) for name, value in asked.network.state_dict().items())
    steps, batches = len(still().train_dataloader()), len(still().undrawn_train_dataloader())
    assert batches > steps
    assert resumed.distillation is not None
    assert asked.distillation is not None
    assert len(resumed.distillation.teacher.given) == 1 + batches
    assert len(asked.distillation.teacher.given) == 1 + 2 * steps


def _filled(rank: int) -> dict[str, Tensor]:
    """What one of two processes has of the teacher."""
    task, data = pair({"kd": Logits()}, cache=1.0), still()
    data._processes = lambda: (rank, 2)  # type: ignore[method-assign]
    precision = SimpleNamespace(forward_context=nullcontext)
    task._trainer = SimpleNamespace(world_size=2, precision_plugin=precision, datamodule=data)  # type: ignore[assignment]
    assert task.distillation is not None
    task.distillation.attach(task, data)
    cache = TeacherCache(task.distillation.teach, 1.0)
    cache.fill(task, data)
    index = torch.tensor([1023, 0, 700])
    arrays = [data.source("train").load(int(each))["image"] for each in index]
    images = torch.stack([torch.from_numpy(each).movedim(2, 0) for each in arrays])
    batch = task.on_device({"image": images, "index": index})
    return {"kept": cache(index, ()).output, "made": task.distillation.teach((batch["image"],)).output}


def test_two_processes_share_the_work_and_have_it_all(tmp_path: Path) -> None:
    for process in on_two_processes(_filled, tmp_path):
        torch.testing.assert_close(process["kept"], process["made"])


def test_nothing_is_kept_of_images_that_change(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"^distillation\.cache: its training images differ.*transform Affine is drawn"):
        train(pair({"kd": Logits()}, cache=1.0), tmp_path)
    task = pair({"kd": Logits()}, cache=1.0)
    task.alters_images = "mix"
    with pytest.raises(Mistake, match="no image is seen twice with mix; leave cache out"):
        train(task, tmp_path, data=still())
    with pytest.raises(Mistake, match=r"of \d+ images takes .* GiB, and 1e-06 are allowed"):
        train(pair({"kd": Logits()}, cache=1e-6), tmp_path, data=still())
