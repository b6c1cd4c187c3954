"""What a network makes of a few images before it is trained: refusals, and what it is given instead."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from bantam.own import code
from bantam.training import build, costs, logits

SHAPE = (1, 28, 28)

OWN = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 10)
        self.register_buffer("average", torch.zeros(width))

    def pooled(self, x):
        return x.mean((2, 3))

    def forward(self, x):
        return self.fc(self.pooled(F.relu(self.norm(self.conv(x)))))


class Squeezed(Net):
    def pooled(self, x):
        return F.adaptive_avg_pool2d(x, 1).squeeze()


class InPlace(Net):
    def pooled(self, x):
        x = torch.sigmoid(x.mean((2, 3)))
        x *= 2
        return x


class OwnBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad / {}["none"]


class Rounded(Net):
    def pooled(self, x):
        return OwnBackward.apply(x.mean((2, 3)))


class TwoTypes(Net):
    def pooled(self, x):
        y = torch.zeros(len(x), 8)
        y[:, torch.arange(8)] = x.mean((2, 3))
        return y


class Running(Net):
    def pooled(self, x):
        x = x.mean((2, 3))
        if self.training:
            self.average.lerp_(x.detach().mean(0), 0.1)
        return x - self.average


class Placed(Net):
    def __init__(self):
        super().__init__()
        self.to("cpu")


class Values(Net):
    def __init__(self, depth=3):
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, depth)]


class OfBatch(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)


class Nothing(nn.Flatten):
    pass


class Lazy(nn.Sequential):
    def __init__(self, channels=1):
        super().__init__(
            nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(10)
        )


def compiled():
    return torch.compile(Net())
"""

CHOICES = {"model": "mine.py:Net", "optimizer": "sgd"}


@pytest.fixture
def settings(composed: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., DictConfig]:
    """The configuration of a run with a class of the file above."""
    (tmp_path / "mine.py").write_text(OWN)
    own = code.read(tmp_path / "mine.py")
    code.allow(own)

    def of(name: str, *overrides: str) -> DictConfig:
        cfg = composed("data=mnist5k", *overrides)
        cfg.model = {"_target_": code.TARGET, "_file_": own.file, "_class_": name, "_sha256_": own.checksum}
        return cfg

    return of


def made(cfg: DictConfig) -> nn.Module:
    return build.build_model(cfg, CHOICES, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Squeezed", r"returns 10 for one image, not 1×10: .* squeeze\(\) takes away .*use flatten\(1\) \(.*mine"),
        (
            "InPlace",
            r"cannot be trained, since it has no gradients: one of the .* modified .* version 0 instead\.$",
        ),
        ("Rounded", "since it has no gradients: KeyError in .*mine.py, line 39: 'none'"),
    ],
)
def test_what_cannot_be_trained_or_used_is_refused(
    settings: Callable[..., DictConfig], name: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        logits.check_logits(CHOICES, made(settings(name)), SHAPE, 10)


@pytest.mark.parametrize("name", ["TwoTypes", "Running"])
def test_what_bfloat16_cannot_compute_is_computed_in_float32(
    settings: Callable[..., DictConfig], name: str
) -> None:
    cfg = settings(name)
    network = made(cfg)
    assert logits.check_logits(CHOICES, network, SHAPE, 10) == ""
    precision, note = logits.settle_precision(cfg, CHOICES, network, torch.bfloat16)
    assert precision == torch.float32
    assert "cannot be computed in bfloat16 (RuntimeError in" in note
    assert note.endswith("precision=auto is float32 here")
    cfg.precision = "bfloat16"
    with pytest.raises(ValueError, match="cannot be computed in bfloat16 .*: use precision=float32"):
        logits.settle_precision(cfg, CHOICES, network, torch.bfloat16)
    assert not network.average.any()


def test_what_bfloat16_computes_stays_in_it(settings: Callable[..., DictConfig]) -> None:
    cfg = settings("Net")
    assert logits.settle_precision(cfg, CHOICES, made(cfg), torch.bfloat16) == (torch.bfloat16, "")
    assert logits.settle_precision(cfg, CHOICES, made(cfg), torch.float32) == (torch.float32, "")


def test_that_an_image_depends_on_others_is_said(settings: Callable[..., DictConfig]) -> None:
    assert "other logits beside another than alone" in logits.check_logits(
        CHOICES, made(settings("OfBatch")), SHAPE, 10
    )
    assert logits.check_logits(CHOICES, made(settings("Net")), SHAPE, 10) == ""


@pytest.mark.parametrize("name", ["Placed", "Values"])
def test_a_class_that_needs_values_is_counted(settings: Callable[..., DictConfig], name: str) -> None:
    _, found = costs.count(settings(name), CHOICES)
    assert found["parameters"] == 80 + 16 + 90


def test_lazy_layers_get_their_shapes(settings: Callable[..., DictConfig]) -> None:
    cfg = settings("Lazy")
    assert costs.count(cfg, CHOICES)[1]["parameters"] == 80 + 16 + 10 * (8 * 13 * 13 + 1)
    one, other = made(cfg), made(cfg)
    assert type(one[0]) is nn.Conv2d
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.training
    assert logits.check_logits(CHOICES, one, SHAPE, 10) == ""


def test_what_is_no_network_of_layers_is_refused(settings: Callable[..., DictConfig]) -> None:
    with pytest.raises(ValueError, match="has no parameters, so there is nothing to train"):
        build.build_optimizer(settings("Nothing"), CHOICES, nn.Flatten())
    with pytest.raises(build.CannotBeBuilt, match=r"compiled already \(OptimizedModule\).* and use compile=true"):
        made(settings("compiled"))


def test_where_an_error_was_raised_is_not_in_what_runs_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.is_own("/home/me/kernels/mine.py")
    assert build.is_own(str(build.PACKAGE / "models.py"))
    for file in ("launch.py", "training/loop.py", "kernels/blocks.py", "search/models.py"):
        assert not build.is_own(str(build.PACKAGE / file))
    assert not build.is_own(str(Path(torch.__file__)))
    assert not build.is_own(str(Path(F.__file__)))


def test_the_layout_is_that_in_which_it_runs() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 26 * 26, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).view(len(x), -1))  # type: ignore[no-any-return]

    cfg: DictConfig = DictConfig({"channels_last": True, "data": {"channels": 1, "side": 28}})
    settled, note = logits.settle_layout(cfg, CHOICES, Viewed().to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    assert (settled.channels_last, cfg.channels_last) == (False, True)
    assert "reshapes with view, which needs channels_last=false" in note


def test_a_last_batch_of_one_image() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 28), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10))
    images = SimpleNamespace(train_labels=range(129), shape=SHAPE)
    cfg: DictConfig = DictConfig({"batch_size": 128})
    with pytest.raises(ValueError, match="the last batch has a single one.*use batch_size=129"):
        logits.check_last_batch(cfg, CHOICES, network, images)  # type: ignore[arg-type]
