"""Answers from pixels: any timm backbone, or the pixels of patches as they are, in front of what answers from cells."""

from typing import Any

import timm
import torch
from timm.layers import Format
from torch import Tensor, nn

from models.mistakes import Mistake
from models.pixels import state_pretrained
from models.vqa.trar import CoAttention


class Patches(nn.Module):
    """The pixels of each patch, and a 1, so that no patch counts as padding.

    Args:
        size: Rows and columns of a patch.
        places: Whether a patch also has its row and column, from 0 to 1: nothing else in TRAR says where a cell is.
    """

    def __init__(self, size: int, places: bool = False) -> None:
        super().__init__()
        if size < 1:
            raise Mistake(f"patches have at least one pixel, not size={size}")
        self.size = size
        self.places = places
        self.out_chans = 3 * size**2 + 1 + 2 * places

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to [B, H / size, W / size, out_chans]."""
        if images.shape[-2] % self.size or images.shape[-1] % self.size:
            height, width = images.shape[-2:]
            raise Mistake(f"patches of {self.size} pixels do not fill images of {height}x{width}: resize these")
        patches = nn.functional.pixel_unshuffle(images, self.size).permute(0, 2, 3, 1)
        shape = (*patches.shape[:3], 1)
        parts = [patches, patches.new_ones(shape)]
        if self.places:
            rows, columns = (torch.linspace(0, 1, side, device=images.device).to(patches.dtype) for side in shape[1:3])
            parts += [rows[:, None, None].expand(shape), columns[:, None].expand(shape)]
        return torch.cat(parts, -1)


class BackboneCells(nn.Module):
    """A map of a timm backbone.

    Args:
        name: timm's, of a network with `features_only`, ours included.
        level: Which of its maps, finest first; -1 is the coarsest.
        frozen: Whether it stays as it is, in evaluation mode.
        pretrained: Whether it starts from timm's weights.
        options: Further arguments of `timm.create_model`.

    Raises:
        Mistake: A backbone that timm does not know, or a map that it has not.
    """

    def __init__(
        self,
        name: str,
        level: int = -1,
        frozen: bool = True,
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise Mistake(f"no backbone is called {name!r}: timm.list_models() lists all names")
        try:
            backbone: Any = timm.create_model(
                name, pretrained=pretrained, features_only=True, out_indices=(level,), **options or {}
            )
        except IndexError as error:
            raise Mistake(f"{name} has no feature map of level {level}") from error
        except RuntimeError as error:
            # No feature maps to be had, or no weights of that tag.
            raise Mistake(f"timm cannot make a backbone of {name!r}: {error}") from error
        state_pretrained(backbone, pretrained, options)
        self.backbone = backbone
        self.frozen = frozen
        self.channels_last = getattr(backbone, "output_fmt", Format.NCHW) == Format.NHWC
        (self.out_chans,) = backbone.feature_info.channels()
        if frozen:
            self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "BackboneCells":
        """Sets the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to [B, h, w, out_chans]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(images)[0]
        return features if self.channels_last else features.permute(0, 2, 3, 1)


class FromImages(nn.Module):
    """Answers questions about images: what makes features of their cells, and what answers from these.

    Args:
        cells: `Patches` or `BackboneCells`, or what has `out_chans` like them.
        answerer: `TRAR`, or `Referring`, which finds what an expression means; takes so many features of a cell.

    Raises:
        Mistake: The two do not fit each other.
    """

    def __init__(self, cells: nn.Module, answerer: CoAttention) -> None:
        super().__init__()
        if getattr(cells, "out_chans", None) != answerer.in_chans:
            raise Mistake(
                f"{type(cells).__name__} makes {getattr(cells, 'out_chans', 'no')} features of a cell, and "
                f"{type(answerer).__name__} takes {answerer.in_chans}: set answerer.init_args.in_chans to as many"
            )
        self.cells = cells
        self.answerer = answerer

    @property
    def num_answers(self) -> int:
        """Answers it knows."""
        return self.answerer.num_answers  # type: ignore[return-value]

    @property
    def embedding(self) -> nn.Embedding:
        """Vectors of words."""
        return self.answerer.embedding

    def forward(self, questions: Tensor, images: Tensor) -> Any:
        """Answers questions.

        Args:
            questions: Words by number, int64 [B, T], 0 behind the last one.
            images: [B, 3, H, W], normalised.

        Returns:
            What the answerer makes: logits [B, num_answers], or `Located`.
        """
        return self.answerer(questions, self.cells(images))
