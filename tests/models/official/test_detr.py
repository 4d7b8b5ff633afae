import pytest
import torch

from models.detectors.detr_segmentation import DETRSegmentation
from models.official import LayoutError, layout, load, system_of
from tests.models.detectors.dense_networks import small, smca

NETWORKS = {
    "detr": small(),
    "learned": small(position_encoding="learned", pre_norm=True, encoder_layers=2),
    "masks": DETRSegmentation(small(num_levels=4, hidden_dim=128, num_heads=8)),
    "type1": smca(gaussian_scale="type1"),
    "type3": smca(gaussian_scale="type3", decoder_layers=3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layouts_are_told_apart_and_translated_there_and_back(name: str) -> None:
    ours = NETWORKS[name].state_dict()
    system = "smca" if name.startswith("type") else "detr"
    assert system_of(ours, "official") == system
    official = layout(system).to_official(ours)
    assert system_of(official) == system
    assert official.keys() != ours.keys()
    logged = {f"module.{key}": value for key, value in official.items()} | {"module.total_ops": torch.zeros(1)}
    assert system_of(logged) == system
    back = layout(system).to_ours(logged)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], ours[key]) for key in ours)


def test_official_names() -> None:
    names = layout("smca").to_official(NETWORKS["type3"].state_dict()).keys()
    assert {
        "backbone.0.body.stages_0.0.weight",
        "transformer.decoder.layers.0.point1.layers.2.bias",
        "transformer.decoder.layers.2.point3.weight",
        "transformer.decoder.layers.1.norm4.weight",
        "class_embed.weight",
    } <= names
    names = layout("detr").to_official(NETWORKS["masks"].state_dict()).keys()
    assert {
        "detr.backbone.0.body.stages_0.0.weight",
        "detr.query_embed.weight",
        "bbox_attention.k_linear.bias",
        "mask_head.lay5.weight",
        "mask_head.gn1.bias",
        "mask_head.out_lay.weight",
        "mask_head.adapter3.weight",
    } <= names
    assert "backbone.1.row_embed.weight" in layout("detr").to_official(NETWORKS["learned"].state_dict())


@pytest.mark.parametrize(("name", "system"), [("detr", "detr"), ("type3", "smca")])
def test_keys_that_do_not_fit(name: str, system: str) -> None:
    files, ours = layout(system), NETWORKS[name].state_dict()
    official = files.to_official(ours)
    stranger, last = {"transformer.extra": torch.zeros(1)}, "transformer.decoder.norm.weight"
    for translate, state in ((files.to_ours, official), (files.to_official, ours)):
        with pytest.raises(LayoutError, match=r"unknown transformer\.extra"):
            translate(state | stranger)
        with pytest.raises(LayoutError, match=r"missing transformer\.decoder\.norm\.weight"):
            translate({key: value for key, value in state.items() if key != last})
    with pytest.raises(LayoutError, match=r"unknown backbone\.body"):
        files.to_ours(ours)


def test_other_classes_keep_the_rest() -> None:
    network = small(num_classes=3)
    classifier = network.class_embed.weight.clone()
    assert set(load(network, NETWORKS["detr"].state_dict())) == {"class_embed.weight", "class_embed.bias"}
    assert torch.equal(network.class_embed.weight, classifier)
    assert torch.equal(network.query_embed.weight, NETWORKS["detr"].state_dict()["query_embed.weight"])
