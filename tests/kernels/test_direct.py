"""Loss and gradients without autograd, beside those with it."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bantam.kernels import compiler
from bantam.kernels.direct import Direct, direct
from bantam.kernels.fuse import fuse
from bantam.kernels.stack import Stack
from bantam.models import Flexible

IMAGE = (1, 12, 12)


def network(bias: bool = False, last: int = 8) -> nn.Sequential:
    torch.manual_seed(1)
    return (
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Conv2d(4, 4, 3, groups=4, bias=False),
            *(nn.Conv2d(4, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 10, bias=bias)),
        )
        .to(memory_format=torch.channels_last)
        .train()
    )


def of_blocks(bias: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """As V2: a stack, an average of the whole map, and a 1×1 convolution."""
    torch.manual_seed(1)
    return (
        nn.Sequential(
            *(nn.Conv2d(1, 8, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(8), nn.Dropout(dropout)),
            *(nn.Conv2d(8, 9, 3, bias=bias), nn.ReLU(), nn.BatchNorm2d(9), nn.Dropout(dropout), nn.MaxPool2d(2)),
            *(nn.AvgPool2d(4), nn.Conv2d(9, 10, 1, bias=bias), nn.Flatten()),
        )
        .to(memory_format=torch.channels_last)
        .train()
    )


NETWORKS = [network, of_blocks]


def found(model: nn.Module) -> tuple[nn.Module, Direct | None]:
    fused = fuse(model, IMAGE).model
    assert fused is not None
    return fused, direct(fused.train(), IMAGE)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("build", NETWORKS)
def test_gradients_are_those_of_autograd(
    build: Callable[[bool], nn.Sequential], bias: bool, smoothing: float
) -> None:
    model = build(bias)
    exact = copy.deepcopy(model).double()
    _, step = found(model)
    assert step
    for count in (9, 33, 4):  # more images than before, and fewer: the last batch of an epoch
        x, labels = torch.randn(count, *IMAGE), torch.randint(10, (count,))
        loss, correct = step(x, labels, smoothing)
        exact.zero_grad()
        logits = exact(x.double())
        F.cross_entropy(logits, labels, label_smoothing=smoothing).backward()
        assert loss == pytest.approx(float(F.cross_entropy(logits.detach(), labels)), rel=1e-5)
        assert correct == int((logits.argmax(1) == labels).sum())
        for p, q in zip(model.parameters(), exact.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=1e-4 * float(q.grad.abs().max()))
    for buffer, wanted in zip(model.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(buffer.double(), wanted.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not compiler.bfloat16(), reason="this processor does not compute in bfloat16")
def test_in_bfloat16_gradients_are_as_exact_as_its_numbers() -> None:
    model = of_blocks()
    exact = copy.deepcopy(model).double()
    fused = fuse(model, IMAGE, torch.bfloat16).model
    assert fused is not None
    step = direct(fused.train(), IMAGE)
    assert step
    x, labels = torch.randn(32, *IMAGE), torch.randint(10, (32,))
    loss, _ = step(x, labels, 0.0)
    wanted = F.cross_entropy(exact(x.double()), labels)
    wanted.backward()
    assert loss == pytest.approx(float(wanted.detach()), rel=0.02)
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert float((p.grad - q.grad).norm()) <= 0.1 * float(q.grad.norm())


def test_the_same_elements_are_dropped_as_with_autograd() -> None:
    model, other = of_blocks(dropout=0.3), of_blocks(dropout=0.3)
    _, step = found(model)
    assert step
    with_autograd, _ = found(other)
    assert any(isinstance(module, Stack) for module in with_autograd.modules())
    x, labels = torch.randn(6, *IMAGE), torch.randint(10, (6,))
    for seed in (3, 4):
        torch.manual_seed(seed)
        loss, _ = step(x, labels, 0.0)
        torch.manual_seed(seed)
        other.zero_grad()
        wanted = F.cross_entropy(with_autograd(x), labels)
        wanted.backward()
        assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4 * float(q.grad.abs().max()))


@pytest.mark.parametrize("build", NETWORKS)
def test_parameters_that_are_somewhere_else_are_found_again(build: Callable[[], nn.Sequential]) -> None:
    model = build()
    fused, step = found(model)
    assert step
    x, labels = torch.randn(5, *IMAGE), torch.randint(10, (5,))
    step(x, labels, 0.0)
    for p in model.parameters():
        p.data = p.data.clone() * 1.5
        p.grad = None
    fused(torch.randn(20, *IMAGE)).sum().backward()  # and the maps have other memory
    for p in model.parameters():
        p.grad = None
    loss, _ = step(x, labels, 0.0)
    wanted = F.cross_entropy(model(x), labels)
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert all(p.grad is not None for p in model.parameters())


def test_a_step_with_autograd_in_between_changes_nothing() -> None:
    model = of_blocks()
    fused, step = found(model)
    assert step
    x, labels = torch.randn(9, *IMAGE), torch.randint(10, (9,))
    step(x, labels, 0.0)
    F.cross_entropy(fused(x[:3]), labels[:3]).backward()
    step(x, labels, 0.0)
    fused(x[:4])  # whose backward pass never comes
    step(x, labels, 0.0)
    exact = copy.deepcopy(model).double()
    exact.zero_grad()
    F.cross_entropy(exact(x.double()), labels).backward()
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=1e-4 * float(q.grad.abs().max()))


def test_gradients_that_are_somewhere_else_are_found_again() -> None:
    model = of_blocks()
    _, step = found(model)
    assert step
    x, labels = torch.randn(9, *IMAGE), torch.randint(10, (9,))
    step(x, labels, 0.0)
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for p in model.parameters():
        assert p.grad is not None
        p.grad.data = torch.zeros_like(p.grad)
    step(x, labels, 0.0)
    assert all(
        torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), wanted, strict=True) if p.grad is not None
    )


def test_statistics_that_are_somewhere_else_are_found_again() -> None:
    model = of_blocks()
    _, step = found(model)
    assert step
    exact = copy.deepcopy(model).double()
    before = [buffer.data for buffer in model.buffers()]  # as long as these are kept, nothing else lies there
    for _ in range(2):
        x, labels = torch.randn(9, *IMAGE), torch.randint(10, (9,))
        step(x, labels, 0.0)
        exact(x.double())
        for buffer in model.buffers():
            buffer.data = buffer.data.clone()
    assert len(before) == len([*model.buffers()])
    for buffer, wanted in zip(model.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(buffer.double(), wanted.double(), rtol=1e-4, atol=1e-6)


def frozen(model: nn.Sequential) -> None:
    model[0].weight.requires_grad_(False)


def watched(model: nn.Sequential) -> None:
    model[-1].register_forward_hook(lambda module, inputs, output: None)


def with_gradients_watched(model: nn.Sequential) -> None:
    model[0].weight.register_hook(lambda gradient: gradient)


@pytest.mark.parametrize("change", [frozen, watched, with_gradients_watched])
@pytest.mark.parametrize("build", NETWORKS)
def test_what_needs_autograd_gets_it(
    build: Callable[[], nn.Sequential], change: Callable[[nn.Sequential], None]
) -> None:
    model = build()
    change(model)
    assert found(model)[1] is None


def padded(layers: list[nn.Module]) -> None:
    layers[-2] = nn.Conv2d(9, 10, 1, padding=1)
    layers[-1] = nn.Flatten(1)
    layers.append(nn.AdaptiveAvgPool1d(10))


def of_a_part(layers: list[nn.Module]) -> None:
    layers[-3] = nn.AvgPool2d(3)


def of_flat_maps(layers: list[nn.Module]) -> None:
    layers[-3:] = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 10)]


@pytest.mark.parametrize("change", [padded, of_a_part, of_flat_maps])
def test_other_ends_have_autograd(change: Callable[[list[nn.Module]], None]) -> None:
    layers = [*of_blocks()]
    change(layers)
    fused, step = found(nn.Sequential(*layers).to(memory_format=torch.channels_last).train())
    assert step is None
    assert fused(torch.randn(2, *IMAGE)).shape == (2, 10)


def test_shared_weights_have_autograd() -> None:
    model = Flexible(early1=4, early2=4, transition=4, late1=4, late2=4, late3=0, shared=True)
    assert len({*model.parameters()}) < sum(isinstance(layer, nn.Conv2d) for layer in model) * 3 + 1
    fused = fuse(model.to(memory_format=torch.channels_last).train(), (1, 28, 28)).model
    assert fused is not None
    assert any(isinstance(module, Stack) for module in fused.modules())
    assert direct(fused.train(), (1, 28, 28)) is None


def test_outside_training_there_is_nothing_to_compute() -> None:
    fused, step = found(network())
    assert step
    assert direct(fused.eval(), IMAGE) is None


def test_other_networks_have_autograd() -> None:
    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert direct(network(), IMAGE) is None
    fused = fuse(Twice(*network()), IMAGE).model
    assert fused is not None
    assert direct(fused.train(), IMAGE) is None


def test_a_layer_that_is_called_by_keyword_is_left_to_autograd() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.end = nn.Sequential(*of_blocks()[:9]), nn.Linear(9, 10)
            self.flat, self.pool = nn.Flatten(), nn.AvgPool2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.end(input=self.flat(self.pool(self.maps(x))))  # type: ignore[no-any-return]

    fused = fuse(Net().to(memory_format=torch.channels_last).train(), IMAGE).model
    assert fused is not None
    assert direct(fused.train(), IMAGE) is None


def test_an_attribute_of_ones_own_network_is_no_matter() -> None:
    model = network()
    model.direct_layers = nn.Linear(1, 1)
    assert direct(model, IMAGE) is None


def test_nan_is_seen_in_the_loss() -> None:
    _, step = found(network())
    assert step
    x = torch.full((3, *IMAGE), float("nan"))
    loss, _ = step(x, torch.zeros(3, dtype=torch.int64), 0.0)
    assert loss != loss
