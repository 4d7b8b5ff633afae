"""DeiT with Dynamic Grained Encoders, for images of any size.

Names of parameters are timm's for a vision transformer, and routers besides, so that weights of a plain DeiT start a
training as they are. Maps that a region's side does not divide have smaller regions at their border.

`timm.create_model("deit_dge_s124_small_patch16_256", features_only=True)` hands out maps of stride 16, one a block.

Reference: "Dynamic Grained Encoder for Vision Transformers", arXiv 2301.03831; StevenGrove/vtpack at 38d5af0c.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from timm.models import (
    build_model_with_cfg,
    checkpoint,
    register_model,
)
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.backbones.registration import imagenet_cfgs
from models.layers.grained import BudgetGate, DropPathUnit, Formula, Grain, GrainedBlock, record_constant
from models.layers.grained_regions import Regions
from models.layers.query_attention import QueryAttention


class GrainedVisionTransformer(VisionTransformer):
    """timm's vision transformer whose blocks choose how many queries each region of the image gets.

    With the `official` formula the patch embedding and the classifier record the multiply-adds by which the published
    code counts them, so that `callbacks.ComputeBudget` sees the published ratio.

    Args:
        embed_dim, depth, num_heads, mlp_ratio, qkv_bias, drop_path_rate: See `VisionTransformer`.
        splits, sparse_train, formula, budget_gate, drop_path_unit, shuffled: See `models.layers.grained.Grain`.
        options: Further ones of `VisionTransformer`.

    Raises:
        Mistake: See `Grain`; heads that do not divide the features.
    """

    fresh_parts: ClassVar[dict[str, str]] = {"routers": r"blocks\.\d+\.router\..*"}

    def __init__(
        self,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        splits: Sequence[int] = (4, 2, 1),
        sparse_train: bool = False,
        formula: Formula = "official",
        budget_gate: BudgetGate = "sampled",
        drop_path_unit: DropPathUnit = "query",
        shuffled: bool = False,
        **options: Any,
    ) -> None:
        grain = Grain(tuple(splits), sparse_train, formula, budget_gate, drop_path_unit, shuffled)

        def block(drop_path: float, **_: Any) -> nn.Module:
            attention = QueryAttention(embed_dim, num_heads, qkv_bias)
            return GrainedBlock(embed_dim, attention, mlp_ratio, drop_path, grain)

        sizes: dict[str, Any] = {
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "drop_path_rate": drop_path_rate,
        }
        # The last norm comes before the mean of the tokens, too, where there is no class token.
        published: dict[str, Any] = {"dynamic_img_size": True, "dynamic_img_pad": True, "fc_norm": False}
        super().__init__(**sizes, **published | options, block_fn=block)  # type: ignore[arg-type]
        self.grain = grain
        self._initialise()

    def no_weight_decay(self) -> set[str]:
        """Positions and the class token, as published."""
        return {"pos_embed", "cls_token"} & dict(self.named_parameters()).keys()

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images [B, 3, H, W] to tokens [B, extra + N, C] after the last norm; there are no masks."""
        tokens, _ = self._tokens(x, ())
        return self.norm(tokens)

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **_: Any,
    ) -> Any:
        """Images [B, 3, H, W] to what blocks give: maps [B, C, h, w], or tokens without the extra ones for `NLC`.

        Args:
            x: Images.
            indices: Blocks, as timm counts them.
            return_prefix_tokens: Whether each comes with its extra tokens.
            norm: Whether they pass the last norm.
            stop_early: Whether later blocks are left out.
            output_fmt: `NCHW` or `NLC`.
            intermediates_only: Whether they come without the final tokens.
        """
        taken, last = feature_take_indices(len(self.blocks), indices)
        tokens, (kept, size) = self._tokens(x, taken, last + 1 if stop_early else None)
        kept = [self.norm(each) if norm else each for each in kept]
        extra = [each[:, : self.num_prefix_tokens] for each in kept]
        maps = [each[:, self.num_prefix_tokens :] for each in kept]
        if output_fmt == "NCHW":
            maps = [each.transpose(1, 2).unflatten(2, size).contiguous() for each in maps]
        results: list[Any] = list(zip(maps, extra, strict=True)) if return_prefix_tokens else list(maps)
        return results if intermediates_only else (self.norm(tokens), results)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits [B, K], or to what the classifier sees."""
        if self.grain.formula == "official" and isinstance(self.head, nn.Linear) and not pre_logits:
            record_constant(self.head, x, self.head.in_features * self.head.out_features)
        return super().forward_head(x, pre_logits)

    def _tokens(
        self, images: Tensor, taken: Sequence[int], stop: int | None = None
    ) -> tuple[Tensor, tuple[list[Tensor], tuple[int, int]]]:
        maps = self.patch_embed(images)
        if self.grain.formula == "official":
            # The code takes the product of the first two sizes of the image, channels and rows, for its pixels.
            channels, rows = images.shape[1:3]
            record_constant(self.patch_embed, images, channels * channels * rows * self.embed_dim)
        height, width = maps.shape[1:3]
        regions = Regions((height, width), self.grain.splits, self.num_prefix_tokens, maps.device)
        tokens = self.norm_pre(self._pos_embed(maps))
        kept = []
        for i, block in enumerate(self.blocks[:stop]):
            tokens = checkpoint(block, tokens, regions) if self.grad_checkpointing else block(tokens, regions)
            if i in taken:
                kept.append(tokens)
        return tokens, (kept, (height, width))

    def _initialise(self) -> None:
        """DeiT's class token, and routers as they begin, after timm has initialised all linear layers."""
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        for block in self.blocks:
            assert isinstance(block, GrainedBlock)
            block.router.reset_parameters()


_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}

default_cfgs = imagenet_cfgs([f"deit_dge_s124_{size}_patch16_256" for size in _SIZES], 256)


def _create(size: str, pretrained: bool, **options: Any) -> GrainedVisionTransformer:
    return build_model_with_cfg(
        GrainedVisionTransformer,
        f"deit_dge_s124_{size}_patch16_256",
        pretrained,
        feature_cfg={"out_indices": options.pop("out_indices", 3), "feature_cls": "getter"},
        **{"img_size": 256, "patch_size": 16, **_SIZES[size], **options},
    )


@register_model
def deit_dge_s124_tiny_patch16_256(pretrained: bool = False, **options: Any) -> GrainedVisionTransformer:
    """DeiT-Ti with DGE: 5.7 million parameters."""
    return _create("tiny", pretrained, **options)


@register_model
def deit_dge_s124_small_patch16_256(pretrained: bool = False, **options: Any) -> GrainedVisionTransformer:
    """DeiT-S with DGE: 22.1 million parameters."""
    return _create("small", pretrained, **options)


@register_model
def deit_dge_s124_base_patch16_256(pretrained: bool = False, **options: Any) -> GrainedVisionTransformer:
    """DeiT-B with DGE: 86.6 million parameters."""
    return _create("base", pretrained, **options)
