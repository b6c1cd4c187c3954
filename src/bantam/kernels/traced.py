"""What a network's forward does, as graphs of torch.fx: `graphs` traces it, or what of it can be traced.

Tracing runs `forward` once, and what it does beside its operations would be lost, or be always what it was that
time. So a module is called as a whole, as one of PyTorch's layers is, where its forward looks at values, changes
something, draws random numbers, prints, or enters a context such as `torch.no_grad()`; and where it has hooks.
"""

import contextlib
import copy
import io
import operator
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from bantam.kernels.reasons import hooked

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Mode(nn.Module):
    """Whether a module is in training when it is asked, for what `self.training` decides in its forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.of: tuple[nn.Module] = (module,)  # in a tuple, or it would be a child

    def forward(self) -> bool:
        """No tensors."""
        return self.of[0].training


class Root(nn.Module):
    """A module as its own forward is called, without its hooks, and with all arguments but the first left out."""

    def __init__(self, network: nn.Module, tracer: "_Tracer") -> None:
        super().__init__()
        self.network, self.tracer = network, tracer

    def forward(self, x: Tensor) -> Any:
        """Whatever the module takes and returns."""
        return self.tracer.looked_into(self.network, lambda: self.network.forward(x))


class Traced(NamedTuple):
    """What the forward of a module does."""

    root: Root
    """By whose names the nodes call the module's own layers: `network.conv1`."""
    graph: fx.Graph
    """Of whose nodes `meta["module"]` is the module in whose forward they are."""


class _InPlace(fx.Proxy):
    """A value in a trace; `+=` is recorded as what it is, which fx itself takes for `+`."""


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(self: fx.Proxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return called


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(_InPlace, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, through: Callable[[nn.Module], bool], fixed: bool) -> None:
        super().__init__()
        self.through, self.fixed, self.contexts = through, fixed, _contexts()
        self.whole = set[nn.Module]()
        """The modules that are called as a whole."""
        self.running = list[nn.Module]()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _InPlace(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        if _contexts() != self.contexts:
            raise TraceError("a graph does not know in which context it computes")
        proxy = super().create_proxy(*args, **kwargs)
        proxy.node.meta["module"] = self.running[-1] if self.running else None
        return proxy

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not is_layer(m) and not hooked(m) and self.through(m):
            last = self.graph._root.prev
            try:
                return self.looked_into(m, lambda: forward(*args, **kwargs))
            except Exception:  # its own code, which does what cannot be traced
                while self.graph._root.prev is not last:
                    self.graph.erase_node(self.graph._root.prev)
        self.whole.add(m)
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def looked_into(self, module: nn.Module, forward: Callable[[], Any]) -> Any:
        """What a module's forward returns. Raises TraceError where it does more than that."""
        name = f"mode_{len(self.root._modules)}"
        self.root.add_module(name, Mode(module))
        mode = self.create_proxy("call_module", name, (), {})
        training = module.training
        if not self.fixed:
            module.__dict__["training"] = mode
        self.running.append(module)
        try:
            with _nothing_else(module):
                result = forward()
        finally:
            self.running.pop()
            module.__dict__["training"] = training
        if not mode.node.users and not _is_part(mode, result):
            self.graph.erase_node(mode.node)
        return result


def _is_part(mode: fx.Proxy, result: Any) -> bool:
    return result is mode or (isinstance(result, tuple | list) and any(each is mode for each in result))


def graphs(module: nn.Module, through: Callable[[nn.Module], bool]) -> Iterator[Traced]:
    """A graph of what a module does, and of what those in it do that are called as a whole.

    `through` says which modules may be looked into. A module that cannot be traced has none, but those in it may.
    """
    if "forward" in vars(module):  # it has one already, or one of its own
        return
    traced = None if is_layer(module) or not through(module) else _in_both_modes(module, through)
    called = [*module.children()]
    if traced is not None:
        targets = {str(node.target): None for node in traced.graph.nodes if node.op == "call_module"}
        called = [each for each in map(traced.root.get_submodule, targets) if not isinstance(each, Mode)]
        yield traced
    for each in called:
        yield from graphs(each, through)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's layers, or derived from one."""
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.")]
    return any(kind is not nn.Module and kind not in CONTAINERS for kind in kinds)


def _in_both_modes(module: nn.Module, through: Callable[[nn.Module], bool]) -> Traced | None:
    """What a module does, in training and outside; None where that cannot be said, or is not the same."""
    attributes = _attributes(module)
    try:
        found, other = (_trace(module.train(mode), through) for mode in (True, False))
        # Where a forward does not ask whether it is in training as a graph does, its operations are others then.
        whole = found.root.tracer.whole
        asked = [
            _trace(module.train(mode), lambda each: through(each) and each not in whole, fixed=True)
            for mode in (True, False)
        ]
    except Exception:  # its own code, as above
        return None
    finally:
        _restore_attributes(attributes)
    alike = all(_operations(each) == _operations(found) for each in asked)
    return found if alike and str(found.graph) == str(other.graph) else None


def _operations(traced: Traced) -> list[tuple[str, Any]]:
    """What the nodes of a graph do, but for those that ask for modes."""
    return [(node.op, node.target) for node in traced.graph.nodes if not str(node.target).startswith("mode_")]


def _trace(module: nn.Module, through: Callable[[nn.Module], bool], fixed: bool = False) -> Traced:
    """With `fixed` modules are in training, or are not, as they are now."""
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        tracer = _Tracer(through, fixed)
        root = Root(module, tracer)
        return Traced(root, tracer.trace(root))


def _contexts() -> tuple[object, ...]:
    """What operations do depends on these, and a graph does not have them."""
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


@contextlib.contextmanager
def _nothing_else(module: nn.Module) -> Iterator[None]:
    """While it is entered a forward may do what a graph has. Undoes all else, and raises TraceError of it."""
    numbers, attributes = _generators(), _attributes(module)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        changed = _restore_generators(numbers) | _restore_attributes(attributes)
    if changed or printed.getvalue():
        raise TraceError("it does something that a graph does not have")


def _generators() -> tuple[Any, ...]:
    """Of random numbers: those of PyTorch, Python and NumPy."""
    return torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)


def _restore_generators(before: tuple[Any, ...]) -> bool:
    """Returns whether numbers were drawn."""
    ours, pythons, numpys = before
    now, pythons_now, numpys_now = _generators()
    if (
        torch.equal(ours, now)
        and pythons == pythons_now
        and numpys["state"]["pos"] == numpys_now["state"]["pos"]
        and (numpys["state"]["key"] == numpys_now["state"]["key"]).all()
    ):
        return False
    torch.set_rng_state(ours)
    random.setstate(pythons)
    np.random.set_state(numpys)
    return True


def _attributes(module: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Of all modules in it: their attributes, a copy, and copies of those that are changed in their place."""
    found = []
    for each in module.modules():
        mutable = {key: value for key, value in vars(each).items() if isinstance(value, list | dict | set)}
        found.append((vars(each), dict(vars(each)), {key: copy.copy(value) for key, value in mutable.items()}))
    return found


def _restore_attributes(before: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]) -> bool:
    """Returns whether any were changed."""
    changed = False
    for now, kept, copies in before:
        changed |= _differ(now, kept) or any(_differ(kept[key], contents) for key, contents in copies.items())
        now.clear()
        now.update(kept)
        for key, contents in copies.items():
            kept[key].clear()
            (kept[key].extend if isinstance(contents, list) else kept[key].update)(contents)
    return changed


def _differ(now: Any, before: Any) -> bool:
    """Whether two lists, dictionaries or sets hold other objects."""
    if isinstance(now, dict):
        return [*now] != [*before] or _differ([*now.values()], [*before.values()])
    return [*map(id, now)] != [*map(id, before)]
