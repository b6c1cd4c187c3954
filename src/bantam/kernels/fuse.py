"""A network with blocks in C: `fuse` puts them in the place of the layers that they compute.

A network is built of PyTorch's layers, and those remain what is counted and saved. Of it `fuse` makes a second
network with the same parameters. What its modules do is traced, and in these graphs every run of convolution,
batch norm, ReLU, dropout and pooling is one `Block`, and every depthwise convolution a `Depthwise`.
"""

import copy
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from bantam.kernels import compiler, selfcheck
from bantam.kernels.blocks import Block
from bantam.kernels.chain import Chain
from bantam.kernels.compiled import Compiled, Sum
from bantam.kernels.direct import DirectLayers, direct_layers
from bantam.kernels.functional import changes_something, layer_of, other_of
from bantam.kernels.reasons import Sums, explained, hooked, unfit, why
from bantam.kernels.runs import in_c
from bantam.kernels.stack import Stack
from bantam.kernels.traced import Traced, graphs

TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.25}
"""How far logits may be from PyTorch's, as a fraction of their length."""


class Fused(NamedTuple):
    """A network with blocks in C."""

    model: nn.Module | None
    """With the parameters and statistics of the one it was made of; None where C computes nothing of it."""
    left: str
    """How many convolutions PyTorch computes and why; empty where it is none, or only of maps of one pixel."""
    reasons: dict[str, str]
    """All that keeps each of these from C, by the names of the layers."""


def is_fused(model: nn.Module) -> bool:
    """Whether a network has blocks in C."""
    return any(isinstance(module, Compiled) and module.libraries for module in model.modules())


def fuse(model: nn.Module, image: tuple[int, int, int], precision: torch.dtype = torch.float32) -> Fused:
    """A second network whose blocks are compiled, and what of it is left to PyTorch.

    `image` is channels, height and width of the input. Raises Unavailable where nothing can be compiled, for
    bfloat16 on a processor that does not compute in it, and where the network computes something else with its
    blocks than without.
    """
    if precision == torch.bfloat16 and not compiler.bfloat16():
        raise compiler.Unavailable("this processor does not compute in bfloat16: use precision=float32")
    try:
        return _fused(model, image, precision, lambda module: True)
    except compiler.Unavailable:  # its forward asks for more than a trace tells: what it is given, for example
        of_sequentials = _fused(
            model, image, precision, lambda module: type(module).forward is nn.Sequential.forward
        )
        if of_sequentials.model is None:
            raise
        return of_sequentials


def _fused(
    model: nn.Module,
    image: tuple[int, int, int],
    precision: torch.dtype,
    through: Callable[[nn.Module], bool],
) -> Fused:
    """`fuse`, by what the forward does of those modules that may be looked into."""
    plain = _twin(model, {})
    names = {layer._parameters.get("weight"): name for name, layer in model.named_modules()}
    training = model.training
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        torch.autocast("cpu", precision, enabled=precision != torch.float32),
    ):
        images = torch.randn(2, *image, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        with Sums(plain) as sums:
            expected = plain.eval()(images)
        fused = Network(_twin(model, {}), precision, through)
        torch.manual_seed(0)  # what it draws, it draws outside of the blocks
        try:
            logits, left, layers = _compile(fused.eval(), images)
        except compiler.Unavailable:
            raise
        except Exception as error:  # its own code, which found something else than it expects
            raise compiler.Unavailable(f"the network does not run with its blocks: {error}") from error
        if is_fused(fused) and not _close(logits, expected, precision):
            # PyTorch's own convolutions in bfloat16 are wrong for some kernels on processors with AMX.
            with torch.autocast("cpu", enabled=False):
                exact = plain(images)
            if not _close(logits, exact, precision):
                raise compiler.Unavailable("the network computes something else with its blocks than without them")
    fused.train(training)
    reasons = {names.get(layer._parameters.get("weight"), ""): reason for layer, reason in layers.items()}
    reasons |= sums.reasons(fused.sums)
    return Fused(fused if is_fused(fused) else None, left, reasons)


def _close(ours: Tensor, theirs: Tensor, precision: torch.dtype) -> bool:
    if ours.shape != theirs.shape:
        return False
    ours, theirs = ours.double().nan_to_num(), theirs.double().nan_to_num()
    return bool((ours - theirs).norm() <= TOLERANCE[precision] * theirs.norm() + 1e-6)


def _compile(fused: "Network", images: Tensor) -> tuple[Tensor, str, dict[nn.Module, str]]:
    """Compile the blocks of a network for the maps that they get of these images: logits, what is left and why."""
    odd = {module: [*unfit(module)] for module in fused.modules() if isinstance(module, _ConvNd)}
    in_c, left, layers = 0, Counter[str](), dict[nn.Module, str]()

    def before(block: Compiled, inputs: tuple[Tensor, ...]) -> None:
        nonlocal in_c
        shape = inputs[0].shape[1:]
        sizes = block.sizes(shape) if len(shape) == 3 else None
        if sizes and shape not in block.libraries:
            block.use(compiler.library(block.source, selfcheck.compare, **sizes), shape)
        in_c += sizes is not None

    def after(layer: _ConvNd, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output[0, 0].numel() > 1:
            reasons = odd[layer] or [why(layer, inputs[0], layer in fused.traced)]
            left[reasons[0]] += 1
            layers[layer] = "; ".join(explained(layer, what) for what in reasons)

    def after_chain(chain: Chain, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = inputs[0].shape[1:]
        if len(shape) == 3:
            chain.compile(shape, functools.partial(compiler.library, check=selfcheck.compare))

    blocks = [module for module in fused.modules() if isinstance(module, Compiled)]
    chains = [module for module in fused.modules() if isinstance(module, Chain)]
    handles = [block.register_forward_pre_hook(before) for block in blocks]
    handles += [chain.register_forward_hook(after_chain) for chain in chains]
    handles += [layer.register_forward_hook(after) for layer in odd]
    try:
        logits = fused(images)
    finally:
        for handle in handles:
            handle.remove()
    reasons = ", ".join(f"{count} {reason}" for reason, count in left.items())
    count = f"{left.total()} of {left.total() + in_c} convolutions"
    return logits, f"PyTorch computes {count} ({reasons})" if reasons else "", layers


def _twin(module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy that shares all parameters; those of modules in it that are `known` already are not made again."""
    if module not in known:
        twin = object.__new__(type(module))  # copy.copy refuses layers that compute their weights from others
        known[module] = twin
        twin.__dict__ = {**module.__dict__, "_forward_hooks": copy.copy(module._forward_hooks)}
        twin._modules = {name: child and _twin(child, known) for name, child in module._modules.items()}
    return known[module]


class Network(nn.Module):
    """A network some of whose modules compute by graphs that have blocks."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, through: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        # The blocks are no children of the modules that have their layers: those may go through their children.
        self.network, self.blocks = network, nn.ModuleList()
        names = {module: name for name, module in network.named_modules()}
        self.sums = Counter[str]()
        """How many sums blocks compute, by the names of the modules in whose forward they are."""
        self.direct_layers: DirectLayers | None = None
        """All its layers, where C may compute a direct step: see `direct.py`."""
        self.traced = set[nn.Module]()
        """What is called in a forward that could be traced."""
        for traced in graphs(network, through):
            nodes = (node for node in traced.graph.nodes if node.op == "call_module")
            self.traced |= {traced.root.get_submodule(str(node.target)) for node in nodes}
            found, sums = _replaced(traced, dtype)
            self.sums.update(names[module] for module in sums)
            if found:
                self.blocks.extend(found)
                if traced.root.network is network:
                    self.direct_layers = direct_layers(traced.root, traced.graph)
                graph = fx.GraphModule(traced.root, traced.graph)
                traced.root.network.__dict__["forward"] = _forward(traced.root.network, graph.forward)

    def forward(self, x: Tensor) -> Tensor:
        """What the network returns."""
        return self.network(x)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> "Network":
        """The network has the last word: it may keep some of its layers as they are."""
        self.training = mode
        self.blocks.train(mode)
        self.network.train(mode)
        for block in self.blocks.modules():
            if isinstance(block, Block):
                block.training = block.norm[0].training
        for each in self.blocks:
            if isinstance(each, Chain):
                each.training = all(part.block.training for part in each.parts)
        return self


def _forward(module: nn.Module, computed: Callable[[Tensor], Any]) -> Callable[..., Any]:
    """The forward of a module that was traced with one tensor: `computed` for these, its own for all else."""
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        return computed(args[0]) if alone else own(*args, **kwargs)

    return forward


def _replaced(traced: Traced, dtype: torch.dtype) -> tuple[list[nn.Module], list[nn.Module]]:
    """Put blocks into a graph: these, and the modules in whose forward the sums are that they compute."""
    root, graph = traced
    for node in graph.nodes:
        layer = layer_of(node, root)
        if type(layer) is nn.Identity and not hooked(layer):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    taken, found, sums = set[fx.Node](), list[nn.Module](), list[nn.Module]()
    for first in [*graph.nodes]:
        if first in taken or not isinstance(layer_of(first, root), nn.Conv2d):
            continue
        nodes, layers = zip(*_run(first, root), strict=True)
        taken |= {*nodes}
        at = 0
        images = isinstance(first.args[0], fx.Node) and first.args[0].op == "placeholder"
        for module, count in in_c(layers, dtype, images):
            if isinstance(module, Compiled | Chain | Stack):
                root.add_module(f"block_{len(found)}", module)
                where = _put(graph, nodes[at : at + count], module, f"block_{len(found)}")
                found.append(module)
                sums += [] if where is None else [where]
            at += count
    return found, sums


def _run(node: fx.Node, root: nn.Module) -> list[tuple[fx.Node, nn.Module]]:
    """Nodes and their layers from this one on, each of which computes what only the next one gets."""
    run = list[tuple[fx.Node, nn.Module]]()
    layer = layer_of(node, root)
    while layer is not None:
        run.append((node, layer))
        if len(node.users) != 1:
            break
        last, (node,) = node, node.users
        layer = layer_of(node, root) if node.args and node.args[0] is last else None
        if other_of(node, last) is not None and _undisturbed(run, node, root):
            layer = Sum()
    return run


def _undisturbed(run: list[tuple[fx.Node, nn.Module]], end: fx.Node, root: nn.Module) -> bool:
    """Whether all of a block that ends in a sum may be computed there: what it gets stays as it is until then."""
    node, own = run[-2][0] if len(run) > 1 else end, {each for each, _ in run}
    while (node := node.next) is not end and node.op != "root":
        if node not in own and changes_something(node, root):
            return False
    return True


def _put(graph: fx.Graph, nodes: tuple[fx.Node, ...], module: nn.Module, name: str) -> nn.Module | None:
    """Let a module compute what nodes do; returns the module in whose forward that was a sum.

    It is at the place of the first, since what that gets may be changed later, or of the sum.
    """
    summed = isinstance(module, Block) and module.sum
    place = nodes[2] if summed else nodes[0]
    others = [other_of(place, nodes[1])] if summed else []
    with graph.inserting_before(place):
        new = graph.call_module(name, (nodes[0].args[0], *others))
    nodes[-1].replace_all_uses_with(new)
    for node in reversed(nodes):
        graph.erase_node(node)
    return place.meta["module"] if summed else None
