"""What resizes to a size drawn for each image share, whatever they resize with."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import albumentations as A
from typing_extensions import override


class DrawnResize(A.DualTransform):
    """A resize to a size drawn for each image; ``drawn_size`` says which."""

    @abstractmethod
    def drawn_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns for an image of so many rows and columns."""

    @override
    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        return {"size": self.drawn_size(*params["shape"][:2])}
