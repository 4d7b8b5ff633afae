from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.distillation import InstanceConditional, Masked, Seen
from models.distillation.instance_conditional.decoder import ConditionalDecoder
from models.distillation.instance_conditional.instances import Prior, num_slots
from models.distillation.instance_conditional.losses import focus
from models.distillation.instance_conditional.memory import padding_mask
from models.distillation.masked import within
from models.mistakes import Mistake

SIZES = [(28, 32), (32, 14)]
BOXES = [torch.tensor([[2.0, 3.0, 14.0, 20.0], [10.0, 4.0, 30.0, 18.0]]), torch.zeros(0, 4)]


def seen(seed: int, targets: bool = True, channels: int = 8) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, channels, 32 // s, 32 // s, generator=generator).requires_grad_() for s in (8, 16)]
    images = [torch.zeros(3, *size) for size in SIZES]
    annotated = [{"boxes": each, "labels": torch.arange(len(each))} for each in BOXES]
    return Seen((images, annotated) if targets else (images,), None, {"neck": maps})


def built(**options: Any) -> InstanceConditional:
    torch.manual_seed(0)
    term = InstanceConditional(3, num_heads=2, **options)
    term.prepare(seen(0), seen(1))
    term.step = 5000
    return term


def gradients(loss: Tensor, term: InstanceConditional, student: Seen) -> dict[str, bool]:
    """Which parts a loss teaches."""
    parts = {
        name: list(getattr(term, name).parameters()) for name in ("decoder", "describer", "predictor", "projections")
    }
    parts["student"] = student.features["neck"]
    flat = [each for values in parts.values() for each in values]
    found = iter(torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True))
    got = {name: [next(found) for _ in values] for name, values in parts.items()}
    return {name: any(each is not None and bool(each.any()) for each in values) for name, values in got.items()}


def test_each_part_learns_from_its_own_loss() -> None:
    term, student, teacher = built(), seen(0), seen(1)
    losses = term(student, teacher)
    assert set(losses) == set(term.names)
    aside = {"decoder": True, "describer": True, "predictor": True, "projections": False, "student": False}
    assert gradients(losses["identification"], term, student) == aside
    assert gradients(losses["localisation"], term, student) == aside
    assert gradients(losses["imitation"], term, student) == {
        "decoder": False,
        "describer": False,
        "predictor": False,
        "projections": True,
        "student": True,
    }
    assert all(each.grad_fn is None or each.grad is None for each in teacher.features["neck"])


def test_the_student_learns_nothing_before_the_warm_up_is_over() -> None:
    term, student = built(warm_up=100), seen(0)
    values = []
    for step in (99, 100):
        term.step = step
        torch.manual_seed(0)
        loss = term(student, seen(1))["imitation"]
        values.append(loss)
        assert gradients(loss, term, student)["student"] is (step == 100)
        assert gradients(loss, term, student)["projections"]
    assert values[0].item() == values[1].item()


def test_focus_by_hand() -> None:
    # Two cells beside each other; the box is the left one, at which one head looks thrice as much, the other all alike.
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log().view(1, 2, 1, 2)
    boxes, centres = torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]), torch.tensor([[[0.25, 0.5], [0.75, 0.5]]])
    there = torch.tensor([[True]])
    assert focus(logits, boxes, there, centres).item() == pytest.approx((0.75 + 0.5) / 2 / 0.5)
    assert focus(logits, boxes, ~there, centres).item() == 0
    term = built()
    term(seen(0), seen(1))
    assert 0 < term.observed["focus"].item() < 20


def test_a_temperature_is_learnt_from_the_imitation_alone() -> None:
    term, student = built(learn_temperature=True, temperature=2.0), seen(0)
    losses = term(student, seen(1))
    assert term.observed["temperature"].item() == 2
    assert term.learnt is not None
    found = [
        torch.autograd.grad(losses[name], term.learnt, retain_graph=True, allow_unused=True)[0] for name in term.names
    ]
    assert found[:2] == [None, None]
    assert found[2].item() != 0
    term.learnt.data.fill_(99.0)
    term(student, seen(1))
    assert term.observed["temperature"].item() == 8
    with pytest.raises(Mistake, match="learnt from the imitation"):
        built(learn_temperature=True, imitation=0.0)


def test_a_narrower_student_is_projected_to_the_teachers_width() -> None:
    torch.manual_seed(0)
    term, student = InstanceConditional(3, num_heads=2, warm_up=0, position_on_values=True), seen(0, channels=4)
    term.prepare(student, seen(1))
    loss = term(student, seen(1))["imitation"]
    assert all(each.any() for each in torch.autograd.grad(loss, student.features["neck"]))


def test_masks_are_where_the_decoder_looks() -> None:
    term = built()
    looked = term.masks(seen(1))
    assert [[tuple(level.shape) for level in image] for image in looked] == [
        [(2, 4, 4), (2, 2, 2)],
        [(0, 4, 4), (0, 2, 2)],
    ]
    torch.testing.assert_close(sum(level.sum((1, 2)) for level in looked[0]), torch.ones(2))
    # The first image is 28 pixels high: its last row of cells is padding at neither stride.
    assert (looked[0][0] > 0).all()


def test_images_without_objects_cost_nothing() -> None:
    term, student = built(), seen(0)
    for target in student.inputs[1]:
        target |= {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    losses = term(student, seen(1))
    assert losses["imitation"].item() == 0
    assert losses["localisation"].item() == 0
    assert losses["identification"].isfinite()
    assert "imitation" not in built(imitation=0.0)(student, seen(1))


def test_nothing_is_looked_for_on_padding() -> None:
    term, student, teacher = built(), seen(0), seen(1)
    torch.manual_seed(0)
    before = {name: value.detach() for name, value in term(student, teacher).items()}
    for each in (*student.features["neck"], *teacher.features["neck"]):
        padding = padding_mask(each.shape[2:], SIZES, (32, 32), each.device)
        assert padding.any()
        each.data.movedim(1, -1)[padding] = 1e3
    torch.manual_seed(0)
    torch.testing.assert_close(term(student, teacher), before)


def test_objects_that_are_not_there_are_like_those_that_are() -> None:
    prior = Prior(3)
    labels = torch.tensor([0, 0, 0, 2])
    sizes = torch.tensor([[0.1, 0.2], [0.2, 0.2], [0.3, 0.2], [0.5, 0.6]])
    prior.learn(labels, sizes)
    torch.testing.assert_close(prior.frequency, torch.tensor([0.75, 0.0, 0.25]))
    torch.testing.assert_close(prior.mean[0], torch.tensor([0.2, 0.2]))
    torch.testing.assert_close(prior.std[0], torch.tensor([0.0816497, 0.0]))
    # A single object has no deviation of its own.
    torch.testing.assert_close(prior.mean[2], sizes.mean(0))
    torch.manual_seed(0)
    drawn, boxes = prior.draw(2000)
    assert abs((drawn == 0).float().mean().item() - 0.75) < 0.05
    assert ((boxes >= 0) & (boxes <= 1)).all()
    extent = (boxes[:, 2:] - boxes[:, :2])[drawn == 0]
    assert extent[:, 0].max() <= 0.2 + 2 * 0.0817 + 1e-6


@pytest.mark.parametrize(
    ("objects", "fakes", "most", "slots"),
    [(0, 5, 300, 1), (3, 5, 300, 18), (80, 5, 300, 300), (400, 5, 300, 400), (3, 0, 9, 3)],
)
def test_slots(objects: int, fakes: float, most: int, slots: int) -> None:
    assert num_slots(objects, fakes, most) == slots


def test_sizes_are_the_published_ones() -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(ConditionalDecoder(256)) == 855_552
    assert count(ConditionalDecoder(256, num_layers=0)) == 328_960
    term = InstanceConditional(80)
    term.build(256)
    assert term.describer is not None
    assert term.predictor is not None
    assert term.projections is not None
    assert count(term.describer) + count(term.predictor) == 353_285
    assert count(term.projections) == 65_792


def test_masked_by_hand() -> None:
    student, teacher = seen(0), seen(1)
    losses = {}
    for where in ("everywhere", "boxes"):
        torch.manual_seed(0)
        term = Masked(where=where)  # type: ignore[arg-type]
        term.prepare(student, teacher)
        losses[where] = term(student, teacher)
        expected = []
        for image in range(2):
            total, places = torch.zeros(()), 0
            for own, theirs in zip(student.features["neck"], teacher.features["neck"], strict=True):
                stride = 32 // own.shape[2]
                for y in range(own.shape[2]):
                    for x in range(own.shape[3]):
                        inside = y * stride < SIZES[image][0] and x * stride < SIZES[image][1]
                        middle = torch.tensor([(x + 0.5) * stride, (y + 0.5) * stride])
                        boxes = BOXES[image]
                        in_box = any((middle >= box[:2]).all() and (middle < box[2:]).all() for box in boxes)
                        if inside and (where == "everywhere" or in_box):
                            assert term.projection is not None
                            a = term.projection(own[image, :, y, x])
                            b = theirs[image, :, y, x]
                            a, b = (torch.nn.functional.layer_norm(each, each.shape) for each in (a, b))
                            total, places = total + (a - b).square().mean(), places + 1
            expected.append(total / max(places, 1))
        torch.testing.assert_close(losses[where], torch.stack(expected).mean())
    assert not within((4, 4), (32, 32), [torch.zeros(0, 4)]).any()


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(Mistake, match="needs targets with boxes"):
        built()(seen(0, targets=False), seen(1))
    uneven = seen(0)
    uneven.features["neck"][1] = torch.randn(2, 6, 2, 2)
    with pytest.raises(Mistake, match=r"as many channels; the student's have \[6, 8\], the teacher's \[8\]"):
        InstanceConditional(3, num_heads=2).prepare(uneven, seen(1))
    with pytest.raises(Mistake, match="3 heads do not divide 8"):
        InstanceConditional(3, num_heads=3).prepare(seen(0), seen(1))
    with pytest.raises(Mistake, match="everywhere or boxes"):
        Masked(where="nowhere")  # type: ignore[arg-type]
