"""Networks in eight bits: how they are made, what they weigh, what is left as it is."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bantam import models
from bantam.data import Data
from bantam.export import int8
from bantam.export.graph import Session, as_pictures, graph, operations, weight_bytes

onnx = pytest.importorskip("onnx", reason="pip install -e '.[export]'")
pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")


@pytest.fixture(scope="module")
def model(images: Data) -> Any:
    """A small network with a convolution of every kind."""
    torch.manual_seed(0)
    network = models.Flexible(early1=4, early2=8, late1=8, late2=8, late3=0, late_separable=True).eval()
    return graph(network, images, "model=flexible")


@pytest.mark.parametrize("scales", ["tensor", "channel"])
def test_eight_bits_take_a_quarter_and_predict_nearly_the_same(model: Any, images: Data, scales: str) -> None:
    before = model.SerializeToString()
    small, how = int8.quantised(model, as_pictures(images.train_images).numpy(), scales, "model=flexible")
    assert model.SerializeToString() == before
    assert how == {"scales": scales, "calibration": "minmax", "calibration_images": 200}
    onnx.checker.check_model(small)
    kinds = {tensor.data_type for tensor in small.graph.initializer if len(tensor.dims) > 1}
    assert kinds == {onnx.TensorProto.UINT8}
    per_channel = [t for t in small.graph.initializer if t.name.endswith("weight_scale") and len(t.dims)]
    assert bool(per_channel) == (scales == "channel")
    assert scales == "channel" or weight_bytes(small) < weight_bytes(model) / 2.5
    some = as_pictures(images.held_out_images)[:200].numpy()
    exact, rounded = (Session(m.SerializeToString(), "model=flexible")(some) for m in (model, small))
    assert np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()
    assert rounded.shape == exact.shape


@pytest.mark.parametrize(
    "last",
    [
        (nn.Conv2d(4, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 10, 1), nn.Flatten()),
        (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
    ],
    ids=("pool", "convolution", "linear"),
)
def test_logits_are_not_rounded(last: tuple[nn.Module, ...], images: Data) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *last).eval()
    small, _ = int8.quantised(
        graph(network, images, "model=mine"), as_pictures(images.train_images).numpy(), "tensor", "model=mine"
    )
    onnx.checker.check_model(small)
    logits = Session(small.SerializeToString(), "model=mine")(as_pictures(images.held_out_images).numpy())
    assert len(np.unique(logits)) > 256 * 2
    read = {name for node in small.graph.node for name in node.input}
    assert all(tensor.name in read for tensor in small.graph.initializer)
    assert "QuantizeLinear" in operations(small)


def test_a_scale_a_channel_is_taken_where_one_a_tensor_predicts_worse(
    model: Any, images: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = as_pictures(images.train_images).numpy()
    assert int8.quantised(model, numbers, "auto", "model=flexible")[1]["scales"] == "tensor"
    uneven = copy.deepcopy(model)
    for tensor in uneven.graph.initializer:  # channels of very different sizes, as in a depthwise convolution
        if len(tensor.dims) == 4 and tensor.dims[0] == 8:
            weights = onnx.numpy_helper.to_array(tensor).copy()
            weights[0] *= 2000
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
            break
    monkeypatch.setattr(int8, "TOLERANCE", 0.0)
    made = {kind: int8.quantised(uneven, numbers, kind, "model=flexible")[0] for kind in ("tensor", "channel")}
    some = numbers[np.random.default_rng(0).permutation(400)[200:]]
    exact, *rounded = (Session(m.SerializeToString(), "")(some).argmax(1) for m in (uneven, *made.values()))
    best = max(zip(made, ((found == exact).mean() for found in rounded), strict=True), key=lambda pair: pair[1])[0]
    assert int8.quantised(uneven, numbers, "auto", "model=flexible")[1]["scales"] == best


def test_what_cannot_be_quantised_is_one_sentence(model: Any) -> None:
    with pytest.raises(ValueError, match="model=flexible cannot be quantised by ONNX Runtime: .*images"):
        int8.quantised(model, np.zeros((4, 5, 5), np.uint8), "tensor", "model=flexible")
