"""What operators cost for which PyTorch registers no formula, in its FLOPs: two for a multiply-add."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_flop_count

# On the CPU, on Apple's GPUs, on devices that bring their own.
_FUSED_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_attention_math_for_mps,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable,
)
# Which one runs depends on the gradients wanted.
_GATHERED_SUM = (torch.ops.aten._embedding_bag, torch.ops.aten._embedding_bag_forward_only)
# A layer with its weights one by one (CPU), and all layers with a list of them (CUDA).
_RECURRENT = (torch.ops.aten.mkldnn_rnn_layer, torch.ops.aten._cudnn_rnn)


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _gathered_sum(
    rows: torch.Size,
    index: torch.Size,
    offsets: torch.Size,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: torch.Size | None = None,
    *_: Any,
    **__: Any,
) -> int:
    # Without weights there are only additions.
    return 0 if weights is None else 2 * index.numel() * rows[1]


def _recurrent(words: torch.Size, weights: Any, *rest: Any, **_: Any) -> int:
    matrices = [weights, rest[0]] if isinstance(weights, torch.Size) else weights
    # Each step of each sample is multiplied with every weight; biases have one axis.
    return 2 * words[:-1].numel() * sum(matrix.numel() for matrix in matrices if len(matrix) == 2)


FORMULAS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys(_FUSED_ATTENTION, _attention),
    **dict.fromkeys(_GATHERED_SUM, _gathered_sum),
    **dict.fromkeys(_RECURRENT, _recurrent),
}
