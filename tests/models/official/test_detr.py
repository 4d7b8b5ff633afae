import torch

from models.detectors.detr_segmentation import DETRSegmentation
from models.official import layout_of, load
from tests.library.dense_networks import small, smca

NETWORKS = {
    "detr": small(),
    "learned": small(position_encoding="learned", pre_norm=True, encoder_layers=2),
    "masks": DETRSegmentation(small(num_levels=4, hidden_dim=128, num_heads=8)),
    "type1": smca(gaussian_scale="type1"),
    "type3": smca(gaussian_scale="type3", decoder_layers=3),
}


def test_official_names() -> None:
    names = layout_of("smca").to_official(NETWORKS["type3"].state_dict()).keys()
    assert {
        "backbone.0.body.stages_0.0.weight",
        "transformer.decoder.layers.0.point1.layers.2.bias",
        "transformer.decoder.layers.2.point3.weight",
        "transformer.decoder.layers.1.norm4.weight",
        "class_embed.weight",
    } <= names
    names = layout_of("detr").to_official(NETWORKS["masks"].state_dict()).keys()
    assert {
        "detr.backbone.0.body.stages_0.0.weight",
        "detr.query_embed.weight",
        "bbox_attention.k_linear.bias",
        "mask_head.lay5.weight",
        "mask_head.gn1.bias",
        "mask_head.out_lay.weight",
        "mask_head.adapter3.weight",
    } <= names
    assert "backbone.1.row_embed.weight" in layout_of("detr").to_official(NETWORKS["learned"].state_dict())


def test_other_classes_keep_the_rest() -> None:
    network = small(num_classes=3)
    classifier = network.class_embed.weight.clone()
    assert set(load(network, NETWORKS["detr"].state_dict())) == {"class_embed.weight", "class_embed.bias"}
    assert torch.equal(network.class_embed.weight, classifier)
    assert torch.equal(network.query_embed.weight, NETWORKS["detr"].state_dict()["query_embed.weight"])
