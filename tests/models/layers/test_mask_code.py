import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from models.layers.mask_code import MaskCode, mask_iou, zigzag
from tests.library.mask_blobs import blobs


def test_zigzag_of_four_is_the_published_table() -> None:
    assert (zigzag(4, 16) @ torch.tensor([4, 1])).tolist() == [0, 1, 4, 8, 5, 2, 3, 6, 9, 12, 13, 10, 7, 11, 14, 15]


@given(size=st.integers(1, 24))
@settings(deadline=None, max_examples=24)
def test_zigzag_walks_over_every_frequency_once(size: int) -> None:
    walk = zigzag(size, size * size)
    assert len({tuple(cell) for cell in walk.tolist()}) == size * size
    steps = walk.diff(dim=0)
    assert (steps.abs() <= 1).all()
    # Either along an antidiagonal or, at the border, on to the next one.
    assert set(steps.sum(1).tolist()) <= {0, 1}
    assert walk[1:2].tolist() in ([], [[0, 1]])


@given(size=st.integers(1, 20), share=st.floats(0, 1), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_codes_are_the_low_frequencies_of_the_transform(size: int, share: float, seed: int) -> None:
    count = 1 + int(share * (size * size - 1))
    masks = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)) < 0.5
    code = MaskCode(count, size)
    vectors = code.encode(masks)
    rows, columns = zigzag(size, count).T
    spectrum = dctn(masks.numpy().astype(np.float64), axes=(1, 2), norm="ortho")
    torch.testing.assert_close(vectors.double(), torch.from_numpy(spectrum)[:, rows, columns], atol=1e-5, rtol=1e-5)
    # Decoding is the adjoint: a projection, after which another one changes nothing.
    torch.testing.assert_close(code.encode(code.decode(vectors)), vectors, atol=1e-5, rtol=1e-5)


@given(size=st.integers(2, 16), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_all_coefficients_are_the_mask(size: int, seed: int) -> None:
    masks = blobs(4, size, seed)
    code = MaskCode(size * size, size)
    torch.testing.assert_close(code.decode(code.encode(masks)), masks.float(), atol=1e-5, rtol=0)
    assert code.masks(code.encode(masks)).equal(masks)


def test_more_coefficients_are_nearer() -> None:
    masks = blobs(6, 32)
    errors = []
    for count in (4, 16, 64, 256, 1024):
        code = MaskCode(count, 32)
        errors.append((code.decode(code.encode(masks)) - masks.float()).square().sum((1, 2)))
    assert (torch.stack(errors).diff(dim=0) < 0).all()


def test_masks_do_not_depend_on_the_scale_of_a_code() -> None:
    code = MaskCode(20, 16)
    vectors = code.encode(blobs(5, 16))
    assert code.masks(vectors).equal(code.masks(0.01 * vectors))
    assert not code.masks(torch.zeros(1, 20)).any()
    assert code.masks(vectors[:0]).shape == (0, 16, 16)


def test_the_first_coefficient_is_the_area() -> None:
    masks = blobs(3, 16)
    torch.testing.assert_close(MaskCode(5, 16).encode(masks)[:, 0], masks.sum((1, 2)) / 16)


def test_a_crop_scales_the_box_to_the_grid() -> None:
    masks = blobs(2, 8)
    canvas = torch.zeros(2, 20, 30, dtype=torch.bool)
    canvas[:, 4:12, 7:15] = masks
    boxes = torch.tensor([[7.0, 4, 15, 12]]).repeat(2, 1)
    assert MaskCode(4, 8).crop(canvas, boxes).equal(masks)
    assert MaskCode(4, 16).crop(canvas, boxes).float().mean() == pytest.approx(masks.float().mean().item(), abs=0.05)
    assert MaskCode(4, 8).crop(canvas[:0], boxes[:0]).shape == (0, 8, 8)


def test_half_a_cell_is_one() -> None:
    masks = torch.tensor([[[True, False]], [[False, False]]])
    assert MaskCode(1, 1).crop(masks, torch.tensor([[0.0, 0, 2, 1]]).repeat(2, 1)).flatten().tolist() == [True, False]


def test_intersection_over_union_of_pairs() -> None:
    masks = torch.tensor([[[1, 1], [0, 0]], [[1, 1], [0, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]])
    others = torch.tensor([[[1, 0], [1, 0]], [[0, 0], [1, 1]], [[1, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]])
    torch.testing.assert_close(mask_iou(masks.bool(), others.bool()), torch.tensor([1 / 3, 0.0, 1.0, 1.0, 0.25]))


def test_codes_stay_in_full_precision() -> None:
    code, masks = MaskCode(256, 128), blobs(3, 128)
    expected = code.encode(masks)
    with torch.autocast("cpu", torch.bfloat16):
        assert code.encode(masks).equal(expected)
        assert code.decode(expected).dtype == torch.float32
        assert code.decode(expected.bfloat16()).dtype == torch.float32
    assert not code.state_dict()
    assert code.basis.shape == (23, 128)


@pytest.mark.parametrize(("count", "size"), [(0, 4), (17, 4), (1, 0)])
def test_a_code_fits_its_mask(count: int, size: int) -> None:
    with pytest.raises(ValueError, match="coefficients"):
        MaskCode(count, size)
