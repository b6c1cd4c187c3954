"""Networks are the same in ONNX as in PyTorch, whatever the number of images."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import Residual
from torch import Tensor, nn

from bantam import models
from bantam.data import Data
from bantam.export.graph import FromBytes, Session, as_pictures, graph, operations, weight_bytes

onnx = pytest.importorskip("onnx", reason="pip install -e '.[export]'")
pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")


def settle(network: nn.Module) -> nn.Module:
    """Give batch norm statistics that are not those of a new network."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) / 5
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return network.eval()


@pytest.mark.whole
@pytest.mark.parametrize(
    "make",
    [
        models.V2,
        lambda: models.Flexible(late1=8, late2=8, late3=8, head=12, shared=True),
        lambda: models.Flexible(late1=16, late2=16, late_separable=True, early_separable=True, dilation=2),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Linear(100, 10)),
        lambda: nn.Sequential(Residual(inplace=True), nn.Linear(4, 10)),
    ],
    ids=("v2", "shared", "separable", "adaptive", "residual"),
)
def test_a_network_in_onnx_computes_the_same(make: Callable[[], nn.Module], images: Data) -> None:
    torch.manual_seed(0)
    network = settle(make()).to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = graph(network, images, "model=mine")
    onnx.checker.check_model(model)
    session = Session(model.SerializeToString(), "model=mine")
    for count in (1, 3, 200):
        some = as_pictures(images.held_out_images[:count])
        with torch.no_grad():
            expected = FromBytes(network, images)(some)
        torch.testing.assert_close(torch.from_numpy(session(some.numpy())), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.whole
def test_three_channels_and_the_normalisation_are_inside(images: Data) -> None:
    colour = replace(
        images,
        train_images=torch.randint(0, 256, (4, 3, 32, 30), dtype=torch.uint8),
        mean=(0.5,),
        std=(0.1, 0.2, 0.3),
    )
    network = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model = graph(network, colour, "model=mine")
    (given,) = model.graph.input
    assert [size.dim_param or size.dim_value for size in given.type.tensor_type.shape.dim] == ["N", 32, 30, 3]
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    some = as_pictures(colour.train_images)
    with torch.no_grad():
        expected = network((colour.train_images.float() / 255 - 0.5) / torch.tensor(colour.std).view(-1, 1, 1))
    found = Session(model.SerializeToString(), "model=mine")(some.numpy())
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.whole
def test_batch_norm_is_folded_and_nothing_of_the_code_is_in_the_file(images: Data) -> None:
    model = graph(settle(models.Flexible(early1=4, early2=4, late1=4, late2=4, late3=4)), images, "model=flexible")
    assert "BatchNormalization" not in operations(model)
    content = model.SerializeToString()
    for word in (str(Path(models.__file__).parent), "models.py", "Flexible"):
        assert word.encode() not in content
    constants = 3 * 4 + 6 * 8  # of the normalisation, and shapes
    parameters = sum(weight.numel() for weight in models.Flexible(4, 4, 0, 8, 4, 4, 4).parameters()) - 28
    assert 4 * parameters <= weight_bytes(model) <= 4 * parameters + constants


class Uneven(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :10]
        return flat if flat.sum() > 0 else -flat


class OfTwo(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, :10, 0].reshape(2, 10)


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (
            nn.Sequential(nn.AdaptiveMaxPool2d(5), nn.Flatten(), nn.Linear(25, 10)),
            "model=mine cannot be exported: ONNX has no operation for aten.adaptive_max_pool2d; "
            "write forward without it",
        ),
        (Uneven(), "model=mine cannot be exported: GuardOnDataDependentSymNode in .*test_graph.py, line"),
        (
            OfTwo(),
            r"model=mine cannot be exported: its forward takes one number of images only; flatten with x.fl",
        ),
    ],
)
def test_what_cannot_be_in_onnx_is_one_sentence(
    network: nn.Module, sentence: str, images: Data, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        graph(network.eval(), images, "model=mine")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert capfd.readouterr() == ("", "")


def test_what_onnx_runtime_refuses_is_one_sentence() -> None:
    helper = onnx.helper
    given = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N"])
    answer = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N"])
    node = helper.make_node("Unheard", ["images"], ["logits"])
    model = helper.make_model(helper.make_graph([node], "graph", [given], [answer]))
    with pytest.raises(ValueError, match=r"ONNX Runtime refuses it: \[ONNXRuntimeError\].*Unheard"):
        Session(model.SerializeToString(), "model=mine")


def test_what_onnx_runtime_cannot_run_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    helper = onnx.helper
    given = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N"])
    answer = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)
    shape = onnx.numpy_helper.from_array(np.array([2, 10]), "shape")
    node = helper.make_node("Reshape", ["images", "shape"], ["logits"])
    model = helper.make_model(
        helper.make_graph([node], "graph", [given], [answer], [shape]), ir_version=10,
        opset_imports=[helper.make_opsetid("", 18)],
    )  # fmt: skip
    session = Session(model.SerializeToString(), "model=mine")
    assert session(np.zeros(20, np.float32)).shape == (2, 10)
    with pytest.raises(ValueError, match="model=mine cannot be exported: ONNX Runtime cannot run it: .*Reshape"):
        session(np.zeros(30, np.float32))
    assert capfd.readouterr() == ("", "")


def test_bytes_of_constants_in_operations_count() -> None:
    helper = onnx.helper
    held = onnx.numpy_helper.from_array(np.zeros(5, np.float32), "held")
    constant = helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.zeros(3, np.int64)))
    inner = helper.make_graph([constant], "inner", [], [], [held])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([branch, constant], "outer", [], [], [held]))
    assert weight_bytes(model) == 3 * (4 * 5) + 3 * (8 * 3)
