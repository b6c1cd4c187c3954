import pytest
import torch
from torch import nn

from bantam import models
from bantam.budget import count


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (models.Skeleton(), 8892),
        (models.V1(), 9780),
        (models.V2(), 9680),
        (models.Flexible(), 9620),
        (models.Flexible(late1=12, late2=16, late3=20, head=16), 7496),
        (models.Flexible(early2=10, transition=6, late1=8, late2=10, late3=14), 3516),
        (models.Flexible(early2=14, transition=0, late1=14, late2=14, late3=14, shared=True), 3112),
        (
            models.Flexible(transition=0, late1=16, late2=0, late3=0, late_separable=True),
            1864,
        ),
        (
            models.Flexible(early2=4, transition=0, late1=0, late2=0, late3=0, early_separable=True),
            72 + 16 + (72 + 32) + 8 + 40,
        ),
        (models.V2(width=17), 10897),
    ],
)
def test_networks_have_exactly_the_parameters_of_the_study(model: nn.Module, parameters: int) -> None:
    assert count(model) == parameters
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("network", "least"), [(models.Skeleton, 4), (models.V1, 18), (models.V2, 18), (models.Flexible, None)]
)
def test_networks_take_images_of_any_channels_side_and_classes(
    network: type[nn.Module], least: int | None
) -> None:
    sides = {"side": 32} if least else {}
    model = network(channels=3, classes=26, **sides)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 26)
    first = next(iter(model.parameters()))
    assert first.shape[1] == 3
    for side in range(least, 48) if least else ():
        assert network(side=side)(torch.zeros(2, 1, side, side)).shape == (2, 10)
    if least:
        with pytest.raises(ValueError, match=f"side is {least - 1}, but this network .* at least {least}×{least}"):
            network(side=least - 1)


@pytest.mark.parametrize("network", [models.Skeleton, models.V1, models.V2])
def test_width_changes_every_network(network: type[nn.Module]) -> None:
    assert count(network(width=4)) < count(network(width=8)) < count(network())


def test_a_block_of_no_channels_is_left_out() -> None:
    layers = list(models.Flexible(early2=0, transition=0, late2=0, late3=0))
    assert [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)] == [8, 14]


def test_late_convolutions_of_the_same_shape_are_shared_and_their_norms_are_not() -> None:
    layers = list(models.Flexible(late1=8, late2=20, late3=20, late4=20, shared=True))
    first, second, *rest = [layer for layer in layers if isinstance(layer, nn.Conv2d)][3:]
    assert first is not second
    assert rest[0] is rest[1] is not second
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    assert len(set(norms)) == len(norms) == 7


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_dilated_convolution_shrinks_maps_as_any_other(dilation: int) -> None:
    network = models.Flexible(early3=4, dilation=dilation)
    x, sides = torch.zeros(2, 1, 28, 28), []
    for layer in network:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            sides.append(x.shape[-1])
    assert sides == [26, 24, 22, 11, 11, 9, 7, 5]


def test_without_a_linear_layer_the_last_channels_are_the_logits() -> None:
    network = models.Flexible(late3=10, linear=False)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(ValueError, match="linear is false and the last block has 24 channels: give it 10"):
        models.Flexible(linear=False)
    with pytest.raises(ValueError, match="are all 0: a network needs a block"):
        models.Flexible(*[0] * 9)


def test_the_skeletons_logits_are_never_negative() -> None:
    torch.manual_seed(0)
    assert (models.Skeleton()(torch.randn(16, 1, 28, 28)) >= 0).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_dropout_has_the_distribution_of_torchs_own(p: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 16, 12, 12).contiguous(memory_format=layout)
    y = models.Dropout(p)(x)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 1 / (1 - p)]))
    dropped = (y == 0).double()
    deviation = (p * (1 - p)) ** 0.5
    # The share of dropped elements, in all and at every place of the map, within five standard errors.
    assert abs(dropped.mean() - p) < 5 * deviation / dropped.numel() ** 0.5
    assert ((dropped.mean(dim=(0, 1)) - p).abs() < 5 * deviation / (64 * 16) ** 0.5).all()
    # Neighbours in memory are independent: both are dropped with probability p².
    flat = dropped.as_strided((dropped.numel(),), (1,)) if layout == torch.contiguous_format else dropped.flatten()
    for lag in (1, 2, 16):
        both = (flat[:-lag] * flat[lag:]).mean()
        assert abs(both - p**2) < 5 * (p**2 * (1 - p**2) / flat.numel()) ** 0.5 + 1e-3


def test_dropout_gives_the_gradient_of_its_own_mask() -> None:
    x = torch.randn(8, 4, 5, 5, requires_grad=True)
    y = models.Dropout(0.3)(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, 1 / 0.7))


def test_dropout_draws_every_element_however_few_were_expected() -> None:
    dropout = models.Dropout(0.01)
    torch.manual_seed(0)
    for count_ in (1, 7, 100, 10_000):
        positions = torch.cat([dropout.dropped(count_) for _ in range(50)])
        assert (positions < count_).all()
        assert (positions >= 0).all()
    assert abs(sum(len(dropout.dropped(10_000)) for _ in range(100)) / 100 - 100) < 5


@pytest.mark.parametrize("p", [0.0, 0.05])
def test_dropout_leaves_evaluation_alone(p: float) -> None:
    x = torch.randn(2, 3, 4, 4)
    assert models.Dropout(p).eval()(x) is x
