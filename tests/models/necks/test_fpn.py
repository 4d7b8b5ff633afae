from typing import get_args

import pytest
import torch

from models.necks import FPN, Extra

CHANS, WIDTH = [4, 6, 8], 5


def maps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, chans, 24 >> i, 32 >> i, generator=generator) for i, chans in enumerate(CHANS)]


@pytest.mark.parametrize("extra", get_args(Extra))
def test_levels_halve_and_are_as_many_as_stated(extra: Extra) -> None:
    neck = FPN(CHANS, WIDTH, extra)
    levels = neck(maps())
    assert len(levels) == neck.num_levels == (4 if extra == "pool" else 5)
    assert [level.shape[1:] for level in levels] == [(WIDTH, -(-24 >> i), -(-32 >> i)) for i in range(len(levels))]


def test_extra_levels_come_from_where_they_are_said_to() -> None:
    torch.manual_seed(0)
    levels = FPN(CHANS, WIDTH, "pool")(maps())
    assert levels[3].equal(levels[2][..., ::2, ::2])
    for extra, source_chans in (("conv_on_backbone", CHANS[-1]), ("conv_on_pyramid", WIDTH)):
        neck = FPN(CHANS, WIDTH, extra)
        blocks = neck.fpn.extra_blocks
        levels = neck(maps())
        source = maps()[-1] if extra == "conv_on_backbone" else levels[2]
        assert blocks.p6.in_channels == source_chans
        torch.testing.assert_close(levels[3], blocks.p6(source))
        torch.testing.assert_close(levels[4], blocks.p7(levels[3].relu()))


def test_input_norm_is_over_the_channels_of_each_cell() -> None:
    torch.manual_seed(0)
    plain, normed = FPN(CHANS, WIDTH, "pool"), FPN(CHANS, WIDTH, "pool", input_norm=True)
    assert set(plain.state_dict()) == {name for name in normed.state_dict() if not name.startswith("norms.")}
    normed.load_state_dict(plain.state_dict(), strict=False)
    expected = plain([(x - x.mean(1, True)) / (x.var(1, correction=0, keepdim=True) + 1e-6).sqrt() for x in maps()])
    torch.testing.assert_close(normed(maps()), expected)
