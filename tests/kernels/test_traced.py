"""Networks as notebooks have them, with functions between layers: blocks in C compute what PyTorch's layers do."""

import contextlib
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layer_results import results
from torch import Tensor, nn

from bantam.kernels import compiler
from bantam.kernels.chain import Chain
from bantam.kernels.fuse import fuse
from bantam.kernels.traced import graphs

IMAGE = (1, 12, 12)
TOLERANCE = 1e-5


class Notebook(nn.Module):
    """A plain class whose forward has functions between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.conv3, self.bn3 = nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
        self.relu, self.drop, self.fc = nn.ReLU(inplace=True), nn.Dropout(0.0), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.dropout(self.bn2(self.relu(self.conv2(x))), 0.0, training=self.training)
        x = F.avg_pool2d(self.drop(self.bn3(self.conv3(x)).relu()), kernel_size=2)
        return F.log_softmax(self.fc(x.view(x.size(0), -1)), dim=-1)


class Basic(nn.Module):
    """The block of a ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if (
            stride > 1 or inputs != outputs
        ):  # 2×2, since PyTorch 2.14 writes beyond its memory in 1×1 with a stride
            self.shortcut.append(nn.Conv2d(inputs, outputs, stride, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class Added(Basic):
    """With another way to add, and no ReLU behind the sum."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu_(self.bn1(self.conv1(x)))))
        return torch.add(self.shortcut(x), out)


class Squeeze(nn.Module):
    """Squeeze and excite: maps are multiplied by what a branch says of each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.down, self.up = nn.Linear(channels, 2), nn.Linear(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.shape
        out = self.bn(self.conv(x)).relu()
        weight = torch.sigmoid(self.up(F.relu(self.down(out.mean((2, 3)))))).view(b, c, 1, 1)
        return out * weight


class Around(nn.Module):
    """Layers, and a function of them and a map for the forward."""

    def __init__(self, does: Callable[[Any, Tensor], Tensor], channels: int = 4) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.again, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.does, self.calls, self.seen = does, 0, list[Tensor]()
        self.register_buffer("scale", torch.tensor(2.0))

    def begin(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))

    def end(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.again(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.does(self, x)


def residual(block: type[Basic]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), block(4, 4), block(4, 6, 2))


def hooked() -> nn.Module:
    """A module within it has hooks: one doubles what it returns."""
    model = residual(Basic)
    model[3].register_forward_hook(lambda layer, inputs, output: 2 * output)
    model[3].register_forward_pre_hook(lambda layer, inputs: (inputs[0] + 1,))
    return model


def used_twice(net: Any, x: Tensor) -> Tensor:
    return net.end(net.end(net.begin(x)))


def both_wanted(net: Any, x: Tensor) -> Tensor:
    """What stands between the layers of a block is wanted elsewhere too."""
    convolved = net.again(net.begin(x))
    normalized = net.norm(convolved)
    return F.relu(normalized) + convolved * normalized


def depends_on_values(net: Any, x: Tensor) -> Tensor:
    x = net.begin(x)
    return net.end(x) if x.mean() > 0 else x


def by_mode(net: Any, x: Tensor) -> Tensor:
    x = net.begin(x)
    return net.end(x) if net.training else net.end(x + 1)


def by_identity(net: Any, x: Tensor) -> Tensor:
    x = net.begin(x)
    return net.end(x) if net.training is True else net.end(x + 1)


def counts(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return net.end(net.begin(x)) * (1 + net.calls)


def keeps(net: Any, x: Tensor) -> Tensor:
    net.seen.append(net.begin(x))
    return net.end(net.seen[-1])


def without_gradient(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        kept = net.end(net.begin(x)).detach()
    return net.end(net.begin(x)) + kept


def not_behind_a_norm(net: Any, x: Tensor) -> Tensor:
    x = net.begin(x)
    return x + net.end(x)


def changed_before_the_sum(net: Any, x: Tensor) -> Tensor:
    """What is added is changed while the block that would add it is computed."""
    y = 1 * net.bn(net.conv(x))
    z = net.norm(net.again(torch.relu(y)))
    y += 1
    return z + y


def of_types(net: Any, x: Tensor) -> Tensor:
    return net.end(net.begin(x)) if isinstance(x, Tensor) else net.begin(x)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "notebook": (Notebook, 3),
    "residual": (lambda: residual(Basic), 6),
    "residual, added otherwise": (lambda: residual(Added), 6),
    "squeeze and excite": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), Squeeze(4)), 1),
    "hooks": (hooked, 6),
    "layers used twice": (lambda: Around(used_twice), 3),
    "wanted elsewhere": (lambda: Around(both_wanted), 1),
    "sum not behind a norm": (lambda: Around(not_behind_a_norm), 2),
    "changed before the sum": (lambda: Around(changed_before_the_sum), 2),
    "of types": (lambda: nn.Sequential(Around(of_types), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)), 1),
    **{
        f"by itself: {does.__name__}": (
            lambda does=does: nn.Sequential(Around(does), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)),
            1,
        )
        for does in (depends_on_values, by_mode, keeps, without_gradient)
    },
}
"""Networks, and how many blocks they have."""


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_with_its_blocks_what_it_computes_without(name: str) -> None:
    build, blocks = NETWORKS[name]

    def built() -> nn.Module:
        torch.manual_seed(2)
        return build().to(memory_format=torch.channels_last)

    model, plain, exact = built(), built(), built().double()
    done = fuse(model, IMAGE)
    assert done.model is not None
    assert sum(bool(getattr(module, "libraries", None)) for module in done.model.modules()) == blocks
    for _ in range(2):
        for attempt in range(3):  # a value so near to zero that rounding decides about it is a matter of luck
            x = torch.randn(6, *IMAGE)
            gradient = torch.randn(built()(x).shape)
            ours, theirs = results(done.model, model, x, gradient), results(plain, plain, x, gradient)
            wanted = results(exact, exact, x.double(), gradient.double())
            far = {
                key: (distance(ours[key], value), distance(theirs[key], value)) for key, value in wanted.items()
            }
            if all(our <= max(TOLERANCE, 4 * their) for our, their in far.values()):
                break
            assert attempt < 2, far


def distance(found: Tensor, wanted: Tensor) -> float:
    """How far a tensor is from the exact one, as a fraction of its length where that is not near to zero."""
    return float((found.double() - wanted.double()).norm() / (wanted.double().norm() + 1))


class Dropping(nn.Module):
    """Drops by a function behind a block: in training only, or always, as where the mode was forgotten."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.always = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), always

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x))) + 1
        return F.dropout(x, 0.5) if self.always else F.dropout(x, 0.5, self.training)


@pytest.mark.parametrize("always", [True, False])
def test_a_function_drops_in_training_and_without_a_mode_always(always: bool) -> None:
    fused = fuse(Dropping(always=always).to(memory_format=torch.channels_last), IMAGE).model
    assert fused is not None
    x = torch.randn(4, *IMAGE)
    with torch.no_grad():
        assert torch.equal(fused.eval()(x).clone(), fused(x)) is not always
        assert not torch.equal(fused.train()(x).clone(), fused(x))


def test_dropout_by_a_function_is_part_of_a_block() -> None:
    class Net(Notebook):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(F.dropout(F.relu(self.bn1(self.conv1(x))), 0.5, training=self.training), 2)

    done = fuse(Net(), IMAGE)
    assert done.model is not None
    (block,) = done.model.blocks
    assert len(block.layers) == 5
    x = torch.randn(400, *IMAGE)
    with torch.no_grad():
        dropped, kept = done.model.train()(x), done.model.eval()(x)
    assert 0.01 < float((dropped == 0).float().mean() - (kept == 0).float().mean()) < 0.3
    done.model.train()
    done.model.network.eval()  # the module whose mode decides, whatever that of the block
    with torch.no_grad():
        torch.testing.assert_close(done.model(x), kept)


def test_a_frozen_part_is_scored_in_training() -> None:
    class Frozen(Notebook):
        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode)
            self.bn1.eval()
            return self

    model = Frozen()
    done = fuse(model, IMAGE)
    assert done.model is not None
    before = model.bn1.running_mean.clone()
    done.model.train()(torch.randn(4, *IMAGE))
    assert torch.equal(model.bn1.running_mean, before)
    assert not torch.equal(model.bn2.running_mean, torch.zeros(6))


def draws(net: Any, x: Tensor) -> Tensor:
    return x if torch.rand(()) < 0.5 else net.end(net.begin(x))


def draws_in_python(net: Any, x: Tensor) -> Tensor:
    return net.begin(x) * random.choice([1, 2])


def draws_in_numpy(net: Any, x: Tensor) -> Tensor:
    return net.begin(x) * float(np.random.rand())


def prints(net: Any, x: Tensor) -> Tensor:
    print(x.shape)
    return net.end(net.begin(x))


@pytest.mark.parametrize(
    "does", [by_identity, draws, draws_in_python, draws_in_numpy, prints, counts, keeps, by_mode, without_gradient]
)
def test_what_a_graph_does_not_have_is_neither_lost_nor_done_twice(
    does: Callable[[Any, Tensor], Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    net = Around(does)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert not [*graphs(net, lambda module: True)]
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.random.get_state()[1].tolist() == before[2]
    assert (net.calls, net.seen, net.training) == (0, [], True)
    assert capsys.readouterr().out == ""
    if does is by_identity:  # a trace does not see that this looks at the mode
        return
    (traced,) = graphs(nn.Sequential(net, nn.Flatten()), lambda module: True)  # as a whole
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["network.0", "network.1"]


def test_what_keeps_a_forward_from_being_traced_is_said() -> None:
    done = fuse(nn.Sequential(Around(prints), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)), IMAGE)
    assert done.left == "PyTorch computes 2 of 3 convolutions (2 in a forward that cannot be traced)"
    assert [*done.reasons] == ["0.conv", "0.again"]
    assert "prints" in done.reasons["0.conv"]


def test_a_network_that_is_never_twice_the_same_is_left_to_pytorch() -> None:
    calls = itertools.count()
    # It draws a number, so it is called as a whole, and is twice as much each time: never nearly the same.
    noisy = Around(lambda net, x: net.begin(x) * (random.random() < 2) * 2.0 ** next(calls))
    with pytest.raises(compiler.Unavailable, match="computes something else with its blocks"):
        fuse(nn.Sequential(noisy, nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)), IMAGE)


def test_buffers_and_parameters_count_as_they_are_when_they_are_used() -> None:
    model = Around(lambda net, x: net.end(net.begin(x)) * (net.scale + 1))
    fused = fuse(model, IMAGE).model
    assert fused is not None
    with torch.no_grad():
        once = fused.eval()(torch.ones(2, *IMAGE)).clone()
        model.scale.fill_(5)
        torch.testing.assert_close(fused(torch.ones(2, *IMAGE)), 2 * once)


def test_separable_convolutions_are_a_chain_wherever_they_stand() -> None:
    class Separable(Around):
        def __init__(self) -> None:
            super().__init__(lambda net, x: F.relu(net.last(net.one(net.each(net.begin(x))))), 8)
            self.each, self.one = nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 8, 1, bias=False)
            self.last = nn.BatchNorm2d(8)
            self.conv = nn.Conv2d(1, 8, 3, bias=False)

    fused = fuse(Separable(), IMAGE).model
    assert fused is not None
    assert [type(block) for block in fused.blocks] == [Chain]


def test_a_forward_may_have_more_arguments_and_be_called_with_them() -> None:
    class Net(Around):
        def forward(self, x: Tensor, more: Tensor | None = None, *others: Tensor) -> Tensor:
            x = self.end(self.begin(x))
            return x if more is None else x + more

    model = Net(used_twice)
    fused = fuse(model, IMAGE).model
    assert fused is not None
    x = torch.randn(2, *IMAGE)
    with torch.no_grad(), contextlib.suppress(TypeError):
        fused.eval(), model.eval()
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            fused.network(x, torch.ones(())), model(x, torch.ones(())), rtol=1e-4, atol=1e-5
        )
