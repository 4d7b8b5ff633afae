"""Pyramid Vision Transformer (version 1), plain, with Dynamic Grained Encoders, and with deformable attention (DPVT).

Four stages of patch embedding, learned positions and blocks; a class token joins in the last. Images may have any size:
positions are resized bilinearly, and maps are filled up to whole patches.

`timm.create_model("pvt_dge_s124_small_256", features_only=True)` hands out the stages' maps, without the last norm.

Reference: "Pyramid Vision Transformer", arXiv 2102.12122; "Dynamic Grained Encoder for Vision Transformers", arXiv
2301.03831; StevenGrove/vtpack at 38d5af0c.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from models.backbones.registration import imagenet_cfgs
from models.layers.grained import BudgetGate, DropPathUnit, Formula, Grain, GrainedBlock, record_constant
from models.layers.grained_regions import Regions
from models.layers.point_attention import PointAttention
from models.layers.pyramid_stage import PlainBlock, Stage
from models.layers.query_attention import ReducedAttention
from models.mistakes import Mistake

Attention = Literal["reduced", "deformable"]


class PVT(nn.Module):
    """Pyramid Vision Transformer.

    With routers and the `official` formula, patch embeddings and classifier record the multiply-adds by which the
    published code counts them, so that `callbacks.ComputeBudget` sees the published ratio.

    Args:
        img_size: Side of the images that positions are learned for.
        patch_size: Side of the first stage's patches; those of the others are 2 x 2.
        in_chans: Channels of the images.
        num_classes: Classes; 0 for the pooled features.
        embed_dims, num_heads, mlp_ratios, depths: Of each stage.
        sr_ratios: Tokens along a side that become one key, of each stage.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        attention: `reduced`, PVT's, or `deformable`, DPVT's, which has no class token and pools the mean.
        num_points: Points that a head of a `deformable` one reads.
        splits: Of the routers (see `models.layers.grained.Grain`); none for plain blocks.
        sparse_train, formula, budget_gate, drop_path_unit, shuffled: See `Grain`.

    Raises:
        Mistake: See `Grain`; stages of different numbers, heads that do not divide the features, or routers with
            deformable attention.
    """

    fresh_parts: ClassVar[dict[str, str]] = {"routers": r"stages\.\d+\.blocks\.\d+\.router\..*"}

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        depths: Sequence[int] = (3, 4, 6, 3),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        attention: Attention = "reduced",
        num_points: int = 4,
        splits: Sequence[int] = (),
        sparse_train: bool = False,
        formula: Formula = "official",
        budget_gate: BudgetGate = "sampled",
        drop_path_unit: DropPathUnit = "query",
        shuffled: bool = False,
    ) -> None:
        super().__init__()
        sizes = {len(each) for each in (embed_dims, num_heads, mlp_ratios, depths, sr_ratios)}
        if len(sizes) > 1:
            raise Mistake("embed_dims, num_heads, mlp_ratios, depths and sr_ratios need one entry for each stage")
        if attention not in ("reduced", "deformable") or (splits and attention == "deformable"):
            raise Mistake(
                f"attention is 'reduced', or 'deformable' without splits, not {attention!r} with {list(splits)}"
            )
        grain = Grain(tuple(splits), sparse_train, formula, budget_gate, drop_path_unit, shuffled) if splits else None
        self.grain, self.in_chans, self.num_classes = grain, in_chans, num_classes
        self.num_features = self.head_hidden_size = embed_dims[-1]
        deformable = attention == "deformable"
        self.num_prefix_tokens = 0 if deformable else 1
        self.global_pool = "avg" if deformable else "token"
        self.grad_checkpointing = False
        self.stages: Any = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        reduction = 1
        for i, (dim, heads, ratio, sr) in enumerate(zip(embed_dims, num_heads, mlp_ratios, sr_ratios, strict=True)):

            def block(rate: float, dim: int = dim, heads: int = heads, ratio: float = ratio, sr: int = sr) -> nn.Module:
                if deformable:
                    return PlainBlock(dim, PointAttention(dim, heads, num_points, qkv_bias), ratio, rate)
                attn = ReducedAttention(dim, heads, qkv_bias, sr)
                return GrainedBlock(dim, attn, ratio, rate, grain) if grain else PlainBlock(dim, attn, ratio, rate)

            patch = 2 if i else patch_size
            reduction *= patch
            extra = self.num_prefix_tokens if i == len(embed_dims) - 1 else 0
            chans = embed_dims[i - 1] if i else in_chans
            # The code takes the first patches for 4 x 4, whatever they are; positions of another grid are resized.
            grid = max(1, img_size // (4 * 2**i if i else patch_size))
            blocks = [block(rate) for rate in rates[i].tolist()]
            self.stages.append(Stage(chans, dim, patch, grid, extra, blocks))
            self.feature_info.append({"module": f"stages.{i}", "num_chs": dim, "reduction": reduction})
        self.cls_token = None if deformable else nn.Parameter(torch.empty(1, 1, embed_dims[-1]))
        self.norm: nn.Module = nn.LayerNorm(embed_dims[-1], eps=1e-6)
        self.head = nn.Linear(embed_dims[-1], num_classes) if num_classes else nn.Identity()
        self._initialise()

    def no_weight_decay(self) -> set[str]:
        """The class token, as published: positions decay."""
        return {"cls_token"} & dict(self.named_parameters()).keys()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm orders the parameters from the first patches to the last norm."""
        blocks: Any = r"^stages\.(\d+)"
        if not coarse:
            blocks = [(r"^stages\.(\d+)\.(?:patch_embed|pos_embed)", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        else:
            blocks = [(blocks, None)]
        return {
            "stem": r"^stages\.0\.(?:patch_embed|pos_embed)",
            "blocks": [*blocks, (r"^cls_token|^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier; 0 classes for the pooled features, with `global_pool=""` for all tokens."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        like = {"device": self.stages[0].pos_embed.device, "dtype": self.stages[0].pos_embed.dtype}
        self.head = nn.Linear(self.num_features, num_classes, **like) if num_classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, K]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to tokens [B, extra + h * w, C] of the last stage after the last norm."""
        return self.norm(self._run(images)[-1][0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits [B, K], or to what the classifier sees."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(1)
        if self.grain and self.grain.formula == "official" and isinstance(self.head, nn.Linear) and not pre_logits:
            record_constant(self.head, x, self.head.in_features * self.head.out_features)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Images [B, 3, H, W] to maps of stages [B, C, h, w], without extra tokens.

        Args:
            x: Images.
            indices: Stages, as timm counts them.
            norm: Whether the last stage's map passes the last norm.
            output_fmt: `NCHW`; there is no other.
            intermediates_only: Whether they come without the final tokens.
        """
        if output_fmt != "NCHW":
            raise Mistake(f"maps of a PVT have channels first, not {output_fmt}")
        taken, _ = feature_take_indices(len(self.stages), indices)
        results = self._run(x)
        maps = []
        for i in taken:
            tokens, size = results[i]
            if i == len(self.feature_info) - 1:
                tokens = (self.norm(tokens) if norm else tokens)[:, self.num_prefix_tokens :]
            maps.append(tokens.transpose(1, 2).unflatten(2, size).contiguous())
        return maps if intermediates_only else (self.norm(results[-1][0]), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Leaves out stages after the last one of `indices`, and what follows them."""
        taken, last = feature_take_indices(len(self.stages), indices)
        if last + 1 < len(self.stages):
            self.stages, self.cls_token = self.stages[: last + 1], None
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken

    def _run(self, images: Tensor) -> list[tuple[Tensor, tuple[int, int]]]:
        """Tokens, extra ones in front, and size of the map, of each stage."""
        if self.grain and self.grain.formula == "official":
            self._count_patches(images)
        results, maps = [], images
        for stage in self.stages:
            tokens, size = stage.patch_embed(maps)
            extra = stage.extra
            if extra and self.cls_token is not None:
                tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], 1)
            tokens = tokens + stage.positions(size)
            regions = Regions(size, self.grain.splits if self.grain else (1,), extra, tokens.device)
            for block in stage.blocks:
                tokens = checkpoint(block, tokens, regions) if self.grad_checkpointing else block(tokens, regions)
            results.append((tokens, size))
            maps = tokens[:, extra:].transpose(1, 2).unflatten(2, size)
        return results

    def _count_patches(self, images: Tensor) -> None:
        # The code takes the product of the image's channels and rows for its pixels, and goes on from there.
        pixels: float = images.shape[1] * images.shape[2]
        for stage in self.stages:
            proj, patch = stage.patch_embed.proj, stage.patch_embed.patch_size
            macs = pixels * proj.in_channels * proj.out_channels + pixels / patch**2 * proj.out_channels
            record_constant(stage.patch_embed, images, macs)
            pixels /= patch**2

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        tokens = [] if self.cls_token is None else [self.cls_token]
        for parameter in (*tokens, *(stage.pos_embed for stage in self.stages)):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, GrainedBlock):
                module.router.reset_parameters()


_DEPTHS = {"tiny": (2, 2, 2, 2), "small": (3, 4, 6, 3), "medium": (3, 4, 18, 3), "large": (3, 8, 27, 3)}
_KINDS: dict[str, dict[str, Any]] = {
    "pvt_{}_256": {},
    "pvt_dge_s124_{}_256": {"splits": (4, 2, 1)},
    "dpvt_{}_256": {"attention": "deformable"},
}

default_cfgs = imagenet_cfgs(
    [kind.format(size) for kind in _KINDS for size in _DEPTHS], 256, first_conv="stages.0.patch_embed.proj"
)


def _create(kind: str, size: str, pretrained: bool, **options: Any) -> PVT:
    return build_model_with_cfg(
        PVT,
        kind.format(size),
        pretrained,
        feature_cfg={"out_indices": options.pop("out_indices", (0, 1, 2, 3)), "feature_cls": "getter"},
        **{"img_size": 256, "depths": _DEPTHS[size], **_KINDS[kind], **options},
    )


@register_model
def pvt_tiny_256(pretrained: bool = False, **options: Any) -> PVT:
    """PVT-Ti: 13.3 million parameters."""
    return _create("pvt_{}_256", "tiny", pretrained, **options)


@register_model
def pvt_small_256(pretrained: bool = False, **options: Any) -> PVT:
    """PVT-S: 24.6 million parameters."""
    return _create("pvt_{}_256", "small", pretrained, **options)


@register_model
def pvt_medium_256(pretrained: bool = False, **options: Any) -> PVT:
    """PVT-M: 44.3 million parameters."""
    return _create("pvt_{}_256", "medium", pretrained, **options)


@register_model
def pvt_large_256(pretrained: bool = False, **options: Any) -> PVT:
    """PVT-L: 61.5 million parameters."""
    return _create("pvt_{}_256", "large", pretrained, **options)


@register_model
def pvt_dge_s124_tiny_256(pretrained: bool = False, **options: Any) -> PVT:
    """PVT-Ti with DGE: 13.4 million parameters."""
    return _create("pvt_dge_s124_{}_256", "tiny", pretrained, **options)


@register_model
def pvt_dge_s124_small_256(pretrained: bool = False, **options: Any) -> PVT:
    """PVT-S with DGE: 24.6 million parameters."""
    return _create("pvt_dge_s124_{}_256", "small", pretrained, **options)


@register_model
def pvt_dge_s124_medium_256(pretrained: bool = False, **options: Any) -> PVT:
    """PVT-M with DGE: 44.4 million parameters."""
    return _create("pvt_dge_s124_{}_256", "medium", pretrained, **options)


@register_model
def pvt_dge_s124_large_256(pretrained: bool = False, **options: Any) -> PVT:
    """PVT-L with DGE: 61.5 million parameters."""
    return _create("pvt_dge_s124_{}_256", "large", pretrained, **options)


@register_model
def dpvt_tiny_256(pretrained: bool = False, **options: Any) -> PVT:
    """DPVT-Ti: 10.1 million parameters."""
    return _create("dpvt_{}_256", "tiny", pretrained, **options)


@register_model
def dpvt_small_256(pretrained: bool = False, **options: Any) -> PVT:
    """DPVT-S: 17.6 million parameters."""
    return _create("dpvt_{}_256", "small", pretrained, **options)


@register_model
def dpvt_medium_256(pretrained: bool = False, **options: Any) -> PVT:
    """DPVT-M: 30.2 million parameters."""
    return _create("dpvt_{}_256", "medium", pretrained, **options)


@register_model
def dpvt_large_256(pretrained: bool = False, **options: Any) -> PVT:
    """DPVT-L: 40.8 million parameters."""
    return _create("dpvt_{}_256", "large", pretrained, **options)
