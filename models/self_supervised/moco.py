"""MoCo: a student tells its teacher's key of the same image from the keys of a queue.

Reference: "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv 1911.05722, and "Improved
Baselines with Momentum Contrastive Learning", arXiv 2003.04297, with their published code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.split_batch_norm import split_batch_norms
from models.mistakes import Mistake
from models.processes import gathered_rows, own_rows
from models.self_supervised.encoder import Encoder, feature_dim, mlp_head
from models.self_supervised.learner import Learner, Views, two_views


class Queue(nn.Module):
    """The keys of the last batches, of which the oldest are replaced.

    Args:
        dim: Channels of a key.
        size: Keys that it holds.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    @property
    def size(self) -> int:
        """Keys that it holds."""
        return self.keys.shape[1]

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Puts keys in the place of the oldest.

        Args:
            keys: [B, dim].

        Raises:
            Mistake: So many do not divide the queue.
        """
        if self.size % len(keys):
            raise Mistake(
                f"a queue of {self.size:,} keys is not filled evenly by {len(keys):,} keys a step: make queue_size a "
                "multiple of the batch over all processes (and of the batches that a step accumulates)"
            )
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % self.size
        self.keys[:, places] = keys.T.to(self.keys.dtype)
        self.pointer.copy_((self.pointer + len(keys)) % self.size)


def contrast_logits(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Similarities of queries to their own key and to those of a queue, equation 1 of MoCo.

    Args:
        queries, keys: [B, D], of length 1.
        queue: [D, K], of length 1.
        temperature: What they are divided by.

    Returns:
        [B, 1 + K]; the first column is right.
    """
    positive = (queries * keys).sum(1, keepdim=True)
    return torch.cat([positive, queries @ queue], 1) / temperature


class MoCo(Learner):
    """Student and teacher with a projector each, and the queue of the teacher's keys.

    A batch norm tells a query which key is of its batch. Shuffling lets the teacher normalise an image among others
    than the student does: over the processes, and within one process where norms are over parts of the batch.

    Args:
        backbone: Images to features [B, C].
        out_dim: Channels of a key.
        hidden_dim: Channels inside of the projector; by default as many as the backbone has, as in MoCo v2; 0 is the
            linear map of MoCo v1.
        queue_size: Keys of the queue, K; a multiple of the batch over all processes.
        temperature: 0.2 in MoCo v2, 0.07 in v1.
        symmetric: Whether each view is compared to the other, and both fill the queue. As published, only the first is
            a query.
        shuffle: Whether the images of all processes are shuffled before the teacher sees them.
        split_norms: Parts of a batch that the batch norms are over, as on so many devices; 1 for the whole.
    """

    def __init__(
        self,
        backbone: nn.Module,
        out_dim: int = 128,
        hidden_dim: int | None = None,
        queue_size: int = 65536,
        temperature: float = 0.2,
        symmetric: bool = False,
        shuffle: bool = True,
        split_norms: int = 1,
    ) -> None:
        dim = feature_dim(backbone)
        if split_norms > 1:
            split_batch_norms(backbone, split_norms)
        hidden = dim if hidden_dim is None else hidden_dim or None
        super().__init__(Encoder(backbone, mlp_head(dim, hidden, out_dim, norm=False)))
        self.queue = Queue(out_dim, queue_size)
        self.temperature = temperature
        self.symmetric = symmetric
        self.shuffle = shuffle
        self._pending: list[Tensor] = []
        self._pushed = 0

    def order(self, count: int) -> Tensor:
        """A permutation [count] that all processes draw alike."""
        return torch.randperm(count, generator=self.generator)

    @torch.no_grad()
    def keys_of(self, images: Tensor) -> Tensor:
        """Keys [B, D] of images [B, 3, H, W], normalised among others."""
        if not self.shuffle:
            return F.normalize(self.teacher(images), dim=1)
        everything = gathered_rows(images)
        order = self.order(len(everything)).to(images.device)
        keys = gathered_rows(F.normalize(self.teacher(everything[own_rows(order)]), dim=1))
        return keys[own_rows(order.argsort())]

    def logits(self, images: Tensor, others: Tensor) -> Tensor:
        """Logits [B, 1 + K] of images by the keys of other views of them, which wait for the queue."""
        queries = F.normalize(self.student(images), dim=1)
        keys = self.keys_of(others)
        self._pending.append(keys)
        return contrast_logits(queries, keys, self.queue.keys.detach(), self.temperature)

    def loss(self, views: Views) -> Tensor:
        """InfoNCE, averaged over the batch and the directions.

        Raises:
            Mistake: There are not two views of each image.
        """
        first, second = two_views(views)
        logits = [self.logits(first, second)]
        if self.symmetric:
            logits.append(self.logits(second, first))
        zeros = torch.zeros(len(first), dtype=torch.long, device=first.device)
        return torch.stack([F.cross_entropy(each, zeros) for each in logits]).mean()

    def advance(self) -> None:
        """Puts the keys of the step in the queue.

        Raises:
            Mistake: So many do not divide it.
        """
        if self._pending:
            keys = gathered_rows(torch.cat(self._pending))
            self._pushed = len(keys)
            self._pending.clear()
            self.queue.push(keys)

    def remarks(self, step: int) -> dict[str, Tensor]:
        """Which share of the queue are keys of images, from 0 to 1."""
        return {"queue_fill": torch.tensor(min(1.0, step * self._pushed / self.queue.size))}
