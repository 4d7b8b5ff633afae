import pytest
import torch

from models.layers.mask_code import mask_iou
from models.layers.mask_code_baselines import GridCode, PrincipalCode
from tests.library.mask_blobs import blobs


def test_a_grid_of_every_pixel_is_the_mask() -> None:
    masks = blobs(4, 8)
    code = GridCode(64, 8)
    assert code.masks(code.encode(masks)).equal(masks)


def test_cells_are_means() -> None:
    masks = blobs(3, 8)
    expected = masks.float().unflatten(1, (2, 4)).unflatten(3, (2, 4)).mean((2, 4))
    torch.testing.assert_close(GridCode(4, 8).encode(masks), expected.flatten(1))


@pytest.mark.parametrize("cells", [0, 3, 81, -4])
def test_a_grid_is_square(cells: int) -> None:
    with pytest.raises(ValueError, match="1, 4, 9"):
        GridCode(cells, 8)


def test_principal_components_are_those_of_an_svd() -> None:
    masks = blobs(12, 6)
    code = PrincipalCode(5, 6)
    code.fit(masks)
    flat = masks.flatten(1).double()
    _, _, rows = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    # The direction of a component is a matter of taste.
    signs = (code.components.double() * rows[:5]).sum(1, keepdim=True).sign()
    torch.testing.assert_close(code.components.double() * signs, rows[:5], atol=1e-4, rtol=0)
    spread = code.encode(masks).var(0)
    assert (spread.diff() <= 0).all()


def test_as_many_components_as_masks_span_keep_the_masks() -> None:
    masks = blobs(9, 6)
    code = PrincipalCode(8, 6)
    code.fit(masks)
    assert code.masks(code.encode(masks)).equal(masks)
    restored = PrincipalCode(8, 6)
    restored.load_state_dict(code.state_dict())
    assert restored.masks(restored.encode(masks)).equal(masks)


def test_components_need_more_masks_than_there_are_of_them() -> None:
    with pytest.raises(ValueError, match="more masks than the 8"):
        PrincipalCode(8, 6).fit(blobs(8, 6))
    with pytest.raises(ValueError, match="1 to 36"):
        PrincipalCode(37, 6)


def test_iou_of_masks() -> None:
    masks, others = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    masks[0, 0] = others[0] = others[1, 0, 0] = True
    assert mask_iou(masks, others).tolist() == [0.5, 0.0, 1.0]
