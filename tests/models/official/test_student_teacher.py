"""Official files of students and teachers, as their trainings write them."""

from __future__ import annotations

import pytest
import torch

from models.official import layout_of, load, system_of, unwrap
from models.self_supervised import DINO
from tests.library.official_networks import BUILD, weights


def test_a_whole_training_of_dino_is_read() -> None:
    """The student's names have a wrapper, the teacher's have none; the centre lies with the loss."""
    ours = weights("dino")
    official = layout_of("dino").to_official(ours)
    checkpoint = {
        "student": {f"module.{name[8:]}": value for name, value in official.items() if name.startswith("student.")},
        "teacher": {name[8:]: value for name, value in official.items() if name.startswith("teacher.")},
        "optimizer": {"state": {}},
        "epoch": 7,
        "dino_loss": {"center": official["center"]},
    }
    state = unwrap(checkpoint)
    assert system_of(state) == "dino"
    network = BUILD["dino"]()
    assert load(network, layout_of("dino").to_ours(state)) == []
    assert all(torch.equal(value, ours[name]) for name, value in network.state_dict().items())
    # The teacher alone, for who asks for what is averaged.
    assert set(unwrap(checkpoint, ema=True)) == set(checkpoint["teacher"])


def test_newer_names_of_the_last_layer_are_read() -> None:
    ours = weights("dino")
    newer = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for name, value in layout_of("dino").to_official(ours).items()
    }
    back = layout_of("dino").to_ours(newer)
    assert all(torch.equal(value, back[name]) for name, value in ours.items())


@pytest.mark.parametrize("name", ["moco", "moco/v1"])
def test_moco_is_read_from_under_its_wrapper(name: str) -> None:
    ours = weights(name)
    official = layout_of("moco").to_official(ours)
    assert {"encoder_q.conv1.weight", "encoder_k.bn1.running_mean", "queue", "queue_ptr"} <= official.keys()
    assert ("encoder_q.fc.2.bias" if name == "moco" else "encoder_q.fc.bias") in official
    checkpoint = {"epoch": 3, "arch": "resnet50", "state_dict": {f"module.{k}": v for k, v in official.items()}}
    network = BUILD[name]()
    load(network, layout_of("moco").to_ours(unwrap(checkpoint)))
    # The pointer counts.
    assert all(torch.equal(value, ours[key].to(value.dtype)) for key, value in network.state_dict().items())


def test_both_weights_of_fixmatch_are_read() -> None:
    raw = layout_of("fixmatch").to_official(weights("fixmatch"))
    averaged = {name: torch.zeros_like(value) for name, value in raw.items()}
    checkpoint = {"epoch": 3, "state_dict": raw, "ema_state_dict": averaged, "acc": 90.0, "optimizer": {}}
    for ema, state in ((False, raw), (True, averaged)):
        network = BUILD["fixmatch"]()
        load(network, layout_of("fixmatch").to_ours(unwrap(checkpoint, ema)))
        assert torch.equal(network.state_dict()["stem.weight"], state["conv1.weight"])


def test_the_published_side_answers_an_image() -> None:
    network = BUILD["dino"]()
    assert isinstance(network, DINO)
    for parameter in network.student.backbone.parameters():
        torch.nn.init.zeros_(parameter)
    assert network.eval()(torch.randn(2, 3, 16, 16)).abs().max() > 0
