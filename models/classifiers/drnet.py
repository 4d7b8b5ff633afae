"""DRNet: a small network looks at an image and picks the resolution at which a big one classifies it.

Reference: "Dynamic Resolution Network", NeurIPS 2021, arXiv 2106.02898; MindSpore evaluation code of the authors at
mindspore-ai/models eab643f5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from models.compute import count, has_values, record
from models.decisions import note
from models.layers.gumbel import GumbelSelection
from models.layers.occurrences import occurrences
from models.layers.resize import resize
from models.layers.resolution_bn import ResolutionBatchNorm, swap_batch_norms, touch, use_set
from models.mistakes import Mistake

Size = int | tuple[int, int]
# Names of the shortcut in timm's residual networks.
_SHORTCUT = ("downsample", "shortcut")


class ResolutionPredictor(nn.Module):
    """Scores candidate resolutions; a classifier of as many classes.

    Args:
        num_candidates: How many candidates there are, m.
        widths: Channels of the stages of one block each; every stage but the first halves height and width.
        block: `basic`, ResNet's with its stem of stride 4, for ResNet hosts; `inverted`, MobileNetV2's with its stem
            of stride 2, for MobileNetV2. The paper gives no widths for the latter.
        in_chans: Channels of the images.

    Raises:
        Mistake: No stage, or an unknown block.
    """

    def __init__(
        self,
        num_candidates: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        block: Literal["basic", "inverted"] = "basic",
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        if not widths or block not in ("basic", "inverted"):
            raise Mistake(f"a predictor has stages of block 'basic' or 'inverted', not {widths=} and {block=}")
        self.num_classes = num_candidates
        basic, stem = block == "basic", widths[0]
        self.conv1 = nn.Conv2d(in_chans, stem, 7 if basic else 3, stride=2, padding=3 if basic else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.act = nn.ReLU() if basic else nn.ReLU6()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if basic else nn.Identity()
        self.stages = len(widths)
        before = stem
        for i, width in enumerate(widths):
            stride = 1 if i == 0 else 2
            new = self._basic(before, width, stride) if basic else self._inverted(before, width, stride)
            self.add_module(f"layer{i + 1}", nn.Sequential(new))
            before = width
        self.fc = nn.Linear(before, num_candidates)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to scores [B, m], unnormalised log-probabilities."""
        x = self.pool(self.act(self.bn1(self.conv1(images))))
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return self.fc(x.mean((2, 3)))

    @staticmethod
    def _basic(in_chans: int, width: int, stride: int) -> nn.Module:
        downsample = None
        if stride > 1 or in_chans != width:
            downsample = nn.Sequential(nn.Conv2d(in_chans, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        return BasicBlock(in_chans, width, stride, downsample)

    @staticmethod
    def _inverted(in_chans: int, width: int, stride: int) -> nn.Module:
        return InvertedResidual(in_chans, width, stride=stride, exp_ratio=6.0, act_layer=nn.ReLU6)


class DRNet(nn.Module):
    """Classifies each image at the resolution that a predictor picks for it.

    The two phases of the paper's training are two values of `phase`, with the same state dict, so that the second
    starts from the weights of the first. While pre-training every image is classified at every resolution, and the
    output is a list of logits, cheapest first; `Classification` trains and reports each. In the joint phase the output
    is the logits of the resolution picked, in training by a Gumbel sample with a straight-through gradient.

    The choice of the joint phase is noted in `models.decisions`, and its compute recorded at `classifier`:
    `sum_j C_j h_j`, with C_j counted at construction.
    `callbacks.ComputeBudget` makes the paper's regulariser of it.

    In the joint phase `timm.models.group_parameters` sees the predictor as the layer below the classifier: a layer
    decay of 0.1 gives it a tenth of the learning rate, as published.

    Args:
        host: The classifier, images -> logits, of any input size. It becomes part of this network, with its batch
            norms replaced by resolution-aware ones.
        predictor: Images -> scores of the candidates; by default the paper's for ResNet hosts.
        candidates: Resolutions to choose from, each a side or (height, width). Images of the batch's own size are
            taken as they are.
        predictor_size: The resolution at which the predictor looks.
        phase: Whether to `pretrain` the classifier at all resolutions, or to train predictor and classifier in the
            `joint` phase.
        route: How the joint phase trains. `split` runs each image at its own resolution only, so that the norms of a
            resolution see the images that chose it (the paper's text). `mix` runs every image at every resolution and
            adds up the logits by the choice, which gives the scores of all candidates a gradient of their own.
        temperature: Divisor of the scores in the Gumbel softmax; the buffer `selection.temperature`.
        inference: `argmax` takes the candidate of the highest score; `gumbel` draws, as the published evaluation does;
            `shuffled` deals the argmax choices of a batch to its images at random: the baseline that spends as much.
        resolution_bn: Whether every resolution has norms of its own; False leaves one set to all of them, the paper's
            ablation.
        shortcut_bn: `own` norms of every resolution on shortcuts, or the `first` resolution's for all, as in the
            published weights.
        resize_mode: See `models.layers.resize`; the published weights are `official`.
        in_chans: Channels of the images.

    Raises:
        Mistake: An option out of its range, a predictor of another number of candidates, or a host that does not
            say its number of classes or has no batch norm.
    """

    cost_shares: Tensor

    def __init__(
        self,
        host: nn.Module,
        predictor: nn.Module | None = None,
        candidates: Sequence[Size] = (224, 168, 112),
        predictor_size: Size = 128,
        phase: Literal["pretrain", "joint"] = "joint",
        route: Literal["split", "mix"] = "split",
        temperature: float = 1.0,
        inference: Literal["argmax", "gumbel", "shuffled"] = "argmax",
        resolution_bn: bool = True,
        shortcut_bn: Literal["own", "first"] = "own",
        resize_mode: Literal["antialiased", "official"] = "antialiased",
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        _check("phase", phase, ("pretrain", "joint"))
        _check("route", route, ("split", "mix"))
        _check("inference", inference, ("argmax", "gumbel", "shuffled"))
        _check("shortcut_bn", shortcut_bn, ("own", "first"))
        _check("resize_mode", resize_mode, ("antialiased", "official"))
        self.candidates = [_pair(size) for size in candidates]
        self.predictor_size = _pair(predictor_size)
        if len(set(self.candidates)) < 2 or len(set(self.candidates)) < len(self.candidates):
            raise Mistake(f"candidates must be at least two different resolutions, not {list(candidates)}")
        if min(min(size) for size in [*self.candidates, self.predictor_size]) < 1:
            raise Mistake(f"resolutions must be positive, not {list(candidates)} and {predictor_size}")
        if temperature <= 0:
            raise Mistake(f"temperature must be positive, not {temperature}")
        if not isinstance(getattr(host, "num_classes", None), int):
            raise Mistake(f"the host {type(host).__name__} has no attribute num_classes")
        self.num_classes: int = host.num_classes  # type: ignore[assignment]
        self.predictor = predictor or ResolutionPredictor(len(self.candidates), in_chans=in_chans)
        scored = getattr(self.predictor, "num_classes", len(self.candidates))
        if scored != len(self.candidates):
            raise Mistake(f"the predictor scores {scored} candidates, but there are {len(self.candidates)}")
        self.phase, self.route, self.inference, self.resize_mode = phase, route, inference, resize_mode
        self.selection = GumbelSelection(temperature)

        self.costs = [count(host, (in_chans, *size)).macs for size in self.candidates]
        self.dense = max(self.costs)
        # Shares, as they survive any precision; multiply-adds overflow half precision.
        self.register_buffer("cost_shares", torch.tensor([c / self.dense for c in self.costs]), persistent=False)
        if resolution_bn:
            swap_batch_norms(host, len(self.candidates), _SHORTCUT if shortcut_bn == "first" else ())
        self.classifier = host
        if phase == "pretrain":
            self.predictor.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images [B, C, H, W] to logits [B, K]; while pre-training to those of all candidates, cheapest first."""
        if self.phase == "pretrain":
            cheapest_first = sorted(range(len(self.candidates)), key=self.costs.__getitem__)
            return [self.classify(images, j) for j in cheapest_first]
        scores = self.predictor(self._resize(images, self.predictor_size)).float()
        if not has_values(images):
            self._record(scores.new_ones(len(images)))
            return self.classify(images, self.costs.index(self.dense))
        picked = self.selection(scores) if self.training else self._decide(scores)
        names = [f"{height} x {width} pixels" for height, width in self.candidates]
        note(self, "choice", picked.argmax(1), "resolution", names, [cost / self.dense for cost in self.costs])
        self._record((picked * self.cost_shares).sum(1))
        # A graph has one shape for all choices of a batch.
        if (self.training and self.route == "mix") or torch.compiler.is_compiling():
            logits = torch.stack([self.classify(images, j) for j in range(len(self.candidates))], 1)
            return mix(logits, picked)
        return self._split(images, picked)

    def classify(self, images: Tensor, candidate: int) -> Tensor:
        """Logits [B, K] of images [B, C, H, W] resized to a candidate and classified with its norms."""
        use_set(self.classifier, candidate)
        return self.classifier(self._resize(images, self.candidates[candidate]))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """The layers as timm's layer decay counts them: the predictor, then the classifier."""
        return {"predictor": r"^predictor\.", "classifier": r"^classifier\."}

    def _decide(self, scores: Tensor) -> Tensor:
        if self.inference == "gumbel":
            return self.selection(scores)
        choice = scores.argmax(1)
        if self.inference == "shuffled":
            choice = choice[torch.randperm(len(choice), device=choice.device)]
        return F.one_hot(choice, len(self.candidates)).to(scores.dtype)

    def _split(self, images: Tensor, picked: Tensor) -> Tensor:
        choice = picked.argmax(1)
        order = choice.argsort()
        # The one wait for the device: how many images each resolution gets.
        sizes = occurrences(choice, len(self.candidates)).tolist()
        groups = [(j, rows) for j, rows in enumerate(order.split(sizes)) if len(rows)]
        if self.training:
            self._refuse_synchronised_norms()
        logits = torch.cat([self.classify(images[rows], j) for j, rows in groups])[order.argsort()]
        if not self.training:
            return logits
        for j in set(range(len(self.candidates))) - {j for j, _ in groups}:
            logits = logits + touch(self.classifier, j)
        # One, with the gradient of the sample: the share of the mixture that this image's logits are.
        return logits * picked.gather(1, choice[:, None]).to(logits.dtype)

    def _record(self, shares: Tensor) -> None:
        record(self.classifier, shares.float() * self.dense, self.dense, min(self.costs))

    def _resize(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        return resize(images, size, self.resize_mode)

    def _refuse_synchronised_norms(self) -> None:
        for module in self.classifier.modules():
            if isinstance(module, ResolutionBatchNorm) and isinstance(module.sets[0], nn.SyncBatchNorm):
                raise RuntimeError(
                    "route 'split' gives processes different numbers of images of a resolution, for which synchronised "
                    "batch norms would wait for ever: use route 'mix', or trainer.sync_batchnorm=false"
                )


def mix(logits: Tensor, picked: Tensor) -> Tensor:
    """Logits of all candidates [B, m, K] added up by a choice [B, m]: [B, K]."""
    return (logits * picked[:, :, None].to(logits.dtype)).sum(1)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise Mistake(f"{name} must be one of {', '.join(choices)}, not {value!r}")
