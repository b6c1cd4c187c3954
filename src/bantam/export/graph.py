"""A network as an ONNX model: from bytes of images to logits, the normalisation inside."""

import contextlib
import copy
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bantam.data import Data
from bantam.training.build import told

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET = 18
"""The version of ONNX's operations: what runtimes of the last years can read."""

IMAGES, LOGITS = "images", "logits"
"""The input, N×H×W or N×H×W×C bytes, and the output, N×classes floats, of any number N of images."""

AT_ONCE = 1000
"""Images that ONNX Runtime is given at once, so that they fit the memory."""


def as_pictures(images: Tensor) -> Tensor:
    """From N×C×H×W bytes, as they are kept, to N×H×W, or in colour N×H×W×C, as a file has them."""
    return images.squeeze(1) if images.shape[1] == 1 else images.permute(0, 2, 3, 1).contiguous()


class FromBytes(nn.Module):
    """A network with what comes before it: images as bytes are scaled and normalised as in its training."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, data: Data) -> None:
        super().__init__()
        self.model = model
        for name, numbers in (("mean", data.mean), ("std", data.std)):
            given = torch.tensor(numbers[0]) if len(numbers) == 1 else torch.tensor(numbers).view(-1, 1, 1)
            self.register_buffer(name, given)

    def forward(self, images: Tensor) -> Tensor:
        """From N×H×W or N×H×W×C bytes to N×classes logits."""
        x = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
        return self.model((x.float() / 255 - self.mean) / self.std)  # type: ignore[no-any-return]


def graph(model: nn.Module, data: Data, name: str) -> Any:
    """The network as an `onnx.ModelProto`; batch norm is part of the convolution before it where that is its own.

    `name` is what it is called in a sentence, as in model=v2. Raises ValueError where it has an operation that
    ONNX does not have, or cannot be followed through its code.
    """
    whole = FromBytes(copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format), data).eval()
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            program = torch.onnx.export(
                _traced(whole, as_pictures(data.train_images[:2]).cpu()),
                (),
                input_names=[IMAGES],
                output_names=[LOGITS],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever a network leads it to
        raise ValueError(f"{name} cannot be exported: {_reason(error)}") from error
    assert program is not None
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    _forget_code(model)
    return model


def _traced(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """What a network computes, for any number of images: the quick way, or where that fails the thorough one."""
    shapes = ({0: torch.export.Dim("N")},)
    try:
        return torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # a network of one's own may lead it to anything
        try:  # it reads the code, and so understands len(x)
            return torch.export.export(model, (images,), dynamic_shapes=shapes, strict=True)
        except Exception:
            raise error from None


def _forget_code(model: Any) -> None:
    """Take out what the exporter notes of the code, with paths of this machine: it is longer than the weights."""
    for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    del model.graph.value_info[:]


def _reason(error: BaseException) -> str:
    """What in a network cannot be exported: an operation, or what the first of the errors says."""
    while error.__cause__ is not None:
        error = error.__cause__
    if str(error).startswith("Constraints violated"):
        return "its forward takes one number of images only; flatten with x.flatten(1)"
    if operation := re.search(r"op='([\w.:]+)'", str(error)):
        return f"ONNX has no operation for {operation[1]}; write forward without it"
    return shortened(told(error))


def shortened(text: str) -> str:
    """What a library says, in one line of at most 300 letters."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]}…"


class Session:
    """A model that ONNX Runtime has loaded, on the CPU."""

    def __init__(self, model: bytes, name: str) -> None:
        """Raises ValueError where ONNX Runtime does not have one of its operations."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # none: what it says is in the error
        options.intra_op_num_threads = torch.get_num_threads()
        self.name = name
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has exceptions of its own, which derive from nothing else
            reason = shortened(str(error))
            raise ValueError(f"{name} cannot be exported: ONNX Runtime refuses it: {reason}") from error

    def __call__(self, images: "NDArray[Any]") -> "NDArray[Any]":
        """The logits of images in bytes; raises ValueError where it cannot compute them for as many images."""
        parts = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
        try:
            return np.concatenate([self._session.run([LOGITS], {IMAGES: part})[0] for part in parts])
        except Exception as error:  # as above
            reason = shortened(str(error))
            raise ValueError(f"{self.name} cannot be exported: ONNX Runtime cannot run it: {reason}") from error


def weight_bytes(model: Any) -> int:
    """Bytes of all the tensors that a model holds, in its operations too: weights, biases, scales, constants."""
    return _tensor_bytes(model.graph)


def _tensor_bytes(graph: Any) -> int:
    from onnx import numpy_helper

    attributes = [attribute for node in graph.node for attribute in node.attribute]
    tensors = [*graph.initializer, *(attribute.t for attribute in attributes if attribute.HasField("t"))]
    branches = [attribute.g for attribute in attributes if attribute.HasField("g")]
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in tensors) + sum(map(_tensor_bytes, branches))


def operations(model: Any) -> dict[str, int]:
    """How many of each operation a model has, the most frequent first."""
    return dict(Counter(node.op_type for node in model.graph.node).most_common())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters print, log and warn of from the terminal: it is about their own code."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
