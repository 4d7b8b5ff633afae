"""AutoFormer's super networks: all vision transformers of a space, with weights that they share.

With `entangled` sharing, as published, every architecture uses the first rows and columns of the same weights. With
`classic` sharing, what it is compared with, two architectures share a layer only where they have chosen the same for
it; there is no published code of it.

Reference: "AutoFormer: Searching Transformers for Visual Recognition", ICCV 2021, arXiv 2107.00651, section 3;
microsoft/Cream 4a13c4091e78.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any, ClassVar, Literal

import timm
import torch
from timm.layers import resample_abs_pos_embed, trunc_normal_
from torch import Tensor, nn

from models.backbones.autoformer import AutoFormer, RelativeBlock, hidden_width
from models.mistakes import Mistake
from models.supernet.entangled import BiasSlicing, EntangledConv2d, EntangledLayerNorm, EntangledLinear, EntangledQKV
from models.supernet.space import Architecture, TransformerSpace
from models.supernet.transformer_cost import Frame, cost

_WHY_NOT_COMPILED = "each training step computes another sub-network, which would be compiled anew"


def autoformer_supernet(
    space: TransformerSpace,
    embed_dim: int | None = None,
    sharing: Literal["entangled", "classic"] = "entangled",
    qkv_bias_slicing: BiasSlicing = "official",
    img_size: int = 224,
    patch_size: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    head_dim: int = 64,
    relative_position: bool = True,
    max_relative_position: int = 14,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """A searchable network of all transformers of a space; it computes the largest one until told otherwise.

    Args:
        space: What can be chosen. Its largest depth, heads and MLP ratio are those of the super network.
        embed_dim: Features of the super network's tokens, by default the largest width of the space. Published ones are
            wider for two spaces, by rows and columns that are never trained.
        sharing: What architectures share, `entangled` or `classic`.
        qkv_bias_slicing: See `models.supernet.entangled.EntangledQKV`; of entangled weights only.
        img_size: Side of the images that positions are for; others are taken, too.
        patch_size: Side of a patch.
        in_chans: Channels of the images.
        num_classes: K.
        head_dim: Features of a head.
        relative_position: Whether keys and values have embeddings of relative positions.
        max_relative_position: Largest distance, in patches, that these tell from others.
        drop_path_rate: Stochastic depth of the super network's last layer; grows linearly from 0 at the first, whatever
            the depth that is chosen.

    Returns:
        Images [B, in_chans, H, W] to logits [B, K].

    Raises:
        Mistake: An unknown sharing or slicing, or a super network that an architecture does not fit into.
    """
    if sharing not in ("entangled", "classic") or qkv_bias_slicing not in ("official", "interleaved"):
        raise Mistake(
            "sharing is 'entangled' or 'classic' and qkv_bias_slicing 'official' or 'interleaved', not "
            f"{sharing!r} and {qkv_bias_slicing!r}"
        )
    sizes: dict[str, Any] = {
        "img_size": img_size,
        "patch_size": patch_size,
        "in_chans": in_chans,
        "num_classes": num_classes,
        "head_dim": head_dim,
        "relative_position": relative_position,
        "max_relative_position": max_relative_position,
    }
    if sharing == "classic":
        return ClassicAutoFormer(space, sizes, drop_path_rate)
    return EntangledAutoFormer(space, sizes, embed_dim, qkv_bias_slicing, drop_path_rate)


class _OfASpace:
    """What both kinds of sharing have in common: a space, what its architectures cost, and plain networks of them."""

    def _begin(self, space: TransformerSpace, sizes: dict[str, Any]) -> None:
        self.space, self.sizes = space, sizes
        largest = sizes["max_relative_position"] if sizes["relative_position"] else None
        patches = (sizes["img_size"] // sizes["patch_size"]) ** 2
        of_images = (sizes["patch_size"], sizes["in_chans"], sizes["num_classes"])
        self._frame = Frame(patches, *of_images, sizes["head_dim"], largest)

    def cost(self, architecture: Architecture) -> dict[str, float]:
        """Parameters, true multiply-adds of an image of `img_size`, and the published code's multiply-adds."""
        self.space.refuse(architecture)
        _, ratios, heads, width = self.space.parts(architecture)
        return cost(self._frame, width, heads, [hidden_width(width, ratio) for ratio in ratios])

    def pieces(self, architecture: Architecture) -> dict[str, float]:
        """How often each piece runs for an image: the frame, of a width, and layers of equal sizes."""
        _, ratios, heads, width = self.space.parts(architecture)
        layers = [f"layer {width} {count} {hidden_width(width, r)}" for count, r in zip(heads, ratios, strict=True)]
        return {f"frame {width}": 1.0} | {name: float(layers.count(name)) for name in layers}

    def piece(self, name: str, images: Tensor) -> tuple[nn.Module, tuple[Any, ...]]:
        """A piece alone, with weights of its own, and what it takes for images [1, C, H, W]."""
        kind, width, *sizes = name.split()
        with images.device:
            frame = AutoFormer(int(width), (), (), **self.sizes).eval()
            if kind == "frame":
                return frame, (images,)
            heads, hidden = map(int, sizes)
            layer = RelativeBlock(int(width), heads, hidden, self.sizes["head_dim"], largest=frame.largest).eval()
            return layer, frame.embedded(images)

    def _plain(self, architecture: Architecture) -> nn.Module:
        _, ratios, heads, width = self.space.parts(architecture)
        with torch.device("meta"):
            return timm.create_model(
                "autoformer_tiny_patch16_224", embed_dim=width, num_heads=heads, mlp_ratios=ratios, **self.sizes
            )


class EntangledAutoFormer(_OfASpace, AutoFormer):
    """A super network whose architectures are prefixes of it; names of weights are those of its largest architecture.

    Args:
        space: What can be chosen.
        sizes: What is not, as `AutoFormer` takes it.
        embed_dim: Features of a token; None for the space's largest width. Queries have as many, if heads allow.
        qkv_bias_slicing: See `models.supernet.entangled.EntangledQKV`.
        drop_path_rate: Stochastic depth of the last layer.

    Raises:
        Mistake: A width, or the largest number of heads, that the super network is too narrow for.
    """

    refuses_compile: ClassVar[str] = _WHY_NOT_COMPILED

    def __init__(
        self,
        space: TransformerSpace,
        sizes: dict[str, Any],
        embed_dim: int | None = None,
        qkv_bias_slicing: BiasSlicing = "official",
        drop_path_rate: float = 0.0,
    ) -> None:
        _, ratios, heads, width = space.parts(space.largest())
        dim, head_dim = embed_dim or width, sizes["head_dim"]
        # As published, where both are equal; where they are not, the wider one has room for both.
        inner = max(dim, heads[0] * head_dim) if embed_dim is None else dim
        if width > dim or heads[0] * head_dim > inner:
            raise Mistake(
                f"a super network of embed_dim {dim} has no room for a width of {width} and {heads[0]} heads of "
                f"{head_dim}: give it an embed_dim of {max(width, heads[0] * head_dim)}"
            )
        super().__init__(dim, heads, ratios, drop_path_rate=drop_path_rate, **sizes)
        self._begin(space, sizes)
        self._entangle(dim, inner, hidden_width(dim, ratios[0]), qkv_bias_slicing)
        self.choose(space.largest())

    def _entangle(self, dim: int, inner: int, hidden: int, bias_slicing: BiasSlicing) -> None:
        patch = self.patch_embed.proj
        self.patch_embed.proj = EntangledConv2d(
            patch.in_channels, dim, kernel_size=patch.kernel_size, stride=patch.stride
        )
        for block in self.computed():
            block.norm1, block.norm2 = EntangledLayerNorm(dim), EntangledLayerNorm(dim)
            block.attn.qkv = EntangledQKV(dim, inner, bias_slicing=bias_slicing)
            block.attn.proj = EntangledLinear(inner, dim)
            block.mlp.fc1, block.mlp.fc2 = EntangledLinear(dim, hidden), EntangledLinear(hidden, dim)
        self.norm = EntangledLayerNorm(dim)
        self.head = EntangledLinear(dim, self.num_classes)
        for module in self.modules():
            if isinstance(module, EntangledLinear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def choose(self, architecture: Architecture) -> None:
        """Computes this architecture from now on.

        Raises:
            Mistake: It is outside the space.
        """
        self.space.refuse(architecture)
        depth, ratios, heads, width = self.space.parts(architecture)
        self.chosen = architecture
        self.patch_embed.proj.choose(width)
        for block, ratio, count in zip(self.computed(depth), ratios, heads, strict=True):
            hidden, inner = hidden_width(width, ratio), count * block.attn.head_dim
            block.norm1.choose(width)
            block.norm2.choose(width)
            block.attn.qkv.choose(width, 3 * inner)
            block.attn.proj.choose(inner, width)
            block.mlp.fc1.choose(width, hidden)
            block.mlp.fc2.choose(hidden, width)
        ends: Any = self.norm, self.head
        ends[0].choose(width)
        ends[1].choose(width, self.num_classes)

    def computed(self, depth: int | None = None) -> list[Any]:
        """The layers that an architecture of a depth has; by default all."""
        return list(self.blocks)[:depth]

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images [B, 3, H, W] to tokens [B, 1 + N, E] after the last norm."""
        return self.norm(self.tokens(x, self.computed(self.space.parts(self.chosen)[0]))[0])

    def _pos_embed(self, x: Tensor) -> Tensor:
        size, old = (x.shape[1], x.shape[2]), self.patch_embed.grid_size
        cls_token, positions = self._of_tokens()
        tokens = torch.cat([cls_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)], 1)
        return tokens + resample_abs_pos_embed(positions, new_size=size, old_size=old, num_prefix_tokens=1)

    def _of_tokens(self) -> tuple[Tensor, Tensor]:
        width = self.space.parts(self.chosen)[3]
        assert self.cls_token is not None
        assert self.pos_embed is not None
        return self.cls_token[..., :width], self.pos_embed[..., :width].contiguous()

    @torch.no_grad()
    def extracted(self, architecture: Architecture) -> nn.Module:
        """The architecture as a plain network, `AutoFormer`, with copies of the weights that it inherits.

        Raises:
            Mistake: It is outside the space.
        """
        before = self.chosen
        self.choose(architecture)
        try:
            state = dict(zip(("cls_token", "pos_embed"), self._of_tokens(), strict=True))
            depth = self.space.parts(architecture)[0]
            kept = [(f"blocks.{i}.", block) for i, block in enumerate(self.computed(depth))]
            rest = [("patch_embed.", self.patch_embed), ("norm", self.norm), ("head", self.head)]
            for begin, part in [*kept, *rest]:
                for name, module in part.named_modules():
                    state |= _weights(f"{begin}{name}", module)
        finally:
            self.choose(before)
        network = self._plain(architecture)
        network.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
        return network


def _weights(name: str, module: nn.Module) -> dict[str, Tensor]:
    """The weights that a layer itself, without what is in it, computes with, by name."""
    if isinstance(module, (EntangledConv2d, EntangledLinear, EntangledLayerNorm)):
        weight, bias = module.part()
        return {f"{name}.weight": weight} | ({} if bias is None else {f"{name}.bias": bias})
    return {f"{name}.{key}": value for key, value in module.named_parameters(recurse=False)}


class ClassicAutoFormer(_OfASpace, nn.Module):
    """A super network in which every choice of a layer has weights of its own.

    A layer's weights are those of its width, heads and MLP ratio; what comes before and after the layers is of a width.

    Args:
        space: What can be chosen.
        sizes: What is not, as `AutoFormer` takes it.
        drop_path_rate: Stochastic depth of the last layer.
    """

    refuses_compile: ClassVar[str] = _WHY_NOT_COMPILED

    def __init__(self, space: TransformerSpace, sizes: dict[str, Any], drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self._begin(space, sizes)
        self.num_classes: int = sizes["num_classes"]
        depth, *_ = space.largest()
        choices = space.choices
        self.frames = nn.ModuleDict({f"{width}": AutoFormer(int(width), (), (), **sizes) for width in choices["width"]})
        largest = sizes["max_relative_position"] if sizes["relative_position"] else None
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    _key(width, heads, ratio): RelativeBlock(
                        int(width),
                        int(heads),
                        hidden_width(int(width), ratio),
                        sizes["head_dim"],
                        largest=largest,
                        drop_path=float(rate),
                    )
                    for width, heads, ratio in product(choices["width"], choices["heads"], choices["ratios"])
                }
            )
            for rate in torch.linspace(0, drop_path_rate, int(depth), device="cpu")
        )
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.choose(space.largest())

    def choose(self, architecture: Architecture) -> None:
        """Computes this architecture from now on.

        Raises:
            Mistake: It is outside the space.
        """
        self.space.refuse(architecture)
        self.chosen = architecture

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, K]."""
        frame, blocks = self._parts(self.chosen)
        return frame.forward_head(frame.norm(frame.tokens(images, blocks)[0]))

    def _parts(self, architecture: Architecture) -> tuple[AutoFormer, list[nn.Module]]:
        _, ratios, heads, width = self.space.parts(architecture)
        layers: Iterable[Any] = self.layers
        chosen = zip(layers, heads, ratios, strict=False)
        return self.frames[f"{width}"], [layer[_key(width, count, ratio)] for layer, count, ratio in chosen]  # type: ignore[return-value]

    def extracted(self, architecture: Architecture) -> nn.Module:
        """The architecture as a plain network, `AutoFormer`, with copies of the weights that it inherits.

        Raises:
            Mistake: It is outside the space.
        """
        self.space.refuse(architecture)
        frame, blocks = self._parts(architecture)
        state = frame.state_dict()
        state |= {
            f"blocks.{i}.{name}": each for i, block in enumerate(blocks) for name, each in block.state_dict().items()
        }
        network = self._plain(architecture)
        network.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
        return network


def _key(width: float, heads: float, ratio: float) -> str:
    # Names of modules have no dots.
    return f"{width:g}_{heads:g}_{ratio:g}".replace(".", "p")
