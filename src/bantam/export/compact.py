"""Few bytes for a model in eight bits: what it stores of scales, zero points and biases, and computes of it."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ZERO = 128
"""The byte of the unsigned weights of a channel that means 0."""

WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")
"""Operations whose third input is a bias."""


def compact(model: Any, exact: Any) -> None:
    """Store a byte for the scale of a channel, one zero point for all weights, and biases in float16.

    The graph begins with the operations that make of them what its other operations take; a runtime computes that
    once, when it loads the model. `exact` is the model in float32: its weights are rounded anew, by these scales.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {f"{tensor.name}_quantized": numpy_helper.to_array(tensor) for tensor in exact.graph.initializer}
    first: list[Any] = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights and tensors[node.input[1]].ndim:
            first += _compact_scales(node, weights[node.input[0]], tensors)
        elif node.op_type in WITH_BIAS and len(node.input) > 2 and node.input[2] in tensors:
            first += _compact_bias(node.input[2], tensors)
    others = list(model.graph.node)
    del model.graph.node[:], model.graph.initializer[:]
    once = {node.output[0]: node for node in first}
    model.graph.node.extend([*once.values(), *others])
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in tensors.items())


def _compact_scales(node: Any, weights: "NDArray[Any]", tensors: "dict[str, NDArray[Any]]") -> list[Any]:
    """A byte for each scale of weights, which are rounded by it; the operations that make scales of bytes."""
    from onnx import TensorProto
    from onnx.helper import get_node_attr_value, make_node

    name, scale, zero_point = node.input
    # ONNX Runtime gives a channel of zeros the scale 1 and the zero point 0; here it has the smallest scale.
    roots, unit = as_squares(np.where(tensors.pop(zero_point) == ZERO, tensors.pop(scale), 0))
    shape = [1] * weights.ndim
    shape[get_node_attr_value(node, "axis")] = -1
    rounded = np.rint(weights / (np.square(roots, dtype=np.float32) * unit).reshape(shape))
    tensors[name] = np.clip(rounded + ZERO, 0, 255).astype(np.uint8)
    root, factor, zero, count = f"{scale}_root", f"{scale}_factor", "weight_zero_point", len(roots)
    tensors |= {root: roots, factor: unit, zero: np.array(ZERO, np.uint8)}
    node.input[2] = f"{zero}_of_{count}"  # weights with as many channels share it
    return [
        make_node("Cast", [root], [f"{root}_float"], to=TensorProto.FLOAT),
        make_node("Mul", [f"{root}_float", f"{root}_float"], [f"{scale}_square"]),
        make_node("Mul", [f"{scale}_square", factor], [scale]),
        make_node("Shape", [root], [f"{zero}_shape_{count}"]),
        make_node("Expand", [zero, f"{zero}_shape_{count}"], [node.input[2]]),
    ]


def as_squares(scales: "NDArray[Any]") -> "tuple[NDArray[Any], NDArray[Any]]":
    """Bytes from 1 to 255, and the factor by which their squares are these scales, or up to a few percent more.

    With squares the least scale can be a 65,025th of the greatest. They are not less than the scales, so that no
    weight lies outside of what eight bits cover.
    """
    factor = np.array(scales.max() / 255**2 or 1, np.float32)
    return np.clip(np.ceil(np.sqrt(scales / factor)), 1, 255).astype(np.uint8), factor


def _compact_bias(name: str, tensors: "dict[str, NDArray[Any]]") -> list[Any]:
    """A bias in float16, and the operation that makes float32 of it; none where it is too large for that."""
    from onnx import TensorProto
    from onnx.helper import make_node

    exact = tensors[name]
    with np.errstate(over="ignore"):
        half = exact.astype(np.float16)
    if exact.dtype != np.float32 or np.abs(half - exact).max() > 1e-3 * np.abs(exact).max():
        return []
    del tensors[name]
    tensors[f"{name}_half"] = half
    return [make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT)]
