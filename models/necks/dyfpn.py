"""DyFPN: a feature pyramid that decides for each image and level which convolutions its lateral is worth.

Reference: "Dynamic Feature Pyramid Networks for Object Detection", arXiv 2012.00779; Mingjian-Zhu/DyFPN at a74463b,
whose source is DyFPN-B with its gate `se` in evaluation, and whose compiled modules are the rest.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from models.compute import has_values, record
from models.decisions import note
from models.layers.gumbel import GumbelSelection
from models.mistakes import Mistake
from models.necks.fpn import Extra
from models.necks.gates import GateName, gates_of
from models.necks.inception import BRANCH_NAMES, InceptionBlock, InceptionFPN

Structure = Literal["A", "B"]
EvalGate = Literal["sample", "argmax"]

# How far the offsets of the scores go at a training step in which the best option was never the drawn one.
CALIBRATION = 0.05
# Published costs are FLOPs, two a multiply-add, in 1e9.
MACS_PER_GFLOP = 0.5e9


class DyFPN(InceptionFPN):
    """An inception pyramid with gates.

    Structure B: lateral = 1x1(C) + g block(C), with a gate g in {0, 1}. Structure A: lateral = sum_j g_j branch_j(C),
    with a one-hot gate, so that one of the seven branches runs.

    In training gates are drawn (Gumbel softmax with a straight-through gradient), everything is computed, and closed
    branches are multiplied by zero. In evaluation a branch runs for the images whose gate is open; a compiled or
    exported evaluation computes everything, to the same result.

    What the gates decide over is recorded at the `blocks`, so that `callbacks.ComputeBudget` with `scope: dynamic`,
    `span: range` and `per_sample: true` makes the published budget loss of it: the published factor lambda of a sum
    over the two images of a GPU is a `weight` of 2 lambda, and alpha a `target` of alpha for structure B, whose
    cheapest choice costs nothing, and of (15 + 358.5 alpha) / 373.5 for A. What each level chose is noted in
    `models.decisions`.

    Args:
        in_chans, out_chans, extra, input_norm: See `FPN`.
        structure: `A` or `B`.
        gate: Who scores: a network of each level's own, `se` (squeeze and excitation; the released one) or `conv`; one
            recurrent network over all levels, `gru` or `lstm`, `_up` from the finest or `_down` from the coarsest; or
            `random`, nobody, the control.
        eval_gate: What evaluation does. `argmax` takes the best of the scores plus `offsets`. `sample` draws there too,
            as published, so that an image's result differs from one evaluation to the next; `random` always draws.
        random_rate: Of gate `random` in structure B, how often a block is open.
        costs: What each option of each level costs, finest level first, in 1e9 FLOPs, as the published budget has it;
            None for what it does cost at the size of the maps.

    Attributes:
        offsets: Of the scores [levels, options], calibrated in training so that `argmax` takes each option as often as
            samples do. Without it a block that is open for a share of 0.44 of the samples would never be.

    Raises:
        Mistake: An option out of its range.
    """

    offsets: Tensor
    option_macs: Tensor

    def __init__(
        self,
        in_chans: Sequence[int],
        out_chans: int,
        extra: Extra,
        input_norm: bool = False,
        structure: Structure = "B",
        gate: GateName = "se",
        eval_gate: EvalGate = "argmax",
        random_rate: float = 0.5,
        costs: Sequence[Sequence[float]] | None = None,
    ) -> None:
        for name, value, choices in (
            ("structure", structure, get_args(Structure)),
            ("eval_gate", eval_gate, get_args(EvalGate)),
        ):
            if value not in choices:
                raise Mistake(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        super().__init__(in_chans, out_chans, extra, input_norm, skip=structure == "B")
        self.structure = structure
        self.draws = eval_gate == "sample" or gate == "random"
        self.options = ("1x1", "1x1 and block") if structure == "B" else BRANCH_NAMES
        shape = (len(in_chans), len(self.options))
        if costs is not None and (len(costs) != shape[0] or any(len(row) != shape[1] for row in costs)):
            raise Mistake(f"costs are {shape[0]} rows of {shape[1]}, one for each level, finest first: not {costs}")
        self.per_pixel = costs is None
        if costs is None:
            weights = [[branch.get_parameter("weight") for branch in self._block(i)] for i in range(shape[0])]
            branches = [[float(weight.numel()) for weight in row] for row in weights]
            macs = branches if structure == "A" else [[0.0, sum(row)] for row in branches]
        else:
            macs = [[MACS_PER_GFLOP * cost for cost in row] for row in costs]
        # Of every option, a pixel or as they are.
        self.macs = macs
        self.register_buffer("option_macs", torch.tensor(macs), persistent=False)
        self.gates = gates_of(gate, in_chans, len(self.options), random_rate)
        self.selection = GumbelSelection(1.0)
        self.register_buffer("offsets", torch.zeros(shape))

    def forward(self, features: Sequence[Tensor], noise: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Maps [B, in_chans[i], h_i, w_i] to levels [B, out_chans, ...], finest first, the extra ones last.

        Args:
            features: Maps, finest first.
            noise: Gumbel noise [B, options] of each map's gate, in place of what is drawn.
        """
        maps = self.normed(features)
        chosen = self.choose(self.scores(maps), noise)
        choices = torch.stack([gate.argmax(1) for gate in chosen], 1)
        pixels = [x.shape[-2] * x.shape[-1] if self.per_pixel else 1 for x in maps]
        self._record(chosen, choices, pixels)
        if self.training or not has_values(maps[0]) or torch.compiler.is_compiling():
            return self.levels(maps, self._dense(maps, chosen))
        return self.levels(maps, self._sparse(maps, choices.tolist()))

    def scores(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Scores of the options [B, options] of every level, float32, whatever the maps are."""
        return [scores.float() for scores in self.gates(maps)]

    def choose(self, scores: Sequence[Tensor], noise: Sequence[Tensor] | None = None) -> list[Tensor]:
        """One-hot choices [B, options] of every level, with a gradient to the scores where they are drawn.

        Args:
            scores: [B, options] of every level.
            noise: Gumbel noise of the same shapes, in place of what is drawn.
        """
        given = [None] * len(scores) if noise is None else noise
        if not (self.training or self.draws):
            return [self._best(own, offsets) for own, offsets in zip(scores, self.offsets, strict=True)]
        chosen = [self.selection(own, draws) for own, draws in zip(scores, given, strict=True)]
        if self.training:
            with torch.no_grad():
                best = [self._best(own, offsets).mean(0) for own, offsets in zip(scores, self.offsets, strict=True)]
                drawn = torch.stack([gate.mean(0) for gate in chosen])
                self.offsets += CALIBRATION * (drawn - torch.stack(best)).to(self.offsets.dtype)
        return chosen

    def _best(self, scores: Tensor, offsets: Tensor) -> Tensor:
        return F.one_hot((scores + offsets).argmax(1), len(self.options)).to(scores.dtype)

    def _block(self, level: int) -> InceptionBlock:
        block = self.blocks[level]
        assert isinstance(block, InceptionBlock)
        return block

    def _record(self, chosen: Sequence[Tensor], choices: Tensor, pixels: Sequence[int]) -> None:
        costs = [[macs * number for macs in row] for row, number in zip(self.macs, pixels, strict=True)]
        for level, (gate, cost) in enumerate(zip(chosen, costs, strict=True)):
            expected = (gate * self.option_macs[level]).sum(1) * pixels[level]
            record(self._block(level), expected, max(cost), min(cost))
        dearest = sum(max(cost) for cost in costs)
        shares = [option / dearest for cost in costs for option in cost]
        note(self, "levels", choices, "lateral", self.options, shares)

    def _dense(self, maps: Sequence[Tensor], chosen: Sequence[Tensor]) -> list[Tensor]:
        """Everything, times its gate."""
        laterals = []
        for level, (x, gate) in enumerate(zip(maps, chosen, strict=True)):
            block = self._block(level)
            if self.structure == "B":
                laterals.append(self.fpn.inner_blocks[level](x) + _times(block(x), gate[:, 1]))
            elif has_values(x):
                parts = [_times(block(x, branch), share) for branch, share in enumerate(gate.unbind(1))]
                laterals.append(sum(parts[1:], parts[0]))
            else:
                # The dearest branch is all the work that there can be.
                laterals.append(block(x, len(block) - 1))
        return laterals

    def _sparse(self, maps: Sequence[Tensor], choices: Sequence[Sequence[int]]) -> list[Tensor]:
        """What is open for each image."""
        laterals = []
        for level, x in enumerate(maps):
            images: dict[int, list[int]] = {}
            for image, row in enumerate(choices):
                images.setdefault(row[level], []).append(image)
            block = self._block(level)
            if self.structure == "B":
                lateral = self.fpn.inner_blocks[level](x)
                opened = images.get(1, [])
                if len(opened) == len(x):
                    lateral += block(x)
                elif opened:
                    lateral.index_add_(0, _index(opened, x), block(x[_index(opened, x)]))
            elif len(images) == 1:
                lateral = block(x, next(iter(images)))
            else:
                parts = torch.cat([block(x[_index(group, x)], branch) for branch, group in images.items()])
                order = _index([image for group in images.values() for image in group], x)
                lateral = parts[order.argsort()]
            laterals.append(lateral)
        return laterals


def _times(maps: Tensor, gate: Tensor) -> Tensor:
    """Maps [B, C, h, w] times a gate [B]."""
    return maps * gate[:, None, None, None].to(maps.dtype)


def _index(images: list[int], like: Tensor) -> Tensor:
    return torch.tensor(images, device=like.device)
