import math
from typing import Any

import pytest
import torch

from models.detectors.batching import pad
from models.detectors.smca import GAUSSIAN_SCALES, SMCA, GaussianPrior
from tests.library.dense_networks import SMALL, images, smca


@pytest.mark.parametrize("scale", GAUSSIAN_SCALES)
def test_prior_is_the_equation(scale: str) -> None:
    torch.manual_seed(0)
    heads, height, width = 2, 3, 4
    prior = GaussianPrior(8, heads, 2, scale, smooth=5.0)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    placed, centres = torch.randn(1, 2, 8), torch.tensor([[[1.5, 0.7], [3.0, 2.0]]])
    bias = prior(1, placed, centres, (height, width))
    assert bias.shape == (1, heads, 2, height * width)
    factors = GAUSSIAN_SCALES[scale]
    o = prior.norms[1](placed)[0]
    for q in range(2):
        offsets = prior.offsets[1](o[q]).tolist()
        s = prior.scales[1](o[q]).square().tolist() if factors else []
        for head in range(heads):
            mine = s[head * factors : (head + 1) * factors]
            s_x, s_y, s_xy = {
                0: lambda: (1, 1, 0),
                1: lambda mine=mine: (mine[0], mine[0], 0),
                2: lambda mine=mine: (*mine, 0),
                3: lambda mine=mine: tuple(mine),
            }[factors]()
            mu_x = centres[0, q, 0].item() + offsets[2 * head]
            mu_y = centres[0, q, 1].item() + offsets[2 * head + 1]
            for i in range(height):
                for j in range(width):
                    d_x, d_y = (mu_x - j) ** 2, (mu_y - i) ** 2
                    expected = -abs(s_x * d_x + s_y * d_y + s_xy * d_x * d_y) / 5.0
                    assert bias[0, head, q, i * width + j].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_first_values_are_the_published_ones() -> None:
    network = smca(gaussian_scale="type4")
    torch.testing.assert_close(network.class_embed.bias, torch.full((6,), -math.log(99)))
    for layer in network.prior.scales:
        assert (layer.weight == 0).all()
        assert (layer.bias == 1).all()
    assert not list(smca(gaussian_scale="type1").prior.scales)


def test_centres_are_relative_to_the_image_without_padding() -> None:
    network = smca(gaussian_scale="type1").eval()
    with torch.no_grad():
        for layer in network.prior.offsets:
            layer.weight.zero_()
            layer.bias.zero_()
        network.prior.centre.layers[-1].weight.zero_()
        network.prior.centre.layers[-1].bias.zero_()
        network.bbox_embed.layers[-1].weight.zero_()
        network.bbox_embed.layers[-1].bias.zero_()
    maps = network.attention_maps(images())
    assert maps.gaussian is not None
    # Half of 80 x 64 and of 64 x 48 pixels, at stride 16, in cells (column, row).
    for image, (x, y) in enumerate(((2.5, 2.0), (2.0, 1.5))):
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
        expected = -((columns - x) ** 2 + (rows - y) ** 2) / 8
        torch.testing.assert_close(maps.gaussian[:, image], expected.expand(2, 4, 6, -1, -1))
    torch.testing.assert_close(maps.detections.boxes, torch.full((2, 6, 4), 0.5))


def test_boxes_are_around_the_centre() -> None:
    network = smca().train()
    with torch.no_grad():
        network.bbox_embed.layers[-1].weight.zero_()
        network.bbox_embed.layers[-1].bias.zero_()
    decoded = network.decode(network.encode(*pad(images())))
    boxes = network.predictions(decoded, all_layers=True).boxes
    assert decoded.centres is not None
    torch.testing.assert_close(boxes[..., :2], decoded.centres.sigmoid().expand(2, 2, -1, -1))
    torch.testing.assert_close(boxes[..., 2:], torch.full((2, 2, 6, 2), 0.5))


def test_only_classes_are_detected() -> None:
    network = smca().eval()
    with torch.no_grad():
        network.class_embed.bias[-1] = 10.0
        for found in network(images()):
            assert found["labels"].max() < network.num_classes
            assert found["scores"].max() < 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"gaussian_scale": "type5"}, "one of type1, type2, type3, type4, not 'type5'"), ({"smooth": 0.0}, "positive")],
)
def test_bad_priors_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SMCA(**SMALL | changes)
