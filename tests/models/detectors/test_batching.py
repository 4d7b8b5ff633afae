import pytest
import torch

from models.detectors.batching import output_sizes, pad


def test_images_are_padded_right_and_below() -> None:
    first, second = torch.rand(3, 4, 7), torch.rand(3, 6, 5)
    images, padding = pad([first, second])
    assert images.shape == (2, 3, 6, 7)
    assert torch.equal(images[0, :, :4], first)
    assert torch.equal(images[1, :, :, :5], second)
    assert images.masked_select(padding[:, None]).abs().sum() == 0
    assert padding.dtype == torch.bool
    assert (~padding).sum((1, 2)).tolist() == [4 * 7, 6 * 5]
    assert not padding[0, :4].any()
    assert not padding[1, :, :5].any()


def test_a_batch_has_images() -> None:
    with pytest.raises(ValueError, match="at least one"):
        pad([])


def test_original_sizes_are_optional() -> None:
    images = [torch.rand(3, 4, 7), torch.rand(3, 6, 5)]
    assert output_sizes(images) == [(4, 7), (6, 5)]
    assert output_sizes(images, [{}, {"original_size": (60, 50)}]) == [(4, 7), (60, 50)]
