"""Published CondConv checkpoints <-> ours.

timm's layout, in which the converted official EfficientNet weights circulate, is ours: experts lie flat,
[n, out * in / groups * kh * kw], and one `routing_fn` serves a block. The variables of the TensorFlow code,
`condconv_kernel`, `depthwise_condconv_kernel` and `condconv_bias`, lie flat with the output channels last; they are
understood under timm's module names.

Reference: "CondConv: Conditionally Parameterized Convolutions for Efficient Inference", arXiv 1904.04971; layouts of
huggingface/pytorch-image-models at aa4b5850 and tensorflow/tpu at 01b67067.
"""

from torch import Tensor

from models.official.layout import BATCH_NORM, SAME, Layout, LayoutError, Maybe, State, Table, check_keys
from models.pixels import HALVES, Stated

# TensorFlow's variable -> our parameter.
_VARIABLES = {"condconv_kernel": "weight", "depthwise_condconv_kernel": "weight", "condconv_bias": "bias"}
# The norm behind a convolution tells how many channels leave it; blocks with and without an expansion.
_NORMS = {"conv_pw": "bn1", "conv_dw": "bn2", "conv_pwl": "bn3"}
_NORMS_OF_SEPARABLE = {"conv_dw": "bn1", "conv_pw": "bn2"}


# Of a network or of a single layer.
_TIMM: Table = [Maybe([(f"{beginning}{kind}", SAME)]) for kind in BATCH_NORM for beginning in ("*.", "")]
_TENSORFLOW: Table = [Maybe([(f"*.{variable}", f"*.{ours}")]) for variable, ours in _VARIABLES.items()]


def _in_our_shapes(state: State) -> State:
    """TensorFlow's variables in our shapes; everything else as it is."""
    ours = {}
    for name, value in state.items():
        module, _, variable = name.rpartition(".")
        is_kernel = variable.endswith("condconv_kernel")
        ours[name] = _transposed(state, module, variable, value) if is_kernel else value
    return _with_whole_routings(ours)


def _with_whole_routings(state: State) -> State:
    given = {name: value for name, value in state.items() if "routing_fn" in name.split(".")}
    modules = {name.rpartition(".")[0] for name in given}
    expected = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    check_keys(given, expected, "the CondConv layout")
    return state


def _transposed(state: State, module: str, variable: str, value: Tensor) -> Tensor:
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


def _pixels(state: State) -> Stated | None:
    """Those of the EfficientNets, the only hosts whose weights are published; the deeper one has larger images."""
    if not any(".se." in name for name in state):
        return None
    deeper = any(name.startswith("blocks.1.2.") for name in state)
    size, crop = ((240, 240), 0.882) if deeper else ((224, 224), 0.875)
    return HALVES | {"size": size, "interpolation": "bicubic", "crop": crop}


LAYOUT = Layout(
    "CondConv",
    tables=[_TIMM],
    older=[[*_TENSORFLOW, *_TIMM]],
    official=[r".*routing_fn\.weight"],
    ours=[r".*routing_fn\.weight"],
    unpack=_in_our_shapes,
    pack=_with_whole_routings,
    pixels=_pixels,
)
