"""Direct steps: loss and gradients in C alone, of networks that are a chain or a stack, an average and logits.

Autograd would take longer for such a step than C for a third of the network: it makes tensors for everything that
goes in and out. Here C gets the same pointers in every step, and gradients are the same tensors.
"""

import ctypes
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bantam.kernels import compiler
from bantam.kernels.arguments import Call, TailArguments
from bantam.kernels.chain import Chain
from bantam.kernels.reasons import hooked
from bantam.kernels.stack import Stack

SOURCE = "tail.c"

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-2}
"""How far what C computes may be from PyTorch's, as a fraction of its length."""


class DirectLayers(NamedTuple):
    """All layers of a network whose steps may be direct."""

    maps: Chain | Stack
    average: nn.AdaptiveAvgPool2d | nn.AvgPool2d
    logits: nn.Linear | nn.Conv2d


def direct_layers(root: nn.Module, graph: fx.Graph) -> DirectLayers | None:
    """The layers of a graph that is a chain or a stack, an average of every map, and logits; None of others.

    Logits come from a linear layer, or from a 1×1 convolution in front of the flattening.
    """
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    if len(nodes) != 4 or any(node.op != "call_module" for node in nodes):
        return None
    maps, average, *last = (root.get_submodule(str(node.target)) for node in nodes)
    flatten, logits = reversed(last) if type(last[0]) is nn.Conv2d else last
    in_a_row = all(after.args[:1] == (before,) for before, after in pairwise([*nodes, graph.output_node()]))
    if (
        in_a_row
        and isinstance(maps, Chain | Stack)
        and isinstance(average, nn.AdaptiveAvgPool2d | nn.AvgPool2d)
        and type(average) in (nn.AdaptiveAvgPool2d, nn.AvgPool2d)
        and type(flatten) is nn.Flatten
        and (flatten.start_dim, flatten.end_dim) == (1, -1)
        and (type(logits) is nn.Linear) == (logits is last[1])
        and (type(logits) is nn.Linear or _is_linear(logits))
    ):
        return DirectLayers(maps, average, logits)  # type: ignore[arg-type]
    return None


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer computes of one pixel what a linear layer would."""
    return (
        type(layer) is nn.Conv2d
        and (layer.kernel_size, layer.stride) == ((1, 1), (1, 1))
        and (layer.groups, layer.padding) in ((1, (0, 0)), (1, "valid"), (1, "same"))
    )


def _takes_all(average: nn.AdaptiveAvgPool2d | nn.AvgPool2d, side: int) -> bool:
    """Whether a layer makes one number of a map of this side."""
    if isinstance(average, nn.AdaptiveAvgPool2d):
        return average.output_size in (1, (1, 1))
    return (
        average.kernel_size in (side, (side, side))
        and average.padding in (0, (0, 0))
        and average.divisor_override is None
    )


class Direct:
    """What takes the place of forward pass, loss and backward pass in training."""

    def __init__(self, layers: DirectLayers, shape: torch.Size, tail: ctypes.CDLL) -> None:
        self.maps, _, self.logits = layers
        self.shape, self.tail, self.arguments = shape, tail, TailArguments()
        own = [self.logits.weight, *([] if self.logits.bias is None else [self.logits.bias])]
        self.parameters = [p for p in (*self.maps.trained(), *own) if p is not None]
        self.gradients = [torch.empty_like(p) for p in self.parameters]
        self.calls: ctypes.Array[Call] = (Call * 0)()
        """Functions of C with what they get, in their order."""
        self.first: Any = None
        """The arguments whose `input` points to the images."""
        self.images = 0
        """In the batch that these are for."""
        self.kept = (*self.parameters, *self.gradients, *self.maps.buffers())
        """Parameters, their gradients, and what batch norm has, to which these point."""
        self.places: list[int] = []
        """Where those lie in memory."""
        self.token = object()
        """Of the chain or stack, while its memory and its arguments are as they are set here."""
        self.grad_output = torch.empty(0)

    def __call__(self, x: Tensor, labels: Tensor, smoothing: float) -> tuple[float, int]:
        """Give every parameter its gradient of the mean cross-entropy of B×C×H×W images, B labels.

        Returns that loss, without label smoothing, and how many images are classified correctly.
        """
        x = x.to(self.maps.outside).contiguous(memory_format=torch.channels_last)
        labels = labels.to(torch.int64).contiguous()
        there = [tensor.data_ptr() for tensor in self.kept]
        # A forward pass with autograd has let C read and write elsewhere.
        if len(x) != self.images or there != self.places or self.maps.owner is not self.token:
            self.maps.pending = None
            self.prepare(len(x))
            self.places = there
        self.first.input = x.data_ptr()
        self.arguments.labels, self.arguments.smoothing = labels.data_ptr(), smoothing
        self.maps.owner = self.token  # of what a forward pass has left there nothing remains
        self.maps.draw()
        self.tail.run(self.calls, len(self.calls))
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            if p.grad is not gradient:
                p.grad = gradient
        return self.arguments.loss, self.arguments.correct

    def prepare(self, images: int) -> None:
        """Set all pointers, for batches of so many images."""
        tail, logits, gradients = self.arguments, self.logits, iter(self.gradients)
        of_maps = [p if p is None else next(gradients) for p in self.maps.trained()]
        forward, backward, self.first, last, output = self.maps.calls(torch.Size((images, *self.shape)), of_maps)
        self.grad_output = torch.empty_like(output)
        tail.input, tail.grad_input = output.data_ptr(), self.grad_output.data_ptr()
        tail.weight, tail.grad_weight = logits.weight.data_ptr(), next(gradients).data_ptr()
        if logits.bias is not None:
            tail.bias, tail.grad_bias = logits.bias.data_ptr(), next(gradients).data_ptr()
        last.grad_output, tail.images, self.images = tail.grad_input, images, images
        calls = [*forward, (self.tail.tail, tail), *backward]
        addresses = [(ctypes.cast(function, ctypes.c_void_p), ctypes.addressof(of)) for function, of in calls]
        self.calls = (Call * len(calls))(*(Call(function, argument) for function, argument in addresses))


def direct(model: nn.Module, shape: tuple[int, int, int]) -> Direct | None:
    """What computes the loss and the gradients of a network for C×H×W images; None where autograd does.

    Asked anew in every epoch, since layers may have been frozen; what batch norm and dropout have is read then.
    """
    layers = getattr(model, "direct_layers", None)
    if not isinstance(layers, DirectLayers) or any(map(hooked, model.modules())):
        return None
    size = torch.Size(shape)
    found = layers.maps.usable(torch.empty(2, *shape)) and layers.logits.training and sizes(layers, size)
    if not found:
        return None
    try:
        step = Direct(layers, size, prepared(compiler.library(SOURCE, check, **found)))
    except compiler.Unavailable:
        return None
    known = {*step.parameters}
    # Of weights that layers share the gradients would have to be added.
    once = len(known) == len(step.parameters)
    return step if once and known == {*model.parameters()} and all(map(_fits, step.parameters)) else None


def _fits(p: Tensor) -> bool:
    """Whether C may read a parameter in its place, and only the optimizer does something with its gradient."""
    layout = torch.channels_last if p.dim() == 4 and p.shape[1] > 1 else torch.contiguous_format
    hooks = p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)
    in_place = p.is_contiguous(memory_format=layout) and p.dtype == torch.float32 and p.is_cpu
    return in_place and p.is_leaf and p.requires_grad and not hooks


def sizes(layers: DirectLayers, shape: torch.Size) -> dict[str, int] | None:
    """What `tail.c` calls the sizes, of a network for C×H×W images; None where it does not compute its end."""
    channels, side = layers.maps.output_shape(shape)
    classes = layers.logits.weight.shape[0]
    if not _takes_all(layers.average, side) or layers.logits.weight[0].numel() != channels:
        return None
    bfloat16 = int(layers.maps.outside == torch.bfloat16)
    return {"PIXELS": side**2, "CI": channels, "CO": classes, "BFLOAT16": bfloat16}


def prepared(library: ctypes.CDLL) -> ctypes.CDLL:
    """A library whose functions know what they get."""
    library.tail.argtypes, library.tail.restype = [ctypes.POINTER(TailArguments)], None
    library.run.argtypes, library.run.restype = [ctypes.POINTER(Call), ctypes.c_int], None
    return library


def check(library: ctypes.CDLL, source: str, sizes: dict[str, int]) -> None:
    """Raise Unavailable where a library computes something else than PyTorch."""
    prepared(library)
    pixels, features, classes = sizes["PIXELS"], sizes["CI"], sizes["CO"]
    with torch.enable_grad(), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dtype = torch.bfloat16 if sizes["BFLOAT16"] else torch.float32
        x, weight, bias = torch.randn(5, pixels, features), torch.randn(classes, features), torch.randn(classes)
        x = x.to(dtype)
        labels = torch.randint(classes, (5,))
        found = [torch.zeros_like(each) for each in (x, weight, bias)]
        tensors = {"input": x, "weight": weight, "bias": bias, "labels": labels}
        tensors |= dict(zip(("grad_input", "grad_weight", "grad_bias"), found, strict=True))
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        arguments = TailArguments(**pointers, images=5, smoothing=0.1)
        library.tail(arguments)
        exact = [each.double().requires_grad_() for each in (x, weight, bias)]
        logits = F.linear(exact[0].mean(1), exact[1], exact[2])
        F.cross_entropy(logits, labels, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
        pairs = [(ours, each.grad) for ours, each in zip(found, exact, strict=True) if each.grad is not None]
        pairs += [(torch.tensor(arguments.loss), F.cross_entropy(logits, labels))]
        near = TOLERANCE[dtype]
        close = [bool((ours - theirs).norm() <= near * theirs.norm()) for ours, theirs in pairs]
        if not all(close) or arguments.correct != int((logits.argmax(1) == labels).sum()):
            raise compiler.Unavailable(f"what this compiler makes of {source} is wrong")
