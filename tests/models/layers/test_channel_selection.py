"""Which channels a selection picks, and that weights say it."""

from __future__ import annotations

import pytest
import torch

from models.layers.channel_selection import ChannelSelection


def test_picks_channels_in_their_order() -> None:
    selection = ChannelSelection(5, 3)
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(selection(x), x[:, :3])
    selection.select(torch.tensor([False, True, False, True, True]))
    assert torch.equal(selection(x), x[:, [1, 3, 4]])
    assert selection.indexes.tolist() == [0, 1, 0, 1, 1]
    assert ChannelSelection(5)(x) is x


def test_weights_say_which_channels() -> None:
    chosen, fresh = ChannelSelection(5, 3), ChannelSelection(5, 3)
    chosen.select(torch.tensor([0.0, 1, 0, 1, 1]))
    assert chosen.state_dict().keys() == {"indexes"}
    fresh.load_state_dict(chosen.state_dict())
    x = torch.randn(1, 5, 2, 2)
    assert torch.equal(fresh(x), chosen(x))


def test_keeps_some_of_those_it_picks() -> None:
    selection = ChannelSelection(5, 3)
    selection.select(torch.tensor([0.0, 1, 0, 1, 1]))
    selection.keep(torch.tensor([0, 2]))
    x = torch.randn(1, 5, 2, 2)
    assert torch.equal(selection(x), x[:, [1, 4]])
    assert selection.indexes.tolist() == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("mask", [[1.0, 1, 1, 1, 0], [0.0, 0, 0, 0, 0]])
def test_another_number_of_channels_is_refused(mask: list[float]) -> None:
    selection = ChannelSelection(5, 3)
    with pytest.raises(ValueError, match=f"{int(sum(mask))} of 5 channels are picked where there is room for 3 of 5"):
        selection.select(torch.tensor(mask))
    with pytest.raises(RuntimeError, match=r"indexes: .* room for 3 of 5"):
        selection.load_state_dict({"indexes": torch.tensor(mask)})
