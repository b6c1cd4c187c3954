import pytest
import torch
from torch import nn

from bantam import models
from bantam.kernels import compiler
from bantam.kernels.fuse import fuse

IMAGE = (1, 28, 28)


def test_the_fused_network_shares_everything() -> None:
    model = models.V2()
    fused = fuse(model, IMAGE)
    assert fused is not None
    assert {id(p) for p in fused.parameters()} == {id(p) for p in model.parameters()}
    assert {id(b) for b in fused.buffers()} == {id(b) for b in model.buffers()}


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.Conv2d(1, 4, 3, stride=2, bias=False),
        nn.Conv2d(1, 4, 3, dilation=2, bias=False),
        nn.Conv2d(1, 4, (3, 1), bias=False),
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(1, 2048, 3, bias=False),
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Conv2d(4, 8, 3, groups=4, bias=False),
    ],
)
def test_what_the_c_code_does_not_compute_stays_as_it_is(convolution: nn.Conv2d) -> None:
    channels = convolution.out_channels
    image = (convolution.in_channels, 28, 28)
    assert fuse(nn.Sequential(convolution, nn.ReLU(), nn.BatchNorm2d(channels)), image) is None
    assert fuse(models.Skeleton(), IMAGE) is None  # no batch norm
    odd = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(4, momentum=None))
    assert fuse(odd, IMAGE) is None


def test_bfloat16_needs_a_processor_that_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "bfloat16", lambda: False)
    with pytest.raises(compiler.Unavailable, match="does not compute in bfloat16: use precision=float32"):
        fuse(models.V2(), IMAGE, torch.bfloat16)
