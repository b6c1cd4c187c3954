"""What is stored in few bytes is what is computed with: scales of channels, zero points, biases."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bantam import models
from bantam.data import Data
from bantam.export import int8
from bantam.export.compact import as_squares
from bantam.export.graph import Session, as_pictures, graph

onnx = pytest.importorskip("onnx", reason="pip install -e '.[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")


def separable() -> nn.Module:
    return models.Flexible(early1=4, early2=8, late1=8, late2=8, late3=0, late_separable=True)


def shared() -> nn.Module:
    return models.Flexible(late1=8, late2=8, late3=8, head=12, shared=True)


def with_biases() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10),
    )  # fmt: skip


def exported(network: nn.Module, images: Data) -> tuple[Any, Any]:
    """A network in float32 and in eight bits."""
    model = graph(network.eval(), images, "model=mine")
    return model, int8.quantised(model, as_pictures(images.train_images).numpy(), "model=mine")[0]


def computed(model: Any, operation: str, place: int) -> dict[str, Any]:
    """What a model gives to the operations of a kind as the input at this place, by the names of their outputs."""
    model = copy.deepcopy(model)
    names = {node.output[0]: node.input[place] for node in model.graph.node if node.op_type == operation}
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names.values()))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    answers = session.run(None, {given.name: np.zeros((1, 28, 28), np.uint8)})
    found = dict(zip(dict.fromkeys(names.values()), answers, strict=True))
    return {output: found[name] for output, name in names.items()}


@pytest.mark.whole
@pytest.mark.parametrize("make", [separable, shared, with_biases])
def test_another_reader_predicts_the_same(make: Callable[[], nn.Module], images: Data) -> None:
    torch.manual_seed(0)
    _, small = exported(make(), images)
    onnx.checker.check_model(small, full_check=True)
    some = as_pictures(images.held_out_images)[:20].numpy()
    by_runtime = Session(small.SerializeToString(), "model=mine")(some)
    small.opset_import[0].version = 21  # the reference knows these operations from 19 on
    (by_reference,) = onnx.reference.ReferenceEvaluator(small).run(None, {"images": some})
    assert np.abs(by_reference - by_runtime).max() < 0.05 * np.abs(by_runtime).max()


@pytest.mark.whole
@pytest.mark.parametrize("make", [separable, shared])
def test_onnx_runtime_still_multiplies_bytes(make: Callable[[], nn.Module], images: Data, tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, small = exported(make(), images)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given, made = (
        Counter(node.op_type for node in model.graph.node)
        for model in (small, onnx.load(options.optimized_model_filepath))
    )
    # The last convolution's logits are not rounded, so it may multiply floats.
    assert made["QLinearConv"] >= given["Conv"] - 1
    assert not made["Expand"] + made["Shape"] + made["Mul"]


@pytest.mark.whole
def test_each_channel_has_a_scale_of_its_own(images: Data) -> None:
    torch.manual_seed(0)
    network = separable()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for convolution in convolutions:
            convolution.weight[0] = 0
            convolution.weight[1] /= 1000
            convolution.weight[2] *= 10
    exact, small = exported(network, images)
    zero_points = [tensor for tensor in small.graph.initializer if tensor.name.startswith("weight_zero_point")]
    assert [list(tensor.dims) for tensor in zero_points] == [[]]
    weights, rounded = (list(computed(model, "Conv", 1).values()) for model in (exact, small))
    assert len(weights) == len(convolutions)
    for before, after in zip(weights, rounded, strict=True):
        greatest = np.abs(before).max((1, 2, 3), keepdims=True)
        step = greatest / 127.5
        # Half a step, and as the greatest positive weight is 127 steps another half: of a scale a little larger.
        assert (np.abs(after - before) <= 1.15 * step).all()
        assert not after[0].any()
        assert len(np.unique(after[1])) > min(before[1].size, 100) * 0.6


@pytest.mark.whole
def test_a_bias_takes_two_bytes_unless_it_is_too_large(images: Data) -> None:
    torch.manual_seed(0)
    network = with_biases()
    with torch.no_grad():
        network[8].bias[:] = torch.linspace(-1e6, 1e6, 10)  # type: ignore[index, union-attr, operator]
    exact, small = exported(network, images)
    halves = [tensor for tensor in small.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert sorted(tensor.dims[0] for tensor in halves) == [4, 4, 12]
    for operation in ("Conv", "ConvTranspose", "Gemm"):
        before, after = (list(computed(model, operation, 2).values()) for model in (exact, small))
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-3 * np.abs(one).max())


@pytest.mark.parametrize("spread", [1, 10, 1000, 60000])
def test_scales_as_squares_are_never_less(spread: float) -> None:
    scales = np.geomspace(0.01 / spread, 0.01, 500, dtype=np.float32)
    roots, factor = as_squares(scales)
    found = np.square(roots, dtype=np.float32) * factor
    assert roots.dtype == np.uint8
    assert (found >= scales * (1 - 1e-6)).all()
    near = scales > 0.01 / 10
    assert (found[near] <= 1.03 * scales[near]).all()


def test_weights_of_zeros_have_a_scale() -> None:
    roots, factor = as_squares(np.zeros(3, np.float32))
    assert roots.tolist() == [1, 1, 1]
    assert factor > 0
