import copy
import ctypes
import functools
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import NETWORKS
from torch import Tensor, nn

from bantam import models
from bantam.kernels import compiler
from bantam.kernels.arguments import BlockArguments, DepthwiseArguments, MuonArguments, SeparableArguments
from bantam.kernels.compiled import MOST_CHANNELS, Compiled
from bantam.kernels.fuse import fuse

IMAGE = (1, 28, 28)


def gradients(forward: nn.Module, model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and the gradients of all parameters, in double precision."""
    torch.manual_seed(0)
    model.zero_grad()
    logits = forward(x)
    F.cross_entropy(logits, labels).backward()
    return logits.detach().double(), [p.grad.double() for p in model.parameters() if p.grad is not None]


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


ODD = functools.partial(
    models.Flexible, early1=9, early2=15, transition=11, late1=13, late2=15, late3=10, early_separable=True
)


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("network", [ODD, functools.partial(ODD, early_separable=False)])
def test_vectors_that_are_not_full_compute_the_same(
    network: Any, halves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "in_halves", lambda: halves)  # of 512 bits, where the processor has them
    compiler.library.cache_clear()
    try:
        compare(lambda: network(dropout=0.0))
    finally:
        compiler.library.cache_clear()


def compare(network: Any, image: tuple[int, int, int] = IMAGE) -> None:
    """Assert that logits, gradients and running statistics are those of double precision."""
    torch.manual_seed(1)
    model = network().to(memory_format=torch.channels_last).train()
    exact = copy.deepcopy(model).double()
    fused = fuse(model, image).model
    assert fused is not None
    for count in (7, 32, 5):  # the memory of a larger batch serves a smaller one, and the other way round
        x, labels = torch.randn(count, *image), torch.randint(10, (count,))
        logits, ours = gradients(fused, model, x, labels)
        wanted, theirs = gradients(exact, exact, x.double(), labels)
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert (our - their).abs().max() <= 1e-4 * their.abs().max()
    for (name, ours_), theirs_ in zip(model.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours_.double(), theirs_.double(), rtol=1e-4, atol=1e-6, msg=name)


def test_images_in_colour() -> None:
    for separable in (False, True):
        network = functools.partial(models.Flexible, early_separable=separable, late_separable=separable)
        compare(functools.partial(network, channels=3, classes=26), (3, 32, 32))


@pytest.mark.parametrize("kind", [models.Dropout, nn.Dropout])
@pytest.mark.parametrize("pooling", [nn.Identity(), nn.MaxPool2d(2), nn.AvgPool2d(3)])
@pytest.mark.parametrize("relu_first", [True, False])
def test_dropout_zeroes_and_scales_the_same_elements_forward_and_backward(
    relu_first: bool, pooling: nn.Module, kind: type[nn.Dropout]
) -> None:
    torch.manual_seed(2)
    middle = [nn.ReLU(), nn.BatchNorm2d(6)] if relu_first else [nn.BatchNorm2d(6), nn.ReLU()]
    layers = (nn.Conv2d(2, 6, 3, padding=1), *middle)
    dropout = kind(0.3)
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


def test_a_result_that_is_thrown_away_keeps_no_memory_busy() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(2704, 10))
    fused = fuse(model.train(), IMAGE).model
    assert fused is not None
    (block,) = (module for module in fused.modules() if isinstance(module, Compiled))
    results: list[Tensor] = []
    block.register_forward_hook(lambda module, inputs, output: results.append(output.detach()))
    x, other = torch.randn(2, 3, *IMAGE)
    logits = fused(x)
    assert block.busy
    del logits
    assert not block.busy
    before = results[0].clone()
    fused(other).sum().backward()
    assert torch.equal(results[0], before)  # whoever looks at the maps keeps them
    fused(x).sum().backward()
    assert results[2].data_ptr() == results[1].data_ptr()  # the memory of the last step


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


@pytest.mark.parametrize(
    ("arguments", "struct"),
    [
        (BlockArguments, "block"),
        (DepthwiseArguments, "depthwise"),
        (SeparableArguments, "separable"),
        (MuonArguments, "muon"),
    ],
)
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


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    """A small network with its blocks in C, and the same in double precision."""
    torch.manual_seed(4)
    layers = [nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Conv2d(5, 5, 3, groups=5, bias=False))
    exact = copy.deepcopy(model).double()
    fused = fuse(model, (2, 10, 10)).model
    assert fused is not None
    return fused, exact


@pytest.mark.parametrize("offset", [30.0, 1e3, 1e4])
def test_statistics_are_exact_where_a_mean_is_large_beside_its_deviation(offset: float) -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3, eps=1e-12), nn.ReLU())
    exact = copy.deepcopy(model).double()
    fused = fuse(model, (1, 9, 9)).model
    assert fused is not None
    x = offset + torch.randn(16, 1, 9, 9)
    ours, theirs = fused.train()(x), exact.train()(x.double())
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5 * offset)
    torch.testing.assert_close(model[1].running_var.double(), exact[1].running_var, rtol=1e-3, atol=0)


def test_a_second_backward_pass_is_right_or_refused(pair: tuple[nn.Module, nn.Module]) -> None:
    fused, exact = pair
    x = torch.randn(4, 2, 10, 10)
    y, wanted = fused.train()(x), exact.train()(x.double())
    for output in (y, wanted):
        output.sum().backward(retain_graph=True)
        output.sum().backward(retain_graph=True)
    for ours, theirs in zip(fused.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-3)  # type: ignore[union-attr]
    fused(torch.randn(4, 2, 10, 10))
    with pytest.raises(RuntimeError, match="kernels in C keep the results .* use kernels=torch"):
        y.sum().backward()


def test_gradients_of_gradients_are_refused(pair: tuple[nn.Module, nn.Module]) -> None:
    x = torch.randn(4, 2, 10, 10, requires_grad=True)
    (gradient,) = torch.autograd.grad(pair[0].train()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_outside_training_there_are_gradients_too(pair: tuple[nn.Module, nn.Module]) -> None:
    fused, exact = pair
    x = torch.randn(4, 2, 10, 10, requires_grad=True)
    x_ = x.detach().double().requires_grad_()
    fused.eval()(x).square().sum().backward()
    exact.eval()(x_).square().sum().backward()
    torch.testing.assert_close(x.grad.double(), x_.grad, rtol=1e-3, atol=1e-4)  # type: ignore[union-attr]
    for ours, theirs in zip(fused.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-3)  # type: ignore[union-attr]


def test_the_gradient_of_an_input_stays_what_it_is(pair: tuple[nn.Module, nn.Module]) -> None:
    x = torch.randn(4, 2, 10, 10, requires_grad=True)
    pair[0].train()(x).square().sum().backward()
    assert x.grad is not None
    before = x.grad.clone()
    other = torch.randn(4, 2, 10, 10, requires_grad=True)
    pair[0](other).square().sum().backward()
    assert torch.equal(x.grad, before)


@pytest.mark.parametrize("shape", [(4, 2, 9, 9), (4, 2, 10, 9), (1, 2, 10, 10), (0, 2, 10, 10), (2, 2, 40, 40)])
def test_images_of_another_size_are_computed_too(
    pair: tuple[nn.Module, nn.Module], shape: tuple[int, int, int, int]
) -> None:
    fused, exact = pair
    x = torch.randn(shape)
    torch.testing.assert_close(fused.train()(x).double(), exact.train()(x.double()), rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(fused.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3, 10, 10), (4, 2, 2, 2), (2, 10, 10)])
def test_what_pytorch_refuses_is_refused(pair: tuple[nn.Module, nn.Module], shape: tuple[int, ...]) -> None:
    fused, exact = pair
    with pytest.raises((RuntimeError, ValueError)) as theirs:
        exact.train()(torch.randn(shape).double())
    with pytest.raises(theirs.type):
        fused.train()(torch.randn(shape))
