"""Published CondConv checkpoints <-> ours.

timm's layout, in which the converted official EfficientNet weights circulate, is ours: experts lie flat,
[n, out * in / groups * kh * kw], and one `routing_fn` serves a block. The variables of the TensorFlow code,
`condconv_kernel`, `depthwise_condconv_kernel` and `condconv_bias`, lie flat with the output channels last; they are
understood under timm's module names.

Reference: "CondConv: Conditionally Parameterized Convolutions for Efficient Inference", arXiv 1904.04971; layouts of
huggingface/pytorch-image-models at aa4b5850 and tensorflow/tpu at 01b67067.
"""

from collections.abc import Mapping

from torch import Tensor

from models.official import LayoutError, check_keys

# TensorFlow's variable -> our parameter.
_VARIABLES = {"condconv_kernel": "weight", "depthwise_condconv_kernel": "weight", "condconv_bias": "bias"}
# The norm behind a convolution tells how many channels leave it; blocks with and without an expansion.
_NORMS = {"conv_pw": "bn1", "conv_dw": "bn2", "conv_pwl": "bn3"}
_NORMS_OF_SEPARABLE = {"conv_dw": "bn1", "conv_pw": "bn2"}


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like published CondConv weights."""
    return matches_ours(state)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our CondConv weights."""
    return any(name.endswith("routing_fn.weight") for name in state)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights to our names; those of timm's layout stay as they are.

    Args:
        state: Weights by published name.

    Returns:
        Weights by our name.

    Raises:
        LayoutError: A routing without weight or bias, or a TensorFlow kernel of a size that its block does not have.
    """
    ours = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        if leaf in _VARIABLES:
            kernel = value if leaf == "condconv_bias" else _from_tensorflow(state, module, leaf, value)
            ours[f"{module}.{_VARIABLES[leaf]}"] = kernel
        else:
            ours[name] = value
    return _checked(ours, "the published CondConv layout")


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights to timm's layout, which is the same.

    Args:
        state: Weights by our name.

    Raises:
        LayoutError: A routing without weight or bias.
    """
    return _checked(dict(state), "our CondConv layout")


def _checked(state: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    given = {name: value for name, value in state.items() if "routing_fn" in name.split(".")}
    modules = {name.rpartition(".")[0] for name in given}
    check_keys(given, {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}, what)
    return state


def _from_tensorflow(state: Mapping[str, Tensor], module: str, variable: str, value: Tensor) -> Tensor:
    """[n, kh * kw * in * out], or [n, kh * kw * channels * 1] of a depthwise kernel, to [n, out * in * kh * kw]."""
    block, _, conv = module.rpartition(".")
    norms = _NORMS if f"{block}.bn3.weight" in state else _NORMS_OF_SEPARABLE
    norm = state.get(f"{block}.{norms.get(conv)}.weight")
    if norm is None:
        raise LayoutError(f"{module}.{variable} has no norm behind it that tells its output channels")
    out = len(norm)
    if variable == "depthwise_condconv_kernel":
        area, left_over = divmod(value.shape[1], out)
        side = round(area**0.5)
        shape = (side, side, out, 1)
        left_over += abs(side * side - area)
    else:
        # The other convolutions of these blocks are 1x1.
        inputs, left_over = divmod(value.shape[1], out)
        shape = (1, 1, inputs, out)
    if left_over:
        raise LayoutError(f"{module}.{variable} has {value.shape[1]} weights an expert: not a kernel to {out} channels")
    kernels = value.unflatten(1, shape)
    order = (0, 3, 4, 1, 2) if variable == "depthwise_condconv_kernel" else (0, 4, 3, 1, 2)
    return kernels.permute(order).flatten(1)
