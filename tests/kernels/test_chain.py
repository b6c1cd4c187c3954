"""Separable convolutions that are one function, beside PyTorch's layers in double precision."""

import copy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cross
import pytest
import torch
import torch.nn.functional as F
from emulation import emulate
from layer_results import assert_weights_may_be_set_anew
from torch import Tensor, nn

from bantam.kernels import compiler
from bantam.kernels.chain import Chain
from bantam.kernels.fuse import fuse

IMAGE = (1, 16, 16)


def network(padding: int = 0, last: int = 20) -> nn.Sequential:
    """A chain of three, with a max-pool, of which one has channels that are no whole vectors."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 12, 3, padding=padding, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    for inputs, outputs in ((12, 16), (16, last)):
        layers += [
            nn.Conv2d(inputs, inputs, 3, padding=padding, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
        ]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if inputs == 12 else []
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 10))
    for norm in (layer for layer in model if isinstance(layer, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)  # negative ones turn a max-pool round
        nn.init.normal_(norm.bias)
        with torch.no_grad():
            norm.weight[3] = 0
    return model.to(memory_format=torch.channels_last).train()


def fused(model: nn.Module, precision: torch.dtype = torch.float32) -> tuple[nn.Module, Chain]:
    found = fuse(model, IMAGE, precision).model
    assert found is not None
    (chain,) = (module for module in found.modules() if isinstance(module, Chain))
    assert len(chain.parts) == 3
    assert chain.libraries
    return found, chain


def step(forward: nn.Module, model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    logits = forward(x)
    F.cross_entropy(logits, labels).backward()
    return logits.detach().double(), [p.grad.double() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(("threads", "padding"), [(1, 0), (2, 0), (1, 1), (2, 2)])
def test_a_chain_computes_what_its_layers_compute(
    threads: int, padding: int, halves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "in_halves", lambda: halves)  # of 512 bits, where the processor has them
    compiler.library.cache_clear()
    torch.set_num_threads(threads)
    model = network(padding)
    exact, forward = copy.deepcopy(model).double(), fused(model)[0]
    for count in (7, 33, 5):  # the memory of a larger batch serves a smaller one
        x, labels = torch.randn(count, *IMAGE), torch.randint(10, (count,))
        logits, ours = step(forward, model, x, labels)
        wanted, theirs = step(exact, exact, x.double(), labels)
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)
        for our, their in zip(ours, theirs, strict=True):
            assert (our - their).abs().max() <= 1e-4 * their.abs().max()
    for ours_, theirs_ in zip(model.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours_.double(), theirs_.double(), rtol=1e-4, atol=1e-6)


def test_steps_repeat_to_the_bit() -> None:
    results = []
    for _ in range(2):
        model = network()
        forward, _ = fused(model)
        torch.manual_seed(2)
        for _ in range(3):
            results.append(step(forward, model, torch.randn(9, *IMAGE), torch.randint(10, (9,))))
    for (logits, gradients), (again, same) in zip(results[:3], results[3:], strict=True):
        assert torch.equal(logits, again)
        assert all(map(torch.equal, gradients, same))


def test_two_forward_passes_before_a_backward_pass_keep_both_results() -> None:
    model = network()
    exact, (forward, chain) = copy.deepcopy(model).double(), fused(model)
    x = torch.randn(2, 6, *IMAGE)
    for run, images in ((forward, x), (exact, x.double())):
        first, second = run(images[0]), run(images[1])
        (first.square().sum() + second.sum()).backward()
    assert not chain.busy
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-3)  # type: ignore[union-attr]


def test_a_result_that_is_thrown_away_keeps_no_memory_busy() -> None:
    forward, chain = fused(network())
    results: list[Tensor] = []
    chain.register_forward_hook(lambda module, inputs, output: results.append(output.detach()))
    x, other = torch.randn(2, 6, *IMAGE)
    logits = forward(x)
    assert chain.usable(other) is None  # its backward pass may come
    del logits
    assert chain.usable(other)
    before = results[0].clone()
    forward(other).sum().backward()
    assert torch.equal(results[0], before)  # whoever looks at the maps keeps them
    assert chain.usable(x)


def test_its_blocks_compute_what_it_does_not() -> None:
    model = network()
    exact, (forward, chain) = copy.deepcopy(model).double(), fused(model)
    x = torch.randn(6, *IMAGE, requires_grad=True)
    assert chain.usable(x) is None
    exact_x = x.detach().double().requires_grad_()
    forward(x).square().sum().backward()
    exact(exact_x).square().sum().backward()
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=1e-3, atol=1e-3)  # type: ignore[union-attr]
    assert chain.usable(x.detach()) is not None
    assert chain.eval().usable(x.detach()) is None
    with torch.no_grad():
        torch.testing.assert_close(forward.eval()(x).double(), exact.eval()(exact_x), rtol=0, atol=1e-4)


def test_a_backward_pass_of_overwritten_results_is_refused() -> None:
    forward, _ = fused(network())
    logits = forward(torch.randn(4, *IMAGE))
    logits.sum().backward(retain_graph=True)
    forward(torch.randn(4, *IMAGE))
    with pytest.raises(RuntimeError, match="use kernels=torch"):
        logits.sum().backward()


def test_weights_may_be_set_anew_before_the_backward_pass() -> None:
    assert_weights_may_be_set_anew(network(), lambda model: fused(model)[0], torch.randn(6, *IMAGE))


def test_nan_stays_nan() -> None:
    forward, _ = fused(network())
    assert forward(torch.full((3, *IMAGE), float("nan"))).isnan().all()


EMULATED = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("emulated", "emulated tiles")]


def test_bfloat16_goes_to_the_matrix_unit_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _, chain = fused(network())
    found = {}
    for unit in (True, False):
        monkeypatch.setattr(compiler, "matrix_unit", lambda unit=unit: unit)
        for chain.dtype in (torch.float32, torch.bfloat16):
            sizes = chain.sizes(torch.Size(IMAGE)) or []
            found[unit, chain.dtype] = [of_part["MATRIX_UNIT"] for of_part in sizes]
    # The first part convolves the images as they are.
    assert found.pop((True, torch.bfloat16)) == [0, 1, 1]
    assert all(units == [0, 0, 0] for units in found.values())


@pytest.mark.parametrize("unit", [0, 1])
def test_products_are_by_the_matrix_unit_or_by_vectors(unit: int, tmp_path: Path) -> None:
    command = cross.command("gcc", "x86_64")
    sizes = {"SIDE": 26, "CI": 12, "CO": 24, "KERNEL": 3, "POOL": 2, "DEPTHWISE": 1, "BFLOAT16": 1}
    constants = [f"-D{size}={value}" for size, value in {**sizes, "MATRIX_UNIT": unit}.items()]
    source = Path(compiler.__file__).with_name("separable.c")
    flags = cross.flags(command, "x86_64", "cooperlake")
    subprocess.run([*command, *flags, *constants, "-S", source, "-o", tmp_path / "made.s"], check=True)
    made = (tmp_path / "made.s").read_text()
    assert ("tdpbf16ps" in made) == bool(unit)
    assert ("vdpbf16ps" in made) == (not unit)


@pytest.fixture(params=["vectors", "tiles", *EMULATED])
def in_bfloat16(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, emulated_cache: Path
) -> Iterator[None]:
    tiles = "tiles" in request.param
    if "emulated" in request.param:
        emulate(monkeypatch, emulated_cache)
    elif not (compiler.matrix_unit() if tiles else compiler.bfloat16()):
        pytest.skip("of a processor that computes in bfloat16, or multiplies it in tiles")
    monkeypatch.setattr(compiler, "matrix_unit", lambda: tiles)
    compiler.library.cache_clear()
    yield
    compiler.library.cache_clear()


def far(ours: Tensor, theirs: Tensor) -> float:
    """How far a tensor is from another, as a fraction of the other's length."""
    return float((ours.double() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(("threads", "padding", "outputs"), [(1, 0, 20), (2, 1, 13)])
@pytest.mark.usefixtures("in_bfloat16")
def test_in_bfloat16_a_chain_is_as_exact_as_pytorchs_layers(threads: int, padding: int, outputs: int) -> None:
    torch.set_num_threads(threads)
    model = network(padding, outputs)
    for norm in (layer for layer in model if isinstance(layer, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2)  # with some near zero nothing would be exact
    exact, autocast = copy.deepcopy(model).double(), copy.deepcopy(model)
    forward, chain = fused(model, torch.bfloat16)
    assert chain.dtype == torch.bfloat16
    for count in (7, 33, 5):
        x, labels = torch.randn(count, *IMAGE), torch.randint(10, (count,))
        assert chain.usable(x)
        logits, ours = step(forward, model, x, labels)
        wanted, theirs = step(exact, exact, x.double(), labels)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, gradients = step(autocast, autocast, x, labels)
        assert far(logits, wanted) <= far(rounded, wanted)
        distances = [sum(map(far, found, theirs)) for found in (ours, gradients)]
        assert distances[0] < 1.5 * distances[1]
    for ours_, theirs_ in zip(model.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours_.double(), theirs_.double(), rtol=1e-2, atol=1e-3)


@pytest.mark.skipif(not compiler.bfloat16(), reason="of a processor that computes in bfloat16")
def test_in_bfloat16_a_chain_gets_the_images_and_brings_float32() -> None:
    forward, chain = fused(network(), torch.bfloat16)
    maps: list[Tensor] = []
    chain.register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        forward(torch.randn(7, *IMAGE))
    assert maps[0].dtype == torch.float32
    # Farther on a chain would be asked for the gradient of its input.
    later = fuse(nn.Sequential(nn.Conv2d(1, 1, 1), *network()), IMAGE, torch.bfloat16).model
    assert later is not None
    assert not any(isinstance(module, Chain) for module in later.modules())
