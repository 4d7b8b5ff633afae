"""What learners promise, whatever their method is."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import DropPath

import models.backbones  # noqa: F401  registers our networks with timm
from models.classifiers import timm_classifier
from models.mistakes import Mistake
from models.self_supervised import BYOL, DINO, DINOHead, Encoder, Learner, MoCo, Pixels, mlp_head
from models.self_supervised.collapse import direction_sums, effective_rank, spread
from models.self_supervised.dino import Centre, cross_entropies
from models.self_supervised.knn import knn_votes
from tests.library.learners import SmallConv, learner

NAMES = ["moco", "byol", "dino"]


@pytest.mark.parametrize("name", NAMES)
def test_teachers_get_no_gradients_and_students_do(name: str) -> None:
    network = learner(name).train()
    network([torch.randn(2, 8, 3, 8, 8)]).backward()
    assert all(parameter.grad is None for parameter in network.teacher.parameters())
    assert all(parameter.grad is not None for parameter in network.student.backbone.parameters())
    ((student, teacher),) = network.pairs()
    assert student is network.student
    assert teacher is network.teacher
    assert network.eval()(torch.randn(4, 3, 8, 8)).shape == (4, 16)


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_other_than_two_views_are_refused(name: str) -> None:
    with pytest.raises(Mistake, match="two views of each image are compared, not 3"):
        learner(name)([torch.randn(3, 8, 3, 8, 8)])


def test_dino_needs_global_crops() -> None:
    with pytest.raises(Mistake, match="DINO's first views are 2 crops of one size, not 1"):
        learner("dino")([torch.randn(1, 8, 3, 8, 8), torch.randn(1, 8, 3, 6, 6)])


def test_stochastic_depth_is_the_students() -> None:
    backbone = timm.create_model("vit_tiny_patch16_dino", depth=2, embed_dim=12, num_classes=0, drop_path_rate=0.1)
    network = DINO(backbone, {"out_dim": 4, "hidden_dim": 4, "bottleneck_dim": 2})
    rates = {
        side: [module.drop_prob for module in network.side(side).modules() if isinstance(module, DropPath)]
        for side in ("student", "teacher")
    }
    assert max(rates["student"]) == pytest.approx(0.1)
    assert not any(rates["teacher"])


def test_pairs_of_crops_are_all_but_the_same() -> None:
    torch.manual_seed(0)
    student, targets = torch.randn(5, 3, 7), torch.randn(2, 3, 7).softmax(-1)
    terms = [-(targets[i] * student[v].log_softmax(-1)).sum(-1).mean() for i in range(2) for v in range(5) if v != i]
    torch.testing.assert_close(cross_entropies(student, targets), torch.stack(terms).mean())


def test_the_centre_moves_once_a_step() -> None:
    centre = Centre(2, 0.9)
    for logits in ([[1.0, 0.0], [3.0, 0.0]], [[0.0, 4.0], [0.0, 8.0]]):
        centre.see(torch.tensor(logits))
        assert centre.value.tolist() == [[0, 0]]
    centre.advance()
    torch.testing.assert_close(centre.value, torch.tensor([[0.1, 0.3]]))
    centre.advance()
    torch.testing.assert_close(centre.value, torch.tensor([[0.1, 0.3]]))


def test_neighbours_vote_by_similarity() -> None:
    torch.manual_seed(0)
    features, bank, labels = torch.randn(5, 4), torch.randn(30, 4), torch.randint(3, (30,))
    votes = knn_votes(features, bank, labels, 3, k=7, temperature=0.5)
    similarity = torch.cosine_similarity(features[:, None], bank[None], dim=-1)
    for row, own in enumerate(similarity):
        expected = [0.0] * 3
        for i in own.argsort(descending=True)[:7].tolist():
            expected[int(labels[i])] += float((own[i] / 0.5).exp())
        torch.testing.assert_close(votes[row], torch.tensor(expected))
    # A bank may have fewer.
    assert knn_votes(features, bank[:4], labels[:4], 3, k=20).shape == (5, 3)


def test_spread_and_rank_tell_collapse() -> None:
    torch.manual_seed(0)
    sphere, point = torch.randn(4096, 16), torch.ones(4096, 16) + 1e-3 * torch.randn(4096, 16)
    assert spread(direction_sums(sphere), 4096).item() == pytest.approx(1, abs=0.02)
    assert spread(direction_sums(point), 4096).item() < 0.01
    line = torch.randn(100, 1) @ torch.randn(1, 16)
    assert effective_rank(line).item() == pytest.approx(1, abs=0.01)
    assert effective_rank(sphere).item() > 15


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_a_point_is_a_collapse(name: str) -> None:
    network = learner(name).eval()
    for parameter in network.student.projector.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(network.student.projector[-1].weight)
    images = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        signs = network.signs(network.tally(images), 8)
    assert "point the same way" in (network.collapsed(signs) or "")
    healthy = learner("dino").eval()
    assert healthy.collapsed({"entropy": torch.tensor(0.8), "mean_entropy": torch.tensor(0.9)}) is None


@pytest.mark.parametrize(("scale", "what"), [(0.0, "all answers are undecided"), (1e4, "one prototype wins")])
def test_both_collapses_of_dino_are_told_apart(scale: float, what: str) -> None:
    network = learner("dino").eval()
    assert isinstance(network, DINO)
    last = network.teacher.projector.last_layer
    last.direction.data.copy_(torch.randn_like(last.direction[:1]).expand_as(last.direction))
    last.length.data.zero_()
    network.centre.value[0, 0] = -scale
    images = torch.randn(8, 3, 8, 8)
    signs = network.signs(network.tally(images), 8)
    assert what in (network.collapsed(signs) or "")


def trained(network: Learner) -> dict[str, torch.Tensor]:
    """What a learner shows of itself after some steps on noise, its teacher following closely."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([each for each in network.parameters() if each.requires_grad], lr=3e-3)
    images = torch.randn(32, 3, 8, 8)
    for _ in range(100):
        optimizer.zero_grad()
        network.train()([images + 0.3 * torch.randn(2, *images.shape)]).backward()
        optimizer.step()
        network.advance()
        with torch.no_grad():
            for teacher, student in zip(network.teacher.parameters(), network.student.parameters(), strict=True):
                teacher.lerp_(student, 0.05)
    with torch.no_grad():
        network.eval()
        return network.signs(network.tally(images), len(images))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, None),
        ({"center_momentum": 1.0}, "one prototype wins"),
        ({"teacher_temp": 0.2}, "all answers are undecided"),
    ],
)
def test_dino_collapses_without_what_keeps_it_from_it(options: dict[str, float], what: str | None) -> None:
    torch.manual_seed(0)
    network = DINO(SmallConv(), {"out_dim": 64, "hidden_dim": 32, "bottleneck_dim": 16}, **options)
    said = network.collapsed(trained(network))
    assert said is None if what is None else what in (said or "")


def test_norms_keep_byols_projections_apart() -> None:
    spreads = []
    for norm in (True, False):
        torch.manual_seed(0)
        spreads.append(float(trained(BYOL(SmallConv(), 32, 16, norm=norm))["spread"]))
    assert spreads[0] > 0.5 > 0.3 > spreads[1]


def test_pixels_may_be_features() -> None:
    images = torch.randn(5, 3, 8, 8)
    network = BYOL(Pixels(8), 16, 8).eval()
    assert torch.equal(network(images), images.flatten(1))
    assert parameters(network.student.backbone) == 0


def parameters(module: torch.nn.Module, trained: bool | None = None) -> int:
    return sum(each.numel() for each in module.parameters() if trained is None or each.requires_grad == trained)


def test_sizes_are_those_published() -> None:
    with torch.device("meta"):
        trunk = timm_classifier("resnet50", num_classes=0)
        assert parameters(trunk) == 23_508_032
        assert parameters(Encoder(trunk, mlp_head(2048, 2048, 128, norm=False))) == 27_966_656
        assert parameters(Encoder(trunk, mlp_head(2048, None, 128))) == 23_770_304
        projector, predictor = mlp_head(2048, 4096, 256), mlp_head(256, 4096, 256)
        assert parameters(trunk) + parameters(projector) + parameters(predictor) == 35_067_456
        for dim, count in {192: 21_958_912, 384: 22_352_128, 768: 23_138_560, 2048: 25_760_000}.items():
            head = DINOHead(dim)
            assert parameters(head) == count
            assert parameters(head, trained=False) == 65_536
        sizes = {"tiny_patch16": 5_524_416, "tiny_patch8": 5_526_720, "small_patch16": 21_665_664}
        sizes |= {"small_patch8": 21_670_272, "base_patch16": 85_798_656, "base_patch8": 85_807_872}
        for name, count in sizes.items():
            assert parameters(timm.create_model(f"vit_{name}_dino", num_classes=0)) == count


def test_heads_of_byol_end_without_a_bias() -> None:
    network = BYOL(timm_classifier("resnet18", num_classes=0), 8, 4)
    assert network.predictor.get_submodule("3").bias is None
    assert network.student.projector[-1].bias is None
    contrast = MoCo(timm_classifier("resnet18", num_classes=0), 4, queue_size=8)
    assert isinstance(contrast.student.projector[2].bias, torch.Tensor)
