import pytest
import timm
import torch

from callbacks.annealing import find_buffers
from models.official import LayoutError, load, system_of
from models.official.dynamic_conv import to_official, to_ours


def network():
    return timm.create_model("dy_resnet10", num_classes=4)


def test_there_and_back():
    ours = network()
    for temperature in find_buffers(ours, "KernelAttention", "temperature"):
        temperature.fill_(1)
    official = to_official(ours.state_dict())
    assert not [name for name in official if "temperature" in name]
    assert official["layer1.0.conv1.attention.fc1.weight"].shape == (17, 64, 1, 1)
    assert official["layer1.0.conv1.weight"].shape == (4, 64, 64, 3, 3)
    assert system_of(official) == "dynamic_conv"
    assert system_of(ours.state_dict(), to="official") == "dynamic_conv"
    back = to_ours(official)
    assert back.keys() == ours.state_dict().keys()
    torch.testing.assert_close(back, dict(ours.state_dict()))
    # What circulates was trained down to a temperature of one; a fresh network starts high.
    other = network()
    load(other, back)
    assert other.get_submodule("layer1.0.conv1.attention").temperature == 1


def test_broken_checkpoints_are_refused():
    official = to_official(network().state_dict())
    name = "layer2.0.downsample.0.attention.fc2.bias"
    with pytest.raises(LayoutError, match=f"missing {name}"):
        to_ours({key: value for key, value in official.items() if key != name})
    with pytest.raises(LayoutError, match=r"unknown layer1.0.conv1.attention.fc3.weight"):
        to_ours(official | {"layer1.0.conv1.attention.fc3.weight": torch.zeros(1)})
