import torch
from torch import nn

from models.memory import PeakMemory


def test_peak_is_where_most_tensors_live() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    images = torch.randn(1, 3, 10, 10)
    with torch.no_grad(), PeakMemory([*network.parameters(), images]) as memory:
        out = network(images)
        del out
    held = 4 * (300 + 24 + 8 + 8 + 1)
    assert memory.peak == held + 4 * 2 * 800
    assert memory.alive == held


def test_views_and_in_place_results_take_nothing() -> None:
    x = torch.zeros(100)
    with PeakMemory([x]) as memory:
        x.add_(1).view(10, 10).mT.mul_(2)
    assert memory.peak == 400
