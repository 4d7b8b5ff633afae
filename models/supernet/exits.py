"""Early exit as a space: at which confidence images leave at each exit of a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from models.anytime import ALWAYS, MultiExit, Outcomes, Policy, confidence, evaluate, exit_costs, iterate, run
from models.compute import inference, parameter_count
from models.mistakes import Mistake
from models.supernet.space import Architecture, Space

# At 0 everybody leaves, and above 1 nobody.
_LEVELS = (0.0, *(percent / 100 for percent in range(30, 100, 5)), 0.97, 0.98, 0.99, 0.995, 0.999, 1.01)


class SearchableExits(nn.Module):
    """A network with exits, whose thresholds are chosen; an architecture has one for each exit but the last.

    In evaluation an image leaves at the first exit that is sure enough, and the output is its logits there. While
    nothing is chosen, and in training, the output is the logits of all exits.

    What thresholds cost depends on the images: it is the mean over those that `observe` was shown.

    Args:
        network: A `models.anytime.MultiExit`.
        levels: Thresholds to choose from.
        criterion: How sure an exit is; see `models.anytime.CRITERIA`.
    """

    def __init__(self, network: nn.Module, levels: Sequence[float] = _LEVELS, criterion: str = "max_prob") -> None:
        super().__init__()
        if not isinstance(network, MultiExit):
            raise Mistake(f"{type(network).__name__} has no exits whose thresholds could be chosen")
        self.multi_exit = network
        self.criterion = criterion
        self.num_classes = getattr(network, "num_classes", None)
        self.space = Space({f"exit{i}": levels for i in range(network.num_exits - 1)})
        self._policy: Policy | None = None
        self._sure: list[Tensor] = []
        self._costs: list[float] = []

    @override
    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images [B, C, H, W] to logits [B, K], or to those of all exits."""
        if self.training or self._policy is None:
            return list(self.multi_exit(images))
        return run(self._exits, images, self._policy)[0]

    def choose(self, architecture: Architecture) -> None:
        """Has images leave by these thresholds.

        Raises:
            Mistake: They are outside the space.
        """
        self.space.refuse(architecture)
        self._policy = Policy(self.criterion, (*architecture, ALWAYS))

    def observe(self, images: Tensor) -> None:
        """Looks at images [B, C, H, W], how sure each exit is of each; costs are a mean over all of them."""
        with inference(self.multi_exit):
            logits = list(iterate(self._exits, images))
        self._sure.append(torch.stack([confidence(each, self.criterion) for each in logits]).cpu())
        if not self._costs:
            self._costs = exit_costs(self._exits, images.shape[1:])

    def cost(self, architecture: Architecture) -> dict[str, float]:
        """`params`, and the `multiply_adds` of a mean image.

        Raises:
            Mistake: No image was observed.
        """
        shares = self._shares(architecture)
        macs = sum(share * cost for share, cost in zip(shares, self._costs, strict=True))
        return {"params": parameter_count(self.multi_exit), "multiply_adds": macs}

    def pieces(self, architecture: Architecture) -> dict[str, float]:
        """What runs for an image: `exit i`, which is all up to there, as often as images leave there."""
        return {f"exit {i}": share for i, share in enumerate(self._shares(architecture)) if share}

    def piece(self, name: str, images: Tensor) -> tuple[Callable[[Tensor], Tensor], tuple[Tensor]]:
        """A piece alone, and what it takes.

        Args:
            name: Of the piece.
            images: An example, [1, C, H, W].
        """
        last = int(name.removeprefix("exit "))

        def up_to(images: Tensor) -> Tensor:
            outputs = iterate(self._exits, images)
            for _ in range(last):
                next(outputs)
            return next(outputs)

        return up_to, (images,)

    def extracted(self, architecture: Architecture) -> nn.Module:
        """The network with these thresholds, and weights of its own."""
        chosen = copy.deepcopy(self)
        chosen.choose(architecture)
        return chosen

    @property
    def _exits(self) -> MultiExit:
        assert isinstance(self.multi_exit, MultiExit)
        return self.multi_exit

    def _shares(self, architecture: Architecture) -> list[float]:
        if not self._sure:
            raise Mistake("what thresholds cost depends on the images: `observe` some first")
        sure = torch.cat(self._sure, 1)
        unknown = torch.zeros(sure.shape, dtype=torch.long)
        outcomes = Outcomes(sure, unknown, unknown[0], self.criterion)
        return evaluate(outcomes, (*architecture, ALWAYS), self._costs).exit_shares.tolist()
