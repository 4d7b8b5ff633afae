"""DRConv, dynamic region-aware convolution: kernels made for each image, and a learned map of where each one applies.

A guide gives every position of the output one score per region, and the region with the highest score decides which of
the image's `num_regions` kernels is applied there: `y(p) = W[M(p)] * x at p` with `M(p) = argmax_j F_j(p)`. As a
position sees one kernel only, the convolution costs what a static one costs.

Kernels and guide come in two published variants: those of the paper (`generator="pool_conv"`, `guide="conv"`), and
those of the code that its authors released later (`generator="expert_mixture"`, `guide="pointwise"`, or one guide for
several layers, `guide="given"`).

Reference: "Dynamic Region-Aware Convolution", arXiv 2003.12243; megvii-research/DRConv.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import pad_same
from torch import Tensor, nn

from models.compute import has_values
from models.decisions import note
from models.layers.kernel_mixture import geometry, pooled
from models.layers.occurrences import occurrences
from models.layers.per_sample_conv import per_sample_conv2d
from models.mistakes import Mistake

Size = int | tuple[int, int]
GeneratorName = Literal["expert_mixture", "pool_conv"]
GuideName = Literal["pointwise", "conv", "given"]


class DRConv2d(nn.Module):
    """Convolution whose kernel depends on the image and on the region.

    Without gradients in evaluation mode every position is multiplied with its own kernel only; see
    `gathered_region_conv2d`. Otherwise all kernels are applied everywhere and one result is kept, which has static
    shapes and gives the guide its gradient; see `masked_region_conv2d`. Both give the same output. The
    regions are noted in `models.decisions`.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias: See `nn.Conv2d`.
        padding: Zeros on each side, or `same` for TensorFlow's: the output has ceil(H / stride) rows, and an odd zero
            goes to the bottom and to the right.
        num_regions: Regions, and thus kernels, of an image.
        generator: What makes the kernels: `ExpertMixture` or `PoolConv`.
        num_experts: Kernels that an `expert_mixture` mixes.
        guide: What scores the regions. `pointwise`: a 1x1 convolution of the layer's input, resized to the output by
            nearest neighbour; `conv`: a convolution with the geometry of the layer, which has a bias; `given`: the
            caller, so that layers can share one guide.
        beta: Factor on the guide's gradient.
        use_alpha: Whether a kernel learns from all positions, each weighted by the softmax of its scores, instead of
            from the positions of its region.

    Raises:
        Mistake: An unknown generator, guide or padding, numbers below one, or channels that groups do not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | Literal["same"] = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        num_regions: int = 8,
        generator: GeneratorName = "expert_mixture",
        num_experts: int = 8,
        guide: GuideName = "pointwise",
        beta: float = 1.0,
        use_alpha: bool = False,
    ) -> None:
        super().__init__()
        for name, value, known in (("generator", generator, GeneratorName), ("guide", guide, GuideName)):
            if value not in get_args(known):
                raise Mistake(f"{name}={value!r} is unknown; choose one of {', '.join(get_args(known))}")
        if isinstance(padding, str) and padding != "same":
            raise Mistake(f"padding={padding!r} is unknown; give numbers of zeros or 'same'")
        if min(num_regions, num_experts) < 1:
            raise Mistake(f"DRConv needs at least one region and one expert, not {num_regions=} and {num_experts=}")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise Mistake(f"{groups=} has to divide {in_channels=} and {out_channels=}")
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.dilation = _pair(dilation)
        self.same = padding == "same"
        self.padding = (0, 0) if isinstance(padding, str) else _pair(padding)
        self.groups, self.beta, self.use_alpha = groups, beta, use_alpha
        self.num_regions = num_regions
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.generator: nn.Module
        if generator == "expert_mixture":
            self.generator = ExpertMixture(in_channels, shape, num_regions, num_experts)
        else:
            self.generator = PoolConv(in_channels, shape, num_regions)
        self.guide: nn.Conv2d | None = None
        if guide == "pointwise":
            self.guide = nn.Conv2d(in_channels, num_regions, 1, bias=False)
        elif guide == "conv":
            shape_of_conv = (self.kernel_size, self.stride, self.padding, self.dilation)
            self.guide = nn.Conv2d(in_channels, num_regions, *shape_of_conv)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @classmethod
    def like(cls, conv: nn.Conv2d, **options: Any) -> "DRConv2d":
        """A freshly initialised layer in place of a static convolution.

        Args:
            conv: Convolution that gives channels, geometry and whether there is a bias.
            options: The remaining arguments of the layer.

        Raises:
            Mistake: Padding with anything but zeros.
        """
        return cls(**geometry(conv), **options)

    def forward(self, images: Tensor, scores: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            images: [B, in_channels, H, W].
            scores: With `guide="given"`, [B, num_regions, h, w]; resized to the output by nearest neighbour.

        Returns:
            [B, out_channels, H', W'].

        Raises:
            Mistake: Scores to a layer that has its own guide, or none to one that has not.
        """
        if (scores is None) == (self.guide is None):
            raise Mistake('scores are an argument of a DRConv with guide="given", and of no other')
        padded = images
        if self.same:
            padded = pad_same(images, list(self.kernel_size), list(self.stride), list(self.dilation))
        if scores is None:
            assert self.guide is not None
            # A guide with the geometry of the layer shares its padding.
            scores = self.guide(padded if self.guide.kernel_size == self.kernel_size else images)
        size = self._output_size(padded)
        if scores.shape[-2:] != size:
            scores = F.interpolate(scores, size, mode="nearest")
        # Half precision would tie scores that differ.
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        regions = scores.argmax(1)
        note(self, "map", regions, "region", [f"region {i}" for i in range(self.num_regions)])
        banks = self.generator(images)
        how = (self.stride, self.padding, self.dilation, self.groups)
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            out = masked_region_conv2d(padded, banks, regions, scores.softmax(1), *how, self.beta, self.use_alpha)
        else:
            out = gathered_region_conv2d(padded, banks, regions, *how)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def extra_repr(self) -> str:
        """Geometry and gradient options, for `print(network)`."""
        names = ("kernel_size", "stride", "padding", "same", "dilation", "groups", "beta", "use_alpha")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _output_size(self, images: Tensor) -> tuple[int, int]:
        axes = zip(images.shape[-2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * pad - gap * (k - 1) - 1) // step + 1 for n, k, step, pad, gap in axes)
        return height, width


class ExpertMixture(nn.Module):
    """Kernels as mixtures of experts that all regions share (released code).

    `W_r = sum_e a_re E_e` with `a = 2 sigmoid(routing(mean of x)) / num_experts`, at first the experts' mean.

    Args:
        in_chans: Channels of the images.
        shape: Sizes of a kernel: (out_channels, in_chans / groups, kernel height, kernel width).
        num_regions: Kernels of an image.
        num_experts: Kernels that are mixed.
    """

    def __init__(self, in_chans: int, shape: tuple[int, int, int, int], num_regions: int, num_experts: int) -> None:
        super().__init__()
        self.shape, self.num_experts = shape, num_experts
        out_channels, fan_in = shape[0], shape[1] * shape[2] * shape[3]
        self.routing = nn.Linear(in_chans, num_regions * num_experts)
        self.weight = nn.Parameter(torch.empty(out_channels * fan_in, num_experts))
        nn.init.uniform_(self.weight, -((6 / fan_in) ** 0.5), (6 / fan_in) ** 0.5)
        nn.init.normal_(self.routing.weight, std=0.01)
        nn.init.zeros_(self.routing.bias)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_chans, H, W] to kernels [B, num_regions, *shape]."""
        shares = 2 * self.routing(pooled(images, self.routing.weight.dtype)).sigmoid() / self.num_experts
        return F.linear(shares.unflatten(1, (-1, self.num_experts)), self.weight).unflatten(2, self.shape)


class PoolConv(nn.Module):
    """Kernels by two 1x1 convolutions of the image, pooled to the kernel's size (paper).

    `W = B sigmoid(A pool(x) + a) + b`.

    The hidden layer has `num_regions` channels for each region, and the second convolution one group for each.

    Args:
        in_chans: Channels of the images.
        shape: Sizes of a kernel: (out_channels, in_chans / groups, kernel height, kernel width).
        num_regions: Kernels of an image.
    """

    def __init__(self, in_chans: int, shape: tuple[int, int, int, int], num_regions: int) -> None:
        super().__init__()
        self.kernel_size, self.channels = shape[2:], shape[:2]
        hidden = num_regions**2
        self.hidden = nn.Conv2d(in_chans, hidden, 1)
        self.banks = nn.Conv2d(hidden, num_regions * shape[0] * shape[1], 1, groups=num_regions)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_chans, H, W] to kernels [B, num_regions, *shape]."""
        hidden = self.hidden(F.adaptive_avg_pool2d(images, self.kernel_size)).sigmoid()
        return self.banks(hidden).unflatten(1, (-1, *self.channels))


def masked_region_conv2d(
    images: Tensor,
    banks: Tensor,
    regions: Tensor,
    alpha: Tensor,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    beta: float = 1.0,
    use_alpha: bool = False,
) -> Tensor:
    """All kernels everywhere, one result kept: hard in the forward pass, soft for the guide in the backward pass.

    Images and kernels learn through the chosen results; `alpha` learns as if the output were `sum_j alpha_j y_j`, so
    that with `alpha = S = softmax(F)` the guide's gradient is `beta S_j (g_j - sum_i S_i g_i)`, `g_j = <dL/dy, y_j>`.
    Until then the m results of each position are kept; checkpointing of the host releases them.

    Args:
        images: [B, C, H, W].
        banks: [B, m, O, C / groups, kh, kw].
        regions: [B, H', W'], whole numbers below m.
        alpha: [B, m, H', W'], non-negative weights of the regions.
        stride, padding, dilation, groups: See `nn.Conv2d`.
        beta: Factor on the gradient of `alpha`.
        use_alpha: Whether the gradient of kernel j is weighted by `alpha_j` at all positions.

    Returns:
        [B, O, H', W'].
    """
    num_regions = banks.shape[1]
    # Region within group: a grouped convolution wants the outputs of a group side by side.
    kernels = banks.unflatten(2, (groups, -1)).transpose(1, 2).flatten(1, 3)

    def mix(weights: Tensor, images: Tensor, kernels: Tensor) -> Tensor:
        results = per_sample_conv2d(images, kernels, None, stride, padding, dilation, groups)
        results = results.unflatten(1, (groups, num_regions, -1))
        return (weights.to(results.dtype)[:, None, :, None] * results).sum(2).flatten(1, 2)

    hard = F.one_hot(regions, num_regions).movedim(-1, 1).to(alpha.dtype)
    # The difference is zero: it only leads the gradient to alpha.
    choice = hard + beta * (alpha - alpha.detach())
    if not use_alpha:
        return mix(choice, images, kernels)
    soft = mix(alpha.detach(), images.detach(), kernels)
    return mix(choice, images, kernels.detach()) + (soft - soft.detach())


def gathered_region_conv2d(
    images: Tensor,
    banks: Tensor,
    regions: Tensor,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Every kernel at the positions of its region only; the number of multiply-adds is that of a static convolution.

    Args:
        images: [B, C, H, W].
        banks: [B, m, O, C / groups, kh, kw].
        regions: [B, H', W'], whole numbers below m.
        stride, padding, dilation, groups: See `nn.Conv2d`.

    Returns:
        [B, O, H', W'].
    """
    # One product for each region of each image, on positions sorted by region. Measured on one CPU thread with 8
    # regions, 1x1 kernels, and 58 channels of 28 x 28 to 232 of 7 x 7, for 1 image and for 32: 3 to 5 times as fast as
    # masked_region_conv2d. Products padded to the largest region save little when regions are uneven, and gathering a
    # kernel for each position is slower than masking, as it copies more than it multiplies.
    (batch, num_regions), (height, width) = banks.shape[:2], regions.shape[-2:]
    kernel_size = (banks.shape[-2], banks.shape[-1])
    if kernel_size == _pair(stride) == (1, 1) and _pair(padding) == (0, 0):
        columns = images.flatten(2)
    else:
        columns = F.unfold(images, kernel_size, dilation, padding, stride)
    rows = columns.unflatten(1, (groups, -1)).permute(0, 3, 1, 2).flatten(0, 1)
    kernels = banks.flatten(3).unflatten(2, (groups, -1)).flatten(0, 1)

    owners = (regions.flatten(1) + num_regions * torch.arange(batch, device=regions.device)[:, None]).flatten()
    order = owners.argsort()
    sizes = _sizes(owners, len(kernels))
    parts = zip(rows[order].split(sizes), kernels, strict=True)
    out = torch.cat([_product(part, kernel) for part, kernel in parts if len(part)])
    return out[order.argsort()].unflatten(0, (batch, height, width)).permute(0, 3, 1, 2)


def _sizes(owners: Tensor, num_owners: int) -> list[int]:
    if not has_values(owners):
        # Tensors without data are there to be counted, and every partition costs the same.
        return [len(owners)] + [0] * (num_owners - 1)
    return occurrences(owners, num_owners).tolist()


def _product(rows: Tensor, kernel: Tensor) -> Tensor:
    """[N, groups, K] and [groups, O / groups, K] to [N, O]."""
    if len(kernel) == 1:
        return rows[:, 0] @ kernel[0].mT
    return torch.einsum("ngk,gok->ngo", rows, kernel).flatten(1)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
