import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
from layer_results import assert_as_exact, results
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from bantam import models
from bantam.kernels import compiler
from bantam.kernels.fuse import fuse, is_fused

IMAGE = (1, 28, 28)


def test_the_fused_network_shares_everything() -> None:
    model = models.V2()
    fused = fuse(model, IMAGE).model
    assert fused is not None
    assert {id(p) for p in fused.parameters()} == {id(p) for p in model.parameters()}
    assert {id(b) for b in fused.buffers()} == {id(b) for b in model.buffers()}


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(1, 4, 3, padding=(0, 1), bias=False),
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular", bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="circular", bias=False),
        nn.Conv2d(1, 4, 3, stride=(2, 1), bias=False),
        nn.Conv2d(1, 4, 3, dilation=2, bias=False),
        nn.Conv2d(1, 4, (3, 1), bias=False),
        nn.Conv2d(4, 4, 3, stride=(2, 1), groups=4),
        nn.Conv2d(1, 2048, 3, bias=False),
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Conv2d(4, 8, 3, groups=4, bias=False),
    ],
)
def test_what_the_c_code_does_not_compute_stays_as_it_is(convolution: nn.Conv2d) -> None:
    channels = convolution.out_channels
    image = (convolution.in_channels, 28, 28)
    assert fuse(nn.Sequential(convolution, nn.ReLU(), nn.BatchNorm2d(channels)), image).model is None
    assert fuse(models.Skeleton(), IMAGE).model is None  # no batch norm
    odd = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(4, momentum=None))
    assert fuse(odd, IMAGE).model is None


def test_bfloat16_needs_a_processor_that_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "bfloat16", lambda: False)
    with pytest.raises(compiler.Unavailable, match="does not compute in bfloat16: use precision=float32"):
        fuse(models.V2(), IMAGE, torch.bfloat16)


def block(inputs: int, outputs: int, kernel: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Residual(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class AroundBlocks(nn.Module):
    """Adds its input to what its blocks make of it, the second without a ReLU."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.body = nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(4))
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.inplace:
            y += x
        else:
            y = x + y
        return torch.relu(y)


class ByNumber(nn.Module):
    """Takes the layers of a Sequential by their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*block(1, 4), *block(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        for number in (0, 1, 2, 3):
            x = self.body[number](x)
        return x


class InTraining(nn.Module):
    """Shows its second block smaller maps in training, as progressive resizing does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(*block(1, 4)), nn.Sequential(*block(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x[..., ::2, ::2] if self.training else x).mean(dim=(2, 3))


class Frozen(nn.Sequential):
    """Keeps the statistics of batch norm as they are, in training too."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def hooked() -> nn.Module:
    layers = block(1, 4)
    layers[2].register_forward_hook(lambda layer, inputs, output: 2 * output)
    return nn.Sequential(*layers, *block(4, 5))


def pruned() -> nn.Module:
    network = nn.Sequential(*block(1, 4), *block(4, 5))
    prune.l1_unstructured(network[0], "weight", 0.5)
    return network


def normalised() -> nn.Module:
    network = nn.Sequential(*block(1, 4), *block(4, 5))
    parametrizations.weight_norm(network[0])
    return network


def strided_norm() -> nn.Module:
    """Batch norm whose weights lie apart in memory."""
    network = nn.Sequential(*block(1, 4), *block(4, 5))
    network[1].weight.data = torch.rand(8)[::2]
    network[1].running_mean = torch.rand(8)[::2]
    return network


def tied() -> nn.Module:
    network = nn.Sequential(*block(4, 4), *block(4, 4))
    network[3].weight = network[0].weight
    network[4].weight = network[4].bias = network[1].bias
    return nn.Sequential(*block(1, 4), network)


def same_layer_twice() -> nn.Module:
    """Layers that stand in two places, on maps of different size and with the same statistics."""
    layers = block(4, 4)
    return nn.Sequential(*block(1, 4), *layers, *layers)


ODD: dict[str, Callable[[], nn.Module]] = {
    "rows pooled": lambda: nn.Sequential(nn.MaxPool2d((2, 1)), *block(1, 4), *block(4, 5)),
    "columns pooled between": lambda: nn.Sequential(*block(1, 4), nn.MaxPool2d((1, 2)), *block(4, 5)),
    "pooled by a tuple": lambda: nn.Sequential(*block(1, 4), nn.MaxPool2d((3, 3)), *block(4, 5)),
    "pooled with a rest": lambda: nn.Sequential(*block(1, 4), nn.MaxPool2d(5), *block(4, 5)),
    "pooled with ceil_mode": lambda: nn.Sequential(*block(1, 4), nn.MaxPool2d(5, ceil_mode=True), *block(4, 5)),
    "pooled with padding": lambda: nn.Sequential(*block(1, 4), nn.MaxPool2d(3, padding=1), *block(4, 5)),
    "pooled with overlap": lambda: nn.Sequential(*block(1, 4), nn.MaxPool2d(3, stride=2), *block(4, 5)),
    "pooled with dilation": lambda: nn.Sequential(*block(1, 4), nn.MaxPool2d(2, dilation=2), *block(4, 5)),
    "padding valid": lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding="valid", bias=False), *block(3, 4)),
    "padded by reflection": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect", bias=False), *block(3, 4)
    ),
    "residual": lambda: nn.Sequential(*block(1, 4), Residual(*block(4, 4, kernel=1)), *block(4, 5)),
    "residual blocks": lambda: nn.Sequential(*block(1, 4), *(AroundBlocks(inplace) for inplace in (False, True))),
    "other maps in training": InTraining,
    "frozen": lambda: Frozen(*block(1, 4), *block(4, 5)),
    "hooked": hooked,
    "pruned": pruned,
    "parametrized": normalised,
    "strided norm": strided_norm,
    "tied": tied,
    "same layer twice": same_layer_twice,
    "dropout of everything": lambda: nn.Sequential(*block(1, 4), models.Dropout(1.0), *block(4, 5)),
    "norm of one image": lambda: nn.Sequential(*block(1, 4), nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4), nn.ReLU()),
    "norm without weights": lambda: nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)),
    "norm of the batch only": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), *block(4, 5)
    ),
    "large": lambda: nn.Sequential(*block(1, 4), nn.Upsample(scale_factor=10), *block(4, 4)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_compute_what_they_compute_without_blocks(name: str) -> None:
    def built() -> nn.Module:
        torch.manual_seed(2)
        return ODD[name]().to(memory_format=torch.channels_last)

    model, plain, exact = built(), built(), built().double()
    fused = model
    with contextlib.suppress(compiler.Unavailable):  # what C cannot compute is left to PyTorch
        fused = fuse(model, IMAGE).model or model
    x = torch.randn(6, *IMAGE)
    gradient = torch.randn(built()(x).shape)
    for _ in range(2):
        assert_as_exact(
            results(fused, model, x, gradient),
            results(plain, plain, x, gradient),
            results(exact, exact, x.double(), gradient.double()),
        )


def test_a_network_may_take_its_layers_by_number() -> None:
    model = ByNumber()
    done = fuse(model, IMAGE)
    assert done.model is not None
    x = torch.randn(2, *IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(done.model.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_what_changes_after_a_network_was_fused_is_what_counts() -> None:
    layers = [*block(1, 4), models.Dropout(0.5), *block(4, 5)]
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    fused = fuse(model, IMAGE).model
    assert fused is not None
    for layer in fused.modules():  # the twin has settings of its own, as every copy has
        if isinstance(layer, models.Dropout):
            layer.p = 0.0
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum, layer.eps = 0.5, 0.1
    exact = copy.deepcopy(model).double()
    for layer in exact.modules():
        if isinstance(layer, models.Dropout):
            layer.p = 0.0
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum, layer.eps = 0.5, 0.1
    x = torch.randn(6, *IMAGE)
    torch.testing.assert_close(fused.train()(x).double(), exact.train()(x.double()), rtol=1e-3, atol=1e-3)
    for ours, theirs in zip(model.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-3, atol=1e-3)


def test_fusing_changes_nothing_of_the_model_or_the_random_numbers() -> None:
    model = nn.Sequential(*block(1, 4), *block(4, 5))
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    compiler.library.cache_clear()
    assert is_fused(fuse(model, IMAGE).model or model)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert all(torch.equal(*pair) for pair in zip(before.values(), model.state_dict().values(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (lambda: models.V2(), ""),
        (lambda: models.Flexible(head=12), ""),
        (ODD["residual blocks"], ""),
        (
            lambda: models.Skeleton(),
            "PyTorch computes 7 of 7 convolutions (7 without a batch norm that fits behind it)",
        ),
        (lambda: models.Flexible(dilation=2), "PyTorch computes 3 of 6 convolutions (3 with dilation 2)"),
        (ODD["columns pooled between"], "PyTorch computes 1 of 2 convolutions (1 of maps of 26×13 pixels)"),
        (hooked, ""),
        (pruned, "PyTorch computes 1 of 2 convolutions (1 with hooks)"),
        (normalised, "PyTorch computes 1 of 2 convolutions (1 of another kind than Conv2d)"),
        (ODD["large"], "PyTorch computes 1 of 2 convolutions (1 of maps of 260×260 pixels, too many)"),
    ],
)
def test_what_is_left_to_pytorch_is_said_with_its_reason(network: Callable[[], nn.Module], left: str) -> None:
    assert fuse(network(), IMAGE).left == left


class Course(nn.Module):
    """As in a notebook: padding of another kind, dilation, and functions between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.conv2 = nn.Conv2d(4, 4, 3, dilation=2)
        self.norm = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 4, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(torch.relu(self.norm(self.conv2(self.conv1(x))))).flatten(1)


class Halving(nn.Module):
    """A residual block whose shortcut is a 1×1 convolution with a stride."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.body = nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(8))
        self.shortcut = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.shortcut(x) + self.body(x))


def test_a_residual_network_is_trained_by_its_blocks_and_pytorchs_sums() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(*block(1, 4), AroundBlocks(False), Halving()).to(memory_format=torch.channels_last)
    exact, done = copy.deepcopy(model).double(), fuse(model, IMAGE)
    assert done.model is not None
    assert not done.left
    assert not done.reasons
    x, gradient = torch.randn(6, *IMAGE), torch.randn(6, 8, 13, 13)
    # PyTorch 2.14 writes beyond its memory in 1×1 convolutions with a stride in float32: the exact ones are asked.
    wanted = results(exact, exact, x.double(), gradient.double())
    for name, ours in results(done.model, model, x, gradient).items():
        assert float((ours.double() - wanted[name]).norm()) <= 1e-4 * (1 + float(wanted[name].double().norm())), (
            name
        )


def test_each_convolution_that_is_left_has_all_its_reasons() -> None:
    assert fuse(Course(), IMAGE).reasons == {
        "conv1.0": "padding_mode reflect: the C blocks pad with zeros",
        "conv2": "dilation 2: the C blocks compute none",
        "conv3": "no batch norm alone reads its output, by way of a ReLU or not: the C blocks need one",
    }
    assert not fuse(models.V2(), IMAGE).reasons


@pytest.mark.parametrize("side", [15, 16, 24])
def test_a_max_pool_of_many_pixels_gives_its_gradient_to_one_of_them(side: int) -> None:
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(side)]
    model = nn.Sequential(*layers, nn.Flatten()).to(memory_format=torch.channels_last).train()
    exact = copy.deepcopy(model).double()
    fused = fuse(model, (1, 48, 48)).model
    assert fused is not None
    x = torch.randn(4, 1, 48, 48, requires_grad=True)
    y = x.detach().double().requires_grad_()
    fused(x).square().sum().backward()
    exact(y).square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-3, atol=1e-4 * float(y.grad.abs().max()))


def test_a_square_that_dropout_took_whole_has_no_gradient() -> None:
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.99), nn.MaxPool2d(16)]
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last).train()
    fused = fuse(model, (1, 48, 48)).model
    assert fused is not None
    output = fused(torch.rand(64, 1, 48, 48))
    output.backward((output == 0).to(output.dtype))
    assert model[1].bias.grad.abs().max() == 0


@pytest.mark.skipif(not compiler.bfloat16(), reason="of a processor that computes in bfloat16")
def test_blocks_are_not_refused_for_what_pytorch_computes_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its convolutions in bfloat16 are wrong for kernels of 8 and 16 on processors with AMX."""
    convolve = nn.Conv2d.forward
    wrong = torch.bfloat16

    def forward(self: nn.Conv2d, x: Tensor) -> Tensor:
        y = convolve(self, x)
        return y.flip(0) if y.dtype == wrong else y

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    assert fuse(network, IMAGE, torch.bfloat16).model is not None
    network = nn.Sequential(nn.Conv2d(8, 40, 8, bias=False), nn.BatchNorm2d(40), nn.ReLU(), nn.Flatten())
    monkeypatch.undo()
    assert fuse(network, (8, 11, 11), torch.bfloat16).model is not None
