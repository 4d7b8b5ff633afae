from __future__ import annotations

import pytest
import timm

from models.official import LayoutError, system_of
from models.official.upernet import LAYOUT
from tests.library.upernet_networks import TINY


def test_a_backbone_alone_is_not_this_system() -> None:
    dense = timm.create_model("convnext_tiny_dense", features_only=True, **TINY["options"]).state_dict()
    assert system_of(dense, "official") == "convnext"
    with pytest.raises(LayoutError, match=r"our UperNet layout: missing head\.pools\.0\.1\.0\.weight"):
        LAYOUT.to_official({f"backbone.{name}": value for name, value in dense.items()})
