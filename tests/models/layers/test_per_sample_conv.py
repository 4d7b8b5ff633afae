import pytest
import torch
import torch.nn.functional as F

from models.layers import per_sample_conv
from models.layers.per_sample_conv import images_at_once, per_sample_conv2d

CASES = [
    # C, O, kernel, stride, padding, dilation, groups
    (6, 8, (3, 3), 1, 1, 1, 1),
    (6, 8, (3, 3), 2, 1, 1, 2),
    (6, 6, (5, 5), (2, 1), 2, 1, 6),
    (6, 8, (1, 1), 1, 0, 1, 1),
    (6, 8, (1, 1), 2, 0, 1, 1),
    (6, 8, (1, 1), 1, 1, 1, 1),
    (6, 4, (1, 1), 1, 0, 1, 2),
    (4, 4, (3, 1), 1, (2, 0), 2, 1),
]


def draw(channels, out_channels, kernel, groups, batch=5):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, channels, 9, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(batch, out_channels, channels // groups, *kernel, generator=generator, dtype=torch.float64)
    bias = torch.randn(batch, out_channels, generator=generator, dtype=torch.float64)
    return images, weight, bias


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("channels", "out_channels", "kernel", "stride", "padding", "dilation", "groups"), CASES)
def test_each_image_meets_its_own_kernel(
    channels, out_channels, kernel, stride, padding, dilation, groups, with_bias, layout
):
    images, weight, bias = draw(channels, out_channels, kernel, groups)
    bias = bias if with_bias else None
    expected = torch.cat(
        [
            F.conv2d(images[i : i + 1], weight[i], None if bias is None else bias[i], stride, padding, dilation, groups)
            for i in range(len(images))
        ]
    )
    images = images.to(memory_format=layout)
    out = per_sample_conv2d(images, weight, bias, stride, padding, dilation, groups)
    torch.testing.assert_close(out, expected)
    bias = None if bias is None else bias[:1]
    single = per_sample_conv2d(images[:1], weight[:1], bias, stride, padding, dilation, groups)
    torch.testing.assert_close(single, expected[:1])


def test_in_parts_as_in_one(monkeypatch):
    images, weight, bias = draw(6, 8, (3, 3), 2)
    images.requires_grad_()
    weight.requires_grad_()
    whole = per_sample_conv2d(images, weight, bias, padding=1, groups=2)
    expected = torch.autograd.grad(whole.square().sum(), (images, weight))
    monkeypatch.setattr(per_sample_conv, "_CACHED", 1)
    monkeypatch.setattr(per_sample_conv, "_FEWEST", 2)
    assert images_at_once(images, weight.shape[1:]) == 2
    parts = per_sample_conv2d(images, weight, bias, padding=1, groups=2)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.square().sum(), (images, weight)), expected)


@pytest.mark.parametrize("size", [(9, 11), (8, 8), (7, 6)])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 2, 1), (3, 1, 2), (1, 2, 1)])
def test_same_padding_is_tensorflows(kernel, stride, dilation, size):
    images = torch.randn(3, 4, *size, dtype=torch.float64)
    weight = torch.randn(3, 5, 4, kernel, kernel, dtype=torch.float64)
    out = per_sample_conv2d(images, weight, None, stride, "same", dilation)
    assert out.shape[-2:] == (-(-size[0] // stride), -(-size[1] // stride))
    # TensorFlow puts the odd zero behind: the first output sees floor(missing / 2) zeros before the image.
    reach = (kernel - 1) * dilation + 1
    before = [max((-(-side // stride) - 1) * stride + reach - side, 0) // 2 for side in size]
    padded = F.pad(images, (before[1], reach, before[0], reach))
    expected = torch.cat([F.conv2d(padded[i : i + 1], weight[i], None, stride, 0, dilation) for i in range(3)])
    torch.testing.assert_close(out, expected[..., : out.shape[-2], : out.shape[-1]])


def test_channels_last_stays_in_pointwise_products():
    images = torch.randn(4, 6, 5, 5).to(memory_format=torch.channels_last)
    out = per_sample_conv2d(images, torch.randn(4, 8, 6, 1, 1), torch.randn(4, 8))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_as_many_images_as_the_caches_hold_are_convolved_together(monkeypatch):
    images, kernel = torch.empty(9, 2, 3, 4), (5, 2, 1, 1)
    # Of an image: a kernel of 10 numbers, 24 that are read and 60 that come out.
    for cached, together in ((94 * 4 - 1, 3), (94 * 4, 4), (94 * 9, 9), (94 * 99, 9), (1, 2)):
        monkeypatch.setattr(per_sample_conv, "_CACHED", cached)
        monkeypatch.setattr(per_sample_conv, "_FEWEST", 2)
        assert images_at_once(images, kernel) == together
    assert images_at_once(images.to("meta"), kernel) == 9
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert images_at_once(images, kernel) == 9
