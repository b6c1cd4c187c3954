"""Networks in eight bits: how they are made, what they weigh, what is left as it is."""

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


def test_eight_bits_take_little_and_predict_nearly_the_same(model: Any, images: Data) -> None:
    before = model.SerializeToString()
    small, how = int8.quantised(model, as_pictures(images.train_images).numpy(), "model=flexible")
    assert model.SerializeToString() == before
    assert how == {"calibration": "minmax", "calibration_images": 200}
    onnx.checker.check_model(small, full_check=True)
    kinds = {tensor.data_type for tensor in small.graph.initializer if len(tensor.dims) > 1}
    assert kinds == {onnx.TensorProto.UINT8}
    assert weight_bytes(small) < weight_bytes(model) / 2.5
    some = as_pictures(images.held_out_images)[:200].numpy()
    exact, rounded = (Session(m.SerializeToString(), "model=flexible")(some) for m in (model, small))
    assert np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()
    assert rounded.shape == exact.shape


@pytest.mark.whole
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
        graph(network, images, "model=mine"), as_pictures(images.train_images).numpy(), "model=mine"
    )
    onnx.checker.check_model(small)
    logits = Session(small.SerializeToString(), "model=mine")(as_pictures(images.held_out_images).numpy())
    assert len(np.unique(logits)) > 256 * 2
    read = {name for node in small.graph.node for name in node.input}
    assert all(tensor.name in read for tensor in small.graph.initializer)
    assert "QuantizeLinear" in operations(small)


def test_what_cannot_be_quantised_is_one_sentence(model: Any) -> None:
    with pytest.raises(ValueError, match="model=flexible cannot be quantised by ONNX Runtime: .*images"):
        int8.quantised(model, np.zeros((4, 5, 5), np.uint8), "model=flexible")


class InHalf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3).half()
        self.last = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x.half()).relu().float().mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.whole
def test_eight_bits_that_onnx_does_not_allow_are_one_sentence(images: Data) -> None:
    model = graph(InHalf().eval(), images, "model=mine")
    with pytest.raises(ValueError, match=r"^model=mine cannot be in eight bits in ONNX: .*float16") as refused:
        int8.quantised(model, as_pictures(images.train_images).numpy(), "model=mine")
    assert "\n" not in str(refused.value)
