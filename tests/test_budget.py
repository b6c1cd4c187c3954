import pytest
import torch
from rich.console import Console
from torch import nn

from bantam import budget, models
from bantam.training.terminal import layer_table


def on_meta(network: type[nn.Module], **arguments: object) -> nn.Module:
    with torch.device("meta"):
        return network(**arguments)


def test_the_layer_table_of_v2() -> None:
    rows = budget.layers(on_meta(models.V2))
    assert [(row.shape, row.receptive_field, row.parameters, row.multiply_adds) for row in rows] == [
        ((16, 26, 26), 3, 176, 97_344),
        ((16, 24, 24), 5, 2336, 1_327_104),
        ((16, 12, 12), 6, 0, 0),
        ((16, 10, 10), 10, 2336, 230_400),
        ((16, 8, 8), 14, 2336, 147_456),
        ((16, 6, 6), 18, 2336, 82_944),
        ((16, 1, 1), 28, 0, 0),
        ((10,), 28, 160, 160),
    ]
    assert rows[0].name == "conv 3×3 → ReLU → norm → dropout"


def test_the_table_adds_up() -> None:
    for network in (models.Skeleton, models.V1, models.V2, models.Flexible):
        model = on_meta(network)
        assert sum(row.parameters for row in budget.layers(model)) == budget.count(model)


def test_shared_weights_count_once_and_work_twice() -> None:
    class Shared(nn.Sequential):
        def __init__(self) -> None:
            conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
            super().__init__(conv, conv)

    model = on_meta(Shared)
    rows = budget.layers(model)
    assert budget.count(model) == 9
    assert [row.parameters for row in rows] == [9, 0]
    assert [row.multiply_adds for row in rows] == [9 * 784, 9 * 784]


def test_the_layer_table_of_shared_and_dilated_blocks() -> None:
    rows = budget.layers(on_meta(models.Flexible, transition=0, late1=16, late2=16, late3=16, shared=True))
    assert [row.parameters for row in rows[3:6]] == [16 * 16 * 9 + 32, 32, 32]
    assert all(row.multiply_adds for row in rows[3:6])
    rows = budget.layers(on_meta(models.Flexible, dilation=2, head=16))
    assert [row.receptive_field for row in rows] == [3, 5, 6, 6, 14, 22, 30, 40, 40, 40]
    assert rows[-2].name == "conv 1×1 → norm → ReLU"


def test_dilation_and_global_pooling_in_the_receptive_field() -> None:
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3, dilation=2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    assert [row.receptive_field for row in budget.layers(model)] == [5, 6, 28]


def test_a_network_that_images_do_not_fit_through_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit through"):
        budget.layers(nn.Sequential(*(nn.Conv2d(1, 1, 5, device="meta") for _ in range(8))))


def test_the_front_is_what_no_other_beats() -> None:
    costs = [(9, 99.5), (5, 99.0), (7, 99.0), (7, 99.3), (3, 98.0), (3, 97.0), (9, 99.5), (8, 99.2)]
    assert budget.front(costs) == [4, 1, 3, 0]
    assert budget.front([]) == []


def test_counting_takes_no_memory() -> None:
    assert budget.count(on_meta(models.V2, width=100_000)) > 10**11


def test_the_printed_table_has_a_total() -> None:
    console = Console(width=100, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(layer_table(budget.layers(on_meta(models.V1))))
        text = console.export_text()
    assert text.splitlines()[-1].split() == ["total", "9,780", "1,885,508"]
