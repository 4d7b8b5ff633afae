"""Necks: what mixes the maps of a backbone into the levels that the heads of a detector read.

A neck is a module that a pyramid detector builds as `neck(in_chans, out_chans, extra, input_norm)`:

    in_chans    channels of the backbone's maps, finest first, each at half the resolution of the one before
    out_chans   channels of every level
    extra       which coarser levels the detector asks for beyond the maps (see `FPN`)
    input_norm  whether the maps come without a norm, so that the neck begins with one

Its `forward` takes the list of maps [B, in_chans[i], h_i, w_i] and returns a list of `num_levels` levels
[B, out_chans, ...], finest first: one of the resolution of each map, and after them the coarser ones, each at half the
resolution of the one before. `num_levels` is an attribute. What else a neck takes has defaults, and a config gives it:

    neck: {class_path: models.necks.FPN, init_args: {...}}
"""

from collections.abc import Callable

from torch import nn

from models.necks.dyfpn import DyFPN
from models.necks.fpn import FPN, Extra
from models.necks.inception import InceptionFPN

Neck = Callable[[list[int], int, Extra, bool], nn.Module]

__all__ = ["FPN", "DyFPN", "Extra", "InceptionFPN", "Neck"]
