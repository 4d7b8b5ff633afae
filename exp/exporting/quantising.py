"""ONNX files in whole numbers of eight bits, by onnxruntime's static quantisation."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from exp.exporting.formats import KEY
from exp.exporting.graph import INPUT, reason_of
from models.mistakes import Mistake


def quantise(source: Path, target: Path, batches: Iterable[Tensor]) -> None:
    """Writes a file whose convolutions and products are of eight bits.

    Ranges of what comes and goes between layers are those that some images make; weights have one for each channel.

    Args:
        source: an ONNX file.
        target: the new one.
        batches: images [B, 3, H, W], RGB from 0 to 255.

    Raises:
        Mistake: onnxruntime cannot quantise it.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict | None:
            images = next(self.left, None)
            return None if images is None else {INPUT: images.numpy()}

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                target,
                Images(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        # What a file says of itself is not carried over by every version.
        model, told = onnx.load(target), onnx.load(source, load_external_data=False).metadata_props
        if not any(each.key == KEY for each in model.metadata_props):
            onnx.helper.set_model_props(model, {each.key: each.value for each in told})
            onnx.save(model, target)
    except Exception as error:
        raise Mistake(f"onnxruntime cannot quantise {source}: {reason_of(error)}") from error
    finally:
        logging.getLogger().setLevel(level)
