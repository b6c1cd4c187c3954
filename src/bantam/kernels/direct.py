"""The loss and the gradients of a batch in C alone, of networks that are a chain, an average and a linear layer.

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
from bantam.kernels.chain import Chain, set_weights
from bantam.kernels.reasons import hooked

SOURCE = "tail.c"

TOLERANCE = 1e-3
"""How far what C computes may be from PyTorch's, as a fraction of its length."""


class Whole(NamedTuple):
    """All layers of a network."""

    chain: Chain
    linear: nn.Linear


def whole(root: nn.Module, graph: fx.Graph) -> Whole | None:
    """The layers of a graph that is a chain, an average of every map, and a linear layer; None of others."""
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    if len(nodes) != 4 or any(node.op != "call_module" for node in nodes):
        return None
    chain, average, flatten, linear = (root.get_submodule(str(node.target)) for node in nodes)
    in_a_row = all(after.args[0] is before for before, after in pairwise([*nodes, graph.output_node()]))
    if (
        in_a_row
        and isinstance(chain, Chain)
        and type(average) is nn.AdaptiveAvgPool2d
        and average.output_size in (1, (1, 1))
        and type(flatten) is nn.Flatten
        and (flatten.start_dim, flatten.end_dim) == (1, -1)
        and type(linear) is nn.Linear
    ):
        return Whole(chain, linear)
    return None


class Direct:
    """What takes the place of forward pass, loss and backward pass in training."""

    def __init__(self, layers: Whole, shape: torch.Size, tail: ctypes.CDLL) -> None:
        self.chain, self.linear, self.shape, self.tail = *layers, shape, tail
        self.arguments = TailArguments()
        weights = [weight for part in self.chain.parts for weight in part.weights()]
        own = [p for p in (self.linear.weight, self.linear.bias) if p is not None]
        self.parameters = [*weights, *own]
        self.gradients = [torch.empty_like(p) for p in self.parameters]
        self.calls: ctypes.Array[Call] = (Call * 0)()
        """Functions of C with what they get, in their order."""
        self.images = 0
        """In the batch that these are for."""
        self.places: list[int] = []
        """Where the parameters lie in memory that these get."""
        self.memory = self.chain.memory
        """Of the chain, to which they point."""
        self.grad_output = torch.empty(0)

    def __call__(self, x: Tensor, labels: Tensor, smoothing: float) -> tuple[float, int]:
        """Give every parameter its gradient of the mean cross-entropy of B×C×H×W images, B labels.

        Returns that loss, without label smoothing, and how many images are classified correctly.
        """
        x, labels = x.contiguous(memory_format=torch.channels_last), labels.contiguous()
        places = [p.data_ptr() for p in self.parameters]
        if len(x) != self.images or places != self.places or self.chain.memory is not self.memory:
            self.prepare(len(x))
            self.places, self.memory = places, self.chain.memory
        assert self.memory
        self.memory[0][0].input = x.data_ptr()
        self.arguments.labels, self.arguments.smoothing = labels.data_ptr(), smoothing
        self.chain.owner = None  # of what a forward pass of the chain has left there nothing remains
        self.tail.run(self.calls, len(self.calls))
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            if p.grad is not gradient:
                p.grad = gradient
        return self.arguments.loss, self.arguments.correct

    def prepare(self, images: int) -> None:
        """Set all pointers, for batches of so many images."""
        chain, tail, linear = self.chain, self.arguments, self.linear
        libraries = chain.libraries[self.shape]
        arguments, output = chain.arguments(torch.Size((images, *self.shape)))
        weights, gradients = iter(self.parameters), iter(self.gradients)
        for part, of_part in zip(chain.parts, arguments, strict=True):
            set_weights(part, of_part, weights)
            mean, variance = part.block.tensors()[3:]
            of_part.running_mean, of_part.running_variance = mean.data_ptr(), variance.data_ptr()
            of_part.batches = part.block.norm[2]["num_batches_tracked"].data_ptr()
            of_part.momentum, of_part.epsilon = part.block.norm[0].momentum, part.block.norm[0].eps
            if part.depthwise:
                of_part.grad_depthwise = next(gradients).data_ptr()
            for name in ("grad_weight", "grad_gamma", "grad_beta"):
                setattr(of_part, name, next(gradients).data_ptr())
        self.grad_output = torch.empty_like(output)
        tail.input, tail.grad_input = output.data_ptr(), self.grad_output.data_ptr()
        tail.weight, tail.grad_weight = linear.weight.data_ptr(), next(gradients).data_ptr()
        if linear.bias is not None:
            tail.bias, tail.grad_bias = linear.bias.data_ptr(), next(gradients).data_ptr()
        arguments[-1].grad_output, tail.images, self.images = tail.grad_input, images, images
        calls: list[tuple[Any, ctypes.Structure]]
        calls = [(library.forward, of_part) for library, of_part in zip(libraries, arguments, strict=True)]
        calls += [(libraries[-1].finish, arguments[-1]), (self.tail.tail, tail)]
        calls += [(libraries[-1].begin_backward, arguments[-1])]
        backward = zip(reversed(libraries), reversed(arguments), strict=True)
        calls += [(library.backward, of_part) for library, of_part in backward]
        addresses = [(ctypes.cast(function, ctypes.c_void_p), ctypes.addressof(of)) for function, of in calls]
        self.calls = (Call * len(calls))(*(Call(function, argument) for function, argument in addresses))


def direct(model: nn.Module, shape: tuple[int, int, int]) -> Direct | None:
    """What computes the loss and the gradients of a network for C×H×W images; None where autograd does.

    Asked anew in every epoch: a network may have been given hooks, or have frozen some of its layers.
    """
    layers = getattr(model, "whole", None)
    if layers is None or any(map(hooked, model.modules())):
        return None
    (chain, linear), size = layers, torch.Size(shape)
    if chain.usable(torch.empty(2, *shape)) is None or not linear.training:
        return None
    try:
        library = compiler.library(SOURCE, check, **sizes(layers, size))
    except compiler.Unavailable:
        return None
    found = Direct(layers, size, prepared(library))
    return found if all(map(_fits, found.parameters)) and {*found.parameters} == {*model.parameters()} else None


def _fits(p: Tensor) -> bool:
    """Whether C may read a parameter in its place, and only the optimizer does something with its gradient."""
    layout = torch.channels_last if p.dim() == 4 and p.shape[1] > 1 else torch.contiguous_format
    hooks = p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)
    in_place = p.is_contiguous(memory_format=layout) and p.dtype == torch.float32 and p.is_cpu
    return in_place and p.is_leaf and p.requires_grad and not hooks


def sizes(layers: Whole, shape: torch.Size) -> dict[str, int]:
    """What `tail.c` calls the sizes, of a network for C×H×W images."""
    parts = layers.chain.sizes(shape)
    assert parts
    side = (parts[-1]["SIDE"] - parts[-1]["KERNEL"] + 1) // parts[-1]["POOL"]
    return {"PIXELS": side**2, "CI": layers.linear.in_features, "CO": layers.linear.out_features, "BFLOAT16": 0}


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
        x, weight, bias = torch.randn(5, pixels, features), torch.randn(classes, features), torch.randn(classes)
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
        close = [bool((ours - theirs).norm() <= TOLERANCE * theirs.norm()) for ours, theirs in pairs]
        if not all(close) or arguments.correct != int((logits.argmax(1) == labels).sum()):
            raise compiler.Unavailable(f"what this compiler makes of {source} is wrong")
