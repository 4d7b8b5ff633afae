import timm

from callbacks.annealing import find_buffers
from models.official import load
from models.official.dynamic_conv import LAYOUT


def network():
    return timm.create_model("dy_resnet10", num_classes=4)


def test_the_temperature_is_one():
    ours = network()
    for temperature in find_buffers(ours, "KernelAttention", "temperature"):
        temperature.fill_(1)
    official = LAYOUT.to_official(ours.state_dict())
    assert not [name for name in official if "temperature" in name]
    assert official["layer1.0.conv1.attention.fc1.weight"].shape == (17, 64, 1, 1)
    assert official["layer1.0.conv1.weight"].shape == (4, 64, 64, 3, 3)
    # What circulates was trained down to a temperature of one; a fresh network starts high.
    other = network()
    load(other, LAYOUT.to_ours(official))
    assert other.get_submodule("layer1.0.conv1.attention").temperature == 1
