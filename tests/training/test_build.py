"""Errors in classes of one's own: which option has raised them, in which file and line."""

import copy
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import DictConfig
from single_runs import train

from bantam import models
from bantam.images import downloads
from bantam.training import build
from bantam.training.build import PartFailed
from bantam.training.run import run
from bantam.training.setup import RunInfo, prepare

OWN = """
import torch
from bantam.models import V2

def inner(self, x, forward=V2.forward):
    return forward(self, x)

def one_of_two(self, x):
    return inner(self, x)[:1]

def wide(self, x):
    return torch.cat([inner(self, x)] * 2, 1)

def pair(self, x):
    return inner(self, x), x

def one_image(self, x):
    return inner(self, x).view(1, 10)

def in_training(self, x):
    return inner(self, x).nonsense if self.training else inner(self, x)

def too_few(self, x):
    return inner(self, x)[:3]

class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / {}["none"]

def backward(self, x):
    return Own.apply(inner(self, x))

def step(self, closure=None):
    return 1 / 0
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of one's own."""
    (tmp_path / "own.py").write_text(OWN)
    spec = importlib.util.spec_from_file_location("own", tmp_path / "own.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def settings(composed: Callable[..., DictConfig], few: tuple[str, ...]) -> DictConfig:
    return composed(*few, "kernels=torch")


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        ("one_of_two", "model=v2 returns 1×10 for two images, not 2×10: a logit for each class"),
        ("wide", "model=v2 returns 2×20 for two images, not 2×10: a logit for each class"),
        ("pair", "model=v2 returns tuple for two images, not 2×10: a logit for each class"),
        ("one_image", "model=v2 cannot compute a batch of two images: RuntimeError in {}, line 18: shape "),
    ],
)
def test_a_network_that_returns_something_else_is_refused(
    settings: DictConfig, info: RunInfo, own: ModuleType, monkeypatch: pytest.MonkeyPatch, forward: str, said: str
) -> None:
    monkeypatch.setattr(models.V2, "forward", getattr(own, forward))
    with pytest.raises(ValueError, match="model=v2") as refused:
        prepare(settings, info)
    assert str(refused.value).startswith(said.format(own.__file__))


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        ("in_training", "model=v2 fails: AttributeError in {}, line 21: 'Tensor' object has no attribute "),
        ("backward", "model=v2 fails: KeyError in {}, line 33: 'none'"),
        ("too_few", "the training fails: Expected input batch_size (3) to match target batch_size (128)"),
    ],
)
def test_what_fails_in_the_training_is_named(
    settings: DictConfig, info: RunInfo, own: ModuleType, monkeypatch: pytest.MonkeyPatch, forward: str, said: str
) -> None:
    prepared = prepare(settings, info)
    monkeypatch.setattr(models.V2, "forward", getattr(own, forward))
    monkeypatch.setattr(models.V2, "__module__", "own")  # where the network would be written
    with pytest.raises(PartFailed) as failed:
        run(prepared)
    assert str(failed.value).startswith(said.format(own.__file__))


def test_an_optimizer_that_fails_is_named(
    settings: DictConfig, info: RunInfo, own: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.optim.SGD.step", own.step)
    with pytest.raises(PartFailed) as failed:
        train(settings, info)
    assert (
        str(failed.value) == f"optimizer=sgd fails: ZeroDivisionError in {own.__file__}, line 39: division by zero"
    )


def test_a_fault_in_reading_images_is_not_about_the_files(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "read_mnist5k", lambda: int("x"))
    with pytest.raises(
        build.CannotBeBuilt, match=r"data=mnist5k cannot be built: ValueError in .*, line \d+: invalid"
    ):
        build.build(composed("data=mnist5k"), "data", {"data": "mnist5k"})


@pytest.mark.whole
def test_an_optimizer_of_pytorchs_steps_without_its_compiler() -> None:
    code = """
import sys, torch
from bantam.training.build import _import_no_compiler
_import_no_compiler(torch.optim.SGD)
p = torch.zeros(2, requires_grad=True)
optimizer = torch.optim.SGD([p], lr=0.1)
p.grad = torch.ones(2)
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
assert torch.allclose(p, torch.tensor(-0.1))
assert p.requires_grad and p.is_leaf
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_changes_of_colour_are_refused_for_images_without_any(composed: Callable[..., DictConfig]) -> None:
    cfg = composed("augmentation.hue=0.1", "data=mnist5k")
    message = "augmentation.hue is 0.1, but images of 1 channel have no colour: set augmentation.hue=0"
    with pytest.raises(ValueError, match=message):
        build.build(cfg, "augmentation", {})
    assert build.build(composed("augmentation.hue=0.1", "data=cifar10"), "augmentation", {}).hue == 0.1


def test_sgd_computes_all_parameters_together_unless_it_is_told_otherwise(
    composed: Callable[..., DictConfig],
) -> None:
    model = torch.nn.Linear(3, 2)
    steps = []
    for override, wanted in (
        ("seed=1", True),
        ("+optimizer.foreach=false", False),
        ("+optimizer.fused=true", False),
    ):
        twin = copy.deepcopy(model)
        optimizer = build.build_optimizer(composed("optimizer.momentum=0.9", override), {}, twin)
        assert [group["foreach"] for group in optimizer.param_groups] == [wanted]
        for _ in range(3):
            twin(torch.ones(4, 3)).sum().backward()
            optimizer.step()
        steps.append([*twin.parameters()])
    assert all(map(torch.equal, steps[0], steps[1]))  # the same to the bit
