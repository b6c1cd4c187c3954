"""A model in eight bits: ONNX Runtime's own quantisation, calibrated on training images."""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bantam.export.compact import compact
from bantam.export.graph import LOGITS, quiet, shortened

if TYPE_CHECKING:
    from numpy.typing import NDArray

CALIBRATION_IMAGES = 1000
"""Training images whose activations say which range eight bits are to cover."""

RESHAPING = ("Reshape", "Flatten", "Squeeze", "Transpose", "Identity")


def quantised(model: Any, images: "NDArray[Any]", name: str) -> tuple[Any, dict[str, Any]]:
    """A model in QDQ format, and how it was made; `images` are training images as bytes.

    Raises ValueError where ONNX Runtime cannot quantise it.
    """
    import onnx

    count = min(CALIBRATION_IMAGES, max(1, len(images) // 2))
    found = _quantise(model, images[np.random.default_rng(0).permutation(len(images))[:count]], name)
    _keep_logits(found)
    compact(found, model)
    try:
        onnx.checker.check_model(found, full_check=True)
    except Exception as error:  # of its own kinds; ONNX Runtime may write what ONNX does not allow, as for float16
        raise ValueError(f"{name} cannot be in eight bits in ONNX: {shortened(str(error))}") from error
    return found, {"calibration": "minmax", "calibration_images": count}


def _quantise(model: Any, images: "NDArray[Any]", name: str) -> Any:
    import onnx
    from onnxruntime import quantization

    class Batches(quantization.CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        """Calibration images, 200 at a time."""

        def __init__(self) -> None:
            self.batches: Iterator[NDArray[Any]] = iter(np.array_split(images, -(-len(images) // 200)))

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {model.graph.input[0].name: batch}

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        try:
            with quiet():
                # Weights from 0 to 255: with those from -128 to 127 sums overflow on processors with AVX2 alone.
                quantization.quantize_static(
                    copy.deepcopy(model),  # which it changes
                    file,
                    Batches(),
                    quant_format=quantization.QuantFormat.QDQ,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QUInt8,
                    per_channel=True,
                    calibrate_method=quantization.CalibrationMethod.MinMax,
                    extra_options={"QuantizeBias": False},  # it would take 4 bytes, and 8 more for scale and zero
                )
        except Exception as error:  # it has exceptions of its own, which derive from nothing else
            reason = shortened(str(error) or type(error).__name__)
            raise ValueError(f"{name} cannot be quantised by ONNX Runtime: {reason}") from error
        return onnx.load(file)


def _keep_logits(model: Any) -> None:
    """Take the rounding of the logits out: two that are close would become the same."""
    name, nodes = LOGITS, model.graph.node
    while (node := _producer(model, name)) is not None:
        before = _producer(model, node.input[0]) if node.op_type == "DequantizeLinear" else None
        if before is not None and before.op_type == "QuantizeLinear" and _producer(model, before.input[0]):
            nodes.remove(node)
            old, new = (before.input[0], LOGITS) if name == LOGITS else (name, before.input[0])
            for other in nodes:
                for names in (other.input, other.output):
                    names[:] = [new if found == old else found for found in names]
            name = new
        elif node.op_type in RESHAPING:
            name = node.input[0]
        else:
            break
    _remove_unread(model)


def _producer(model: Any, name: str) -> Any:
    """The operation that computes a tensor; None for inputs and weights."""
    return next((node for node in model.graph.node if name in node.output), None)


def _remove_unread(model: Any) -> None:
    """Take out roundings and tensors that nothing reads any more."""
    for parts in (model.graph.node, model.graph.initializer):
        read = {LOGITS, *(name for node in model.graph.node for name in node.input)}
        for part in list(parts):
            if not read & {*getattr(part, "output", [part.name])}:
                parts.remove(part)
