"""What a referring expression means, found in an image: the box of the cell that wins, refined.

The network that reads and looks is that of TRAR. The paper has results of such a task, but neither its head nor code of
it was published: this head is this project's own, and claims no equality with the paper's.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from models.layers.routed_attention import AttentionPool
from models.mistakes import Mistake
from models.vqa.trar import CoAttention

# A box is at most e^4 cells wide.
WIDEST = 4.0


class Located(NamedTuple):
    """What each cell says of the expression.

    Args:
        logits: How well it fits [B, N]; the least number there is for padding.
        boxes: The box that it takes for what is meant, x1, y1, x2, y2 as shares of the image's sides [B, N, 4].
        size: Height and width of the grid of cells.
    """

    logits: Tensor
    boxes: Tensor
    size: tuple[int, int]

    @property
    def best(self) -> Tensor:
        """The box of the cell that fits best, within the image [B, 4]."""
        winner = self.logits.argmax(1)[:, None, None].expand(-1, 1, 4)
        return self.boxes.gather(1, winner).squeeze(1).clamp(0, 1)


class Referring(CoAttention):
    """Finds what an expression means among the cells of an image.

    Args:
        vocabulary_size, in_chans: See `CoAttention`.
        pool_dim: Features inside of the pooling of words.
        options: Further ones of `CoAttention`.

    Raises:
        Mistake: An option that cannot be.
    """

    def __init__(self, vocabulary_size: int, in_chans: int = 2048, pool_dim: int = 512, **options: Any) -> None:
        super().__init__(vocabulary_size, in_chans, **options)
        self.word_pool = AttentionPool(self.dim, pool_dim, self.dim, 1, self.dropout)
        self.norm = nn.LayerNorm(self.dim)
        self.score = nn.Linear(self.dim, 1)
        self.refine = nn.Sequential(nn.Linear(self.dim, self.dim), nn.ReLU(), nn.Linear(self.dim, 4))

    def forward(self, questions: Tensor, features: Tensor) -> Located:
        """Looks for what expressions mean.

        Args:
            questions: Words by number, int64 [B, T], 0 behind the last one.
            features: Of cells [B, H, W, in_chans], zero where there is no image.

        Raises:
            Mistake: Features of regions, which have no places.
        """
        if features.ndim != 4:
            raise Mistake("a box is found on a grid of cells, [B, H, W, C]: regions, [B, N, C], have no places")
        seen = self.encode(questions, features)
        cells = self.norm(seen.cells + self.word_pool(seen.words, seen.word_padding)[:, None])
        logits = self.score(cells).squeeze(2)
        logits = logits.masked_fill(seen.cell_padding, torch.finfo(logits.dtype).min)
        assert seen.size is not None
        return Located(logits, _boxes(self.refine(cells).float(), seen.size), seen.size)


def _boxes(refined: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [B, N, 4]: centres moved by so many cells, widths and heights e to the power of so many cells."""
    rows, columns = (torch.arange(length, device=refined.device) + 0.5 for length in size)
    centres = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1) + refined[..., :2]
    sides = refined[..., 2:].clamp(max=WIDEST).exp()
    scale = refined.new_tensor([size[1], size[0]])
    return torch.cat([(centres - sides / 2) / scale, (centres + sides / 2) / scale], -1)


def referring_losses(located: Located, boxes: Tensor) -> dict[str, Tensor]:
    """Losses of a batch, means over the expressions.

    The cell in which the middle of the true box lies is to win, and its box is to be the true one.

    Args:
        located: What cells say.
        boxes: The true ones, x1, y1, x2, y2 as shares of the image's sides [B, 4].

    Returns:
        `cell`, cross entropy over the cells; `l1`, of the box, in cells; `giou`, one less the generalised intersection
        over union (arXiv 1902.09630).
    """
    height, width = located.size
    scale = boxes.new_tensor([width, height])
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2 * scale).long()
    target = middle[:, 1].clamp(0, height - 1) * width + middle[:, 0].clamp(0, width - 1)
    found = located.boxes.gather(1, target[:, None, None].expand(-1, 1, 4)).squeeze(1)
    return {
        "cell": F.cross_entropy(located.logits.float(), target),
        "l1": F.l1_loss(found * scale.repeat(2), boxes * scale.repeat(2)),
        "giou": generalized_box_iou_loss(found, boxes, reduction="mean"),
    }
