import pytest
import timm
import torch
import torch.nn.functional as F

from models.official import LayoutError, load, system_of
from models.official.condconv import LAYOUT

EXPERTS = 3


def network():
    return timm.create_model("condconv_mobilenetv2_100", num_classes=4)


def test_tensorflows_kernels_are_transposed():
    """Kernels as TensorFlow keeps them, [n, kh, kw, in, out] and [n, kh, kw, channels, 1], flat."""
    generator = torch.Generator().manual_seed(0)
    expand = torch.randn(EXPERTS, 1, 1, 4, 6, generator=generator)
    depthwise = torch.randn(EXPERTS, 5, 5, 6, 1, generator=generator)
    project = torch.randn(EXPERTS, 1, 1, 6, 2, generator=generator)
    state = {
        "blocks.4.0.conv_pw.condconv_kernel": expand.flatten(1),
        "blocks.4.0.conv_pw.condconv_bias": torch.ones(EXPERTS, 6),
        "blocks.4.0.conv_dw.depthwise_condconv_kernel": depthwise.flatten(1),
        "blocks.4.0.conv_pwl.condconv_kernel": project.flatten(1),
        "blocks.4.0.bn1.weight": torch.ones(6),
        "blocks.4.0.bn2.weight": torch.ones(6),
        "blocks.4.0.bn3.weight": torch.ones(2),
        "blocks.4.0.routing_fn.weight": torch.ones(EXPERTS, 4),
        "blocks.4.0.routing_fn.bias": torch.ones(EXPERTS),
    }
    assert system_of(state) == "condconv"
    ours = LAYOUT.to_ours(state)
    x = torch.randn(2, 7, 7, 6, generator=generator)
    for i in range(EXPERTS):
        kernel = ours["blocks.4.0.conv_dw.weight"][i].view(6, 1, 5, 5)
        out = F.conv2d(x.permute(0, 3, 1, 2), kernel, groups=6)[:, :, 0, 0]
        torch.testing.assert_close(out, torch.einsum("bhwc,hwc->bc", x[:, :5, :5], depthwise[i, ..., 0]))
        kernel = ours["blocks.4.0.conv_pwl.weight"][i].view(2, 6, 1, 1)
        out = F.conv2d(x.permute(0, 3, 1, 2), kernel).permute(0, 2, 3, 1)
        torch.testing.assert_close(out, x @ project[i, 0, 0])
    assert ours["blocks.4.0.conv_pw.weight"].shape == (EXPERTS, 24)
    assert ours["blocks.4.0.conv_pw.bias"].shape == (EXPERTS, 6)
    with pytest.raises(LayoutError, match="not a kernel to 5 channels"):
        LAYOUT.to_ours(state | {"blocks.4.0.bn2.weight": torch.ones(5)})
    del state["blocks.4.0.bn3.weight"]
    with pytest.raises(LayoutError, match="no norm behind it"):
        LAYOUT.to_ours(state)


def test_a_published_checkpoint_loads():
    published = timm.create_model("efficientnet_cc_b0_4e", num_classes=4).state_dict()
    target = timm.create_model("condconv_efficientnet_b0_4e", num_classes=4)
    assert load(target, LAYOUT.to_ours(published)) == []
    torch.testing.assert_close(target.state_dict(), published)
