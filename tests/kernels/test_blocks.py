import copy
import ctypes
import functools
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bantam import models
from bantam.kernels import compiler
from bantam.kernels.arguments import BlockArguments, DepthwiseArguments
from bantam.kernels.blocks import MOST_CHANNELS
from bantam.kernels.fuse import fuse

IMAGE = (1, 28, 28)


def gradients(forward: nn.Module, model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and the gradients of all parameters, in double precision."""
    torch.manual_seed(0)
    model.zero_grad()
    logits = forward(x)
    F.cross_entropy(logits, labels).backward()
    return logits.detach().double(), [p.grad.double() for p in model.parameters() if p.grad is not None]


NETWORKS: list[Any] = [
    lambda: models.V1(dropout=0.0),
    lambda: models.V2(dropout=0.0),
    lambda: models.V2(width=5, dropout=0.0),
    lambda: models.Flexible(),
    lambda: models.Flexible(early1=3, early2=17, transition=9, late1=33, late2=2, late3=0),
    lambda: models.Flexible(late1=8, late2=8, late3=8, head=12, shared=True),  # one weight in several blocks
    lambda: models.Flexible(late1=16, late2=16, late3=16, late_separable=True, shared=True),
    lambda: models.Flexible(early1=3, early2=5, transition=0, late1=17, late2=33, late3=2, late_separable=True),
    lambda: models.Flexible(late2=14, dilation=2, shared=True),  # partly in C, partly in PyTorch
    lambda: nn.Sequential(
        nn.Conv2d(1, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten()
    ),
]


SEPARABLE = functools.partial(
    models.Flexible, early1=3, early2=12, transition=0, early_separable=True, late_separable=True
)
WIDE = functools.partial(models.Flexible, early1=2, early2=2, late1=2, late2=2, late3=200)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("threads", [1, 2])
def test_logits_gradients_and_statistics_are_those_of_the_layers(network: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    compare(network)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of a processor with other instructions")
@pytest.mark.parametrize(("architecture", "needs"), [("x86-64", "sse2"), ("haswell", "avx2")])
@pytest.mark.parametrize("network", [models.V1, models.Flexible, SEPARABLE, WIDE])
def test_processors_with_narrower_vectors_compute_the_same(
    network: Any, architecture: str, needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if needs not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"this processor has no {needs}")
    monkeypatch.setattr(compiler, "FLAGS", [flag.replace("native", architecture) for flag in compiler.FLAGS])
    compiler.library.cache_clear()
    try:
        compare(lambda: network(dropout=0.0))
    finally:
        compiler.library.cache_clear()


def compare(network: Any) -> None:
    """Assert that logits, gradients and running statistics are those of double precision."""
    torch.manual_seed(1)
    model = network().to(memory_format=torch.channels_last).train()
    exact = copy.deepcopy(model).double()
    fused = fuse(model, IMAGE).model
    assert fused is not None
    for count in (7, 32, 5):  # the memory of a larger batch serves a smaller one, and the other way round
        x, labels = torch.randn(count, *IMAGE), torch.randint(10, (count,))
        logits, ours = gradients(fused, model, x, labels)
        wanted, theirs = gradients(exact, exact, x.double(), labels)
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert (our - their).abs().max() <= 1e-4 * their.abs().max()
    for (name, ours_), theirs_ in zip(model.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours_.double(), theirs_.double(), rtol=1e-4, atol=1e-6, msg=name)


class Rounded(torch.autograd.Function):
    """To bfloat16 and back; gradients pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().double()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def far(ours: Tensor, theirs: Tensor) -> float:
    """How far a tensor is from another, as a fraction of the other's length."""
    return float(((ours.double() - theirs).norm() / theirs.norm()).detach())


@pytest.fixture(params=["tiles", "vectors"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both ways of multiplying bfloat16; skip where the processor does not have them."""
    if not compiler.bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    if request.param == "tiles" and not compiler.matrix_unit():
        pytest.skip("this processor has no matrix unit for bfloat16")
    if request.param == "vectors":
        monkeypatch.setattr(compiler, "matrix_unit", lambda: False)
    compiler.library.cache_clear()
    yield
    compiler.library.cache_clear()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("relu_first", [True, False])
@pytest.mark.parametrize(
    ("inputs", "outputs", "side", "kernel", "pool"),
    [
        (1, 16, 28, 3, 1),
        (16, 16, 26, 3, 2),
        (16, 10, 12, 3, 1),
        (8, 5, 13, 3, 2),
        (3, 17, 9, 5, 1),
        (17, 33, 7, 3, 1),
        (40, 48, 6, 1, 1),
        (12, 24, 24, 1, 2),
        (16, 8, 11, 1, 1),
        (2, 200, 3, 3, 1),
    ],
)
@pytest.mark.usefixtures("products")
def test_in_bfloat16_a_block_is_as_exact_as_its_numbers(
    inputs: int, outputs: int, side: int, kernel: int, pool: int, relu_first: bool, dropout: float
) -> None:
    torch.manual_seed(3)
    norm = nn.BatchNorm2d(outputs)
    middle = [nn.ReLU(), norm] if relu_first else [norm, nn.ReLU()]
    convolution = nn.Conv2d(inputs, outputs, kernel, bias=False)
    convolution.weight.data = convolution.weight.data.bfloat16().float()
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    exact = copy.deepcopy([convolution, *middle])
    layers = [convolution, *middle, *([models.Dropout(dropout)] if dropout else [])]
    pooling = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
    fused = fuse(nn.Sequential(*layers, pooling).train(), (inputs, side, side), torch.bfloat16).model
    twin = nn.Sequential(*copy.deepcopy(layers)).train()
    unpooled = fuse(twin, (inputs, side, side), torch.bfloat16).model
    assert fused is not None
    assert unpooled is not None
    torch.set_num_threads(2)
    for count in (9, 4):
        x = torch.randn(count, inputs, side, side).bfloat16().to(memory_format=torch.channels_last)
        x.requires_grad_()
        torch.manual_seed(4)
        y = fused(x)
        assert y.dtype == torch.bfloat16
        weight = torch.randn(y.shape).bfloat16()
        convolution.weight.grad = norm.weight.grad = norm.bias.grad = None
        (y * weight).sum().backward()
        torch.manual_seed(4)
        x_ = x.detach().double().requires_grad_()
        exact[0].double().zero_grad()
        z = exact[1].double()(Rounded.apply(exact[0](x_)))
        z = exact[2].double()(z)
        if dropout:
            # A zero of ReLU may or may not be dropped: its gradient is none in either case.
            kept = unpooled(x.detach()) != 0
            assert 0.2 < (~kept).double().mean() < 0.8
            z = z * kept / (1 - dropout)
        wanted = pooling(z)
        exact[1].zero_grad()
        exact[2].zero_grad()
        (wanted * weight.double()).sum().backward()
        assert far(y, wanted) < 0.004
        assert x.grad is not None
        assert far(x.grad, x_.grad) < 0.05  # type: ignore[arg-type]
        exact_norm = next(layer for layer in exact if isinstance(layer, nn.BatchNorm2d))
        for ours, theirs in zip((convolution, norm), (exact[0], exact_norm), strict=True):
            for parameter, wanted_ in zip(ours.parameters(), theirs.parameters(), strict=True):
                assert far(parameter.grad, wanted_.grad) < 0.05  # type: ignore[arg-type]
        for buffer, wanted_ in zip(norm.buffers(), exact_norm.buffers(), strict=True):
            torch.testing.assert_close(buffer.double(), wanted_.double(), rtol=5e-3, atol=2e-3)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.usefixtures("products")
def test_in_bfloat16_networks_are_as_exact_as_with_pytorchs_kernels(network: Any) -> None:
    torch.manual_seed(1)
    model = network().to(memory_format=torch.channels_last)
    fused = fuse(model, IMAGE, torch.bfloat16).model
    assert fused is not None
    x = torch.randn(64, *IMAGE)
    for training in (True, False):
        model.train(training)
        exact = copy.deepcopy(model).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            theirs = copy.deepcopy(model)(x)
            ours = fused.train(training)(x)
        assert far(ours, exact) < 1.5 * far(theirs, exact) + 0.002


@pytest.mark.usefixtures("products")
def test_pytorchs_own_products_in_bfloat16_are_not_disturbed() -> None:
    torch.manual_seed(1)
    a, b = torch.randn(2, 300, 300).bfloat16().unbind()
    fused = fuse(models.V2(), IMAGE, torch.bfloat16).model
    assert fused is not None
    before = a @ b
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            fused.train()(torch.randn(4, *IMAGE)).float().sum().backward()
        assert torch.equal(a @ b, before)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("relu_first", [True, False])
def test_dropout_zeroes_and_scales_the_same_elements_forward_and_backward(relu_first: bool, pool: int) -> None:
    torch.manual_seed(2)
    middle = [nn.ReLU(), nn.BatchNorm2d(6)] if relu_first else [nn.BatchNorm2d(6), nn.ReLU()]
    layers = (nn.Conv2d(2, 6, 3, bias=False), *middle)
    dropout, pooling = models.Dropout(0.3), nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
    fused = fuse(nn.Sequential(*layers, dropout, pooling).train(), (2, 12, 12)).model
    unpooled = fuse(nn.Sequential(*layers, dropout).train(), (2, 12, 12)).model
    assert fused is not None
    assert unpooled is not None
    exact = copy.deepcopy(nn.Sequential(*layers)).double()
    inputs = torch.randn(9, 2, 12, 12).to(memory_format=torch.channels_last).requires_grad_()
    torch.manual_seed(3)
    y = fused(inputs)
    weight = torch.randn_like(y).contiguous()  # NCHW, unlike what comes out of the block
    (y * weight).sum().backward()
    torch.manual_seed(3)
    kept = unpooled(inputs.detach()) != 0
    inputs_ = inputs.detach().double().requires_grad_()
    wanted = pooling(exact(inputs_) * kept / 0.7)
    (wanted * weight).sum().backward()
    assert 0.2 < (~kept).double().mean() < 0.75
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs.grad.double(), inputs_.grad, rtol=0, atol=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize("p", [0.01, 0.05, 0.3, 0.9])
def test_dropout_chooses_every_element_by_itself_with_its_probability(p: float) -> None:
    norm = nn.BatchNorm2d(5)
    nn.init.zeros_(norm.weight)
    nn.init.ones_(norm.bias)  # so that only what is dropped is zero
    fused = fuse(nn.Sequential(nn.Conv2d(1, 5, 3, bias=False), nn.ReLU(), norm, models.Dropout(p)), IMAGE).model
    assert fused is not None
    torch.manual_seed(6)
    with torch.no_grad():
        dropped = torch.stack([fused(torch.randn(64, *IMAGE)) == 0 for _ in range(8)]).double()
    assert dropped.shape == (8, 64, 5, 26, 26)

    def near(share: Tensor, expected: float, elements: int) -> None:
        assert (share - expected).abs().max() < 5.5 * (expected * (1 - expected) / elements) ** 0.5

    count = dropped.numel()
    for kept in range(5):  # by step, image, channel, row and column
        others = [dim for dim in range(5) if dim != kept]
        near(dropped.mean(dim=others), p, count // dropped.shape[kept])
    flat = dropped.permute(0, 1, 3, 4, 2).reshape(8, 64, -1)  # as it lies in memory
    half = flat.shape[-1] // 2
    pairs = [dropped[1:] * dropped[:-1], dropped[:, 1:] * dropped[:, :-1], flat[..., 1:] * flat[..., :-1]]
    pairs += [flat[..., :half] * flat[..., half:], flat[..., 16:] * flat[..., :-16]]
    for both in pairs:  # steps, images, neighbours, and elements that share random bits
        near(both.mean(), p * p, both.numel())


def test_a_block_that_runs_twice_before_its_backward_pass_keeps_both_results() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = (nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
            self.block = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3, bias=False), *layers)

        def forward(self, x: Tensor) -> Tensor:
            once = self.block(x)
            return torch.cat([once, self.block(once)], 1).mean(dim=(2, 3))

    torch.manual_seed(4)
    model = Twice().to(memory_format=torch.channels_last).train()
    exact = copy.deepcopy(model).double()
    fused = fuse(model, (3, 6, 6)).model
    assert fused is not None
    for _ in range(2):
        x, labels = torch.randn(8, 3, 6, 6), torch.randint(6, (8,))
        _, ours = gradients(fused, model, x, labels)
        _, theirs = gradients(exact, exact, x.double(), labels)
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our, their, rtol=0, atol=1e-4)


def test_a_layer_after_a_block_may_change_its_result_in_place() -> None:
    layers = [nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.ReLU(inplace=True)]
    compare(lambda: nn.Sequential(*layers, nn.MaxPool2d(8), nn.Flatten(), nn.Linear(36, 10)))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("threads", [1, 2])
def test_outside_training_the_logits_are_those_of_the_layers(network: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(5)
    model = network().to(memory_format=torch.channels_last).train()
    fused = fuse(model, IMAGE).model
    assert fused is not None
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                tensor.normal_()  # type: ignore[union-attr]
        for _ in range(2):
            model(torch.randn(16, *IMAGE))
        before = [buffer.clone() for buffer in model.buffers()]
        x = torch.randn(7, *IMAGE)
        torch.testing.assert_close(
            fused.eval()(x).double(), copy.deepcopy(model).double().eval()(x.double()), rtol=0, atol=1e-4
        )
    assert all(torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True))


def test_the_most_channels_fit_on_the_stack() -> None:
    most = MOST_CHANNELS
    layers = (nn.Conv2d(most, most, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(most))
    fused = fuse(nn.Sequential(*layers).to(memory_format=torch.channels_last), (most, 5, 5)).model
    assert fused is not None
    x = torch.randn(2, most, 5, 5).requires_grad_()
    fused.train()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_one_value_a_channel_is_refused_as_pytorch_refuses_it() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU())
    fused = fuse(model, (2, 3, 3)).model
    assert fused is not None
    for network in (model.train(), fused.train()):
        assert network(torch.randn(2, 2, 3, 3)).isfinite().all()
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            network(torch.randn(1, 2, 3, 3))
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_nan_stays_nan() -> None:
    fused = fuse(models.V2(dropout=0.0).to(memory_format=torch.channels_last), IMAGE).model
    assert fused is not None
    assert fused.train()(torch.full((2, *IMAGE), float("nan"))).isnan().all()


@pytest.mark.parametrize(("arguments", "struct"), [(BlockArguments, "block"), (DepthwiseArguments, "depthwise")])
def test_python_and_c_mean_the_same_fields(arguments: type[ctypes.Structure], struct: str, tmp_path: Path) -> None:
    names = [field[0] for field in arguments._fields_]
    offsets = ", ".join(f"offsetof(struct {struct}_arguments, {name})" for name in names)
    lines = ("#define BFLOAT16 0", '#include "numbers.h"', '#include "arguments.h"', "#include <stddef.h>")
    size = f"sizeof(struct {struct}_arguments)"
    (tmp_path / "offsets.c").write_text("\n".join([*lines, f"size_t offsets[] = {{{offsets}, {size}}};\n"]))
    library = tmp_path / "offsets.so"
    cc, folder = compiler.compiler(), Path(compiler.__file__).parent
    assert cc is not None
    subprocess.run([*cc, "-shared", f"-I{folder}", tmp_path / "offsets.c", "-o", library], check=True)
    found = (ctypes.c_size_t * (len(names) + 1)).in_dll(ctypes.CDLL(str(library)), "offsets")
    assert list(found) == [*(getattr(arguments, name).offset for name in names), ctypes.sizeof(arguments)]
