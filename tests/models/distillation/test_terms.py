from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.distillation import AttentionTransfer, Hints, Logits, Relations, Seen, Term
from models.distillation.relations import angles, distances
from models.distillation.seen import Watch
from models.mistakes import Mistake
from models.pixels import BGR_BYTES, HALVES, IMAGENET, Conversion


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def answers(*logits: Tensor) -> Seen:
    return Seen((), list(logits) if len(logits) > 1 else logits[0])


def maps(*features: Tensor) -> Seen:
    return Seen((), None, {"layer": list(features)})


def test_softened_answers_by_hand() -> None:
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    p = [1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))]
    q = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))]
    expected = 4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert Logits(temperature=2.0)(answers(student), answers(teacher)).item() == pytest.approx(expected, rel=1e-6)


def test_answers_at_every_place_of_a_segmenter_count_alike() -> None:
    student, teacher = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    flat = [each.movedim(1, -1).reshape(-1, 3) for each in (student, teacher)]
    term = Logits()
    torch.testing.assert_close(term(answers(student), answers(teacher)), term(*map(answers, flat)))


def test_exits_follow_the_teacher_and_the_last_exit() -> None:
    exits = [random(4, 3, seed=i).requires_grad_() for i in range(3)]
    teacher = answers(random(4, 3, seed=9))
    one = Logits()
    alone = [one(answers(each), teacher) for each in exits]
    from_own = [one(answers(each), answers(exits[-1].detach())) for each in exits[:-1]]
    torch.testing.assert_close(Logits()(answers(*exits), teacher), torch.stack(alone).mean())
    torch.testing.assert_close(Logits(exits="last")(answers(*exits), teacher), alone[-1])
    mixed = torch.stack([*((0.7 * a + 0.3 * b) for a, b in zip(alone, from_own, strict=False)), alone[-1]]).mean()
    torch.testing.assert_close(Logits(from_last=0.3)(answers(*exits), teacher), mixed)
    # No exit pulls the last one towards itself.
    (last,) = torch.autograd.grad(Logits(from_last=1.0)(answers(*exits), teacher), exits[-1])
    (expected,) = torch.autograd.grad(one(answers(exits[-1]), teacher) / 3, exits[-1])
    torch.testing.assert_close(last, expected)


def test_hints_adapt_what_is_narrower() -> None:
    student, teacher = (
        maps(random(2, 3, 4, 4), random(2, 5, 2, 2)),
        maps(random(2, 6, 4, 4), random(2, 5, 2, 2, seed=1)),
    )
    term = Hints(["layer"])
    term.prepare(student, teacher)
    assert [type(each) for each in term.adapters] == [nn.Conv2d, nn.Identity]
    expected = sum(
        (adapter(own) - theirs).square().mean()
        for adapter, own, theirs in zip(
            term.adapters, student.features["layer"], teacher.features["layer"], strict=True
        )
    )
    torch.testing.assert_close(term(student, teacher), expected)
    # Built once: what is trained is not replaced.
    kept = term.adapters[0]
    term.prepare(student, teacher)
    assert term.adapters[0] is kept


def test_normalised_hints_know_no_scale() -> None:
    student, features = maps(random(2, 4, 3, 3)), random(2, 4, 3, 3, seed=1)
    term = Hints(["layer"], normalise=True)
    term.prepare(student, maps(features))
    torch.testing.assert_close(
        term(student, maps(features)), term(student, maps(5 * features + 2)), rtol=1e-4, atol=1e-5
    )
    vectors = Hints(["layer"])
    vectors.prepare(maps(random(2, 4)), maps(random(2, 6)))
    assert vectors(maps(random(2, 4)), maps(random(2, 6))).ndim == 0


def test_attention_is_where_a_map_is_strong() -> None:
    own, theirs = random(2, 3, 4, 4), random(2, 8, 4, 4, seed=1)
    expected = []
    for image in range(2):
        a, b = (each[image].square().sum(0).flatten() for each in (own, theirs))
        expected.append((a / a.norm() - b / b.norm()).square().mean())
    torch.testing.assert_close(AttentionTransfer(["layer"])(maps(own), maps(theirs)), torch.stack(expected).mean())


def test_relations_by_hand_and_what_they_do_not_see() -> None:
    points = random(4, 3)
    found, corner = distances(points), angles(points)
    between = [(points[i] - points[j]).norm() for i in range(4) for j in range(4) if i != j]
    torch.testing.assert_close(found[1, 2], (points[1] - points[2]).norm() / torch.stack(between).mean())
    ways = [points[i] - points[0] for i in (1, 2)]
    cosine = (ways[0] @ ways[1]) / (ways[0].norm() * ways[1].norm())
    torch.testing.assert_close(corner[0, 1, 2], cosine)
    turned = points @ torch.linalg.qr(random(3, 3, seed=2))[0] * 3 + 1
    term = Relations(["layer"])
    assert term(maps(points), maps(turned)).item() == pytest.approx(0, abs=1e-5)
    assert term(maps(points), maps(random(4, 3, seed=5))).item() > 0.1
    own = points.clone().requires_grad_()
    term(maps(own), maps(random(4, 3, seed=5))).backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(2, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


def test_the_newest_pass_is_noted() -> None:
    network = Net()
    watch = Watch(network, ["stem"], training_only=True)
    network.eval()(random(1, 2))
    assert watch.seen is None
    network.train()
    outputs = [network(random(1, 2, seed=i)) for i in range(2)]
    assert watch.seen is not None
    assert watch.seen.output is outputs[-1]
    torch.testing.assert_close(network.head(watch.seen.features["stem"][0]), outputs[-1])
    with pytest.raises(Mistake, match=r"Net has no layer 'stm'.*did you mean 'stem'\?"):
        Watch(network, ["stm"])


@pytest.mark.parametrize(
    ("term", "student", "teacher", "message"),
    [
        (Logits(), answers(random(1, 3)), answers(random(1, 4)), "student tells 3 classes apart, the teacher 4"),
        (
            Logits(),
            answers(random(1, 3, 4, 4)),
            answers(random(1, 3, 2, 2)),
            r"answers \[3, 4, 4\] an image, the teacher",
        ),
        (Logits(), Seen((), None), answers(random(1, 3)), "return none in training"),
        (Hints(["layer"]), maps(random(1, 3, 4, 4)), maps(random(1, 3, 2, 2)), "map 0 is 4x4 in the student and 2x2"),
        (
            AttentionTransfer(["layer"]),
            maps(random(1, 3, 4, 4)),
            maps(random(1, 3, 2, 2)),
            "compare layers of equal str",
        ),
        (Relations(["layer"]), maps(random(1, 3)), maps(), "return 1, the teacher's layer 0"),
    ],
)
def test_what_cannot_be_compared_is_named(term: Term, student: Seen, teacher: Seen, message: str) -> None:
    with pytest.raises(Mistake, match=message):
        term.prepare(student, teacher)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Logits(temperature=0), "temperature is positive"),
        (lambda: Logits(from_last=1.5), "share from 0 to 1"),
        (lambda: Logits(weight=0), "its weight is positive"),
        (lambda: Relations(["layer"], distance=0, angle=0), "not both 0"),
    ],
)
def test_options_that_make_no_sense(make: object, message: str) -> None:
    with pytest.raises(Mistake, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("wanted", [HALVES, BGR_BYTES], ids=["halves", "bgr bytes"])
def test_pixels_of_one_statement_become_those_of_another(wanted: dict[str, object]) -> None:
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))

    def looks(stated: dict[str, object]) -> Tensor:
        mean, std = (torch.tensor(stated[name])[:, None, None] for name in ("mean", "std"))
        ordered = image.flip(0) if stated.get("order") == "bgr" else image
        return (ordered * stated.get("scale", 1.0) - mean) / std

    made = Conversion.between(IMAGENET, wanted)
    assert made is not None
    given = looks(IMAGENET).flip(0) if made.flips else looks(IMAGENET)
    factor, offset = (torch.tensor(each)[:, None, None] for each in (made.factor, made.offset))
    torch.testing.assert_close(factor * given + offset, looks(wanted), rtol=1e-4, atol=1e-4)
    assert Conversion.between(wanted, wanted) is None
