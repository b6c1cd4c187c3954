from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from rich.console import Console
from small_networks import Parallel, Residual
from torch import nn

from bantam import budget, config, models
from bantam.training import terminal
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
    assert [row.receptive_field for row in rows] == [3, 5, 6, 6, 14, 22, 26, 28, 28, 28]
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


def test_the_printed_table_has_a_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.console, "width", 100)
    console = Console(width=100, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(layer_table(budget.layers(on_meta(models.V1))))
        text = console.export_text()
    assert text.splitlines()[-1].split() == ["total", "9,780", "1,885,508", "80,128"]


FLOAT = 4
"""Bytes of a number."""

IMAGE = 28 * 28 * FLOAT


def kept(network: nn.Module) -> list[int | None]:
    return [row.activations for row in budget.layers(network)]


@pytest.mark.parametrize("inplace", [True, False])
def test_a_plain_chain_keeps_the_input_and_the_output_of_a_layer(inplace: bool) -> None:
    chain = nn.Sequential(
        nn.Conv2d(1, 4, 3),  # 4×26×26
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=inplace),
        nn.MaxPool2d(2),  # 4×13×13
        nn.Conv2d(4, 8, 3),  # 8×11×11
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    sizes = [IMAGE, 4 * 26 * 26 * FLOAT, 4 * 13 * 13 * FLOAT, 8 * 11 * 11 * FLOAT, 8 * FLOAT, 10 * FLOAT]
    rows = budget.layers(chain)
    assert [row.activations for row in rows] == [before + after for before, after in pairwise(sizes)]
    assert budget.costs(chain, rows)["activations"] == IMAGE + 4 * 26 * 26 * FLOAT


@pytest.mark.parametrize("inplace", [True, False])
def test_a_residual_block_keeps_its_input_until_it_is_added(inplace: bool) -> None:
    four, eight = (count * 28 * 28 * FLOAT for count in (4, 8))
    # The sum is written over what the block has made; nobody else reads that.
    assert kept(Residual(inplace)) == [IMAGE + four, four + eight, four + eight + four, four + 4 * FLOAT]


def test_parallel_branches_are_kept_until_they_are_joined() -> None:
    assert kept(Parallel()) == [
        (1 + 2) * IMAGE,
        (1 + 2 + 3) * IMAGE,
        2 * (2 + 3 + 5) * IMAGE,  # when they are joined: the branches, and all of them side by side
        10 * IMAGE + 10 * FLOAT,
    ]


def test_activations_are_the_same_without_values() -> None:
    with torch.device("meta"):
        networks = [Residual(True), Parallel(), models.V2(), models.Flexible(shared=True)]
    with torch.device("cpu"):
        others = [Residual(True), Parallel(), models.V2(), models.Flexible(shared=True)]
    assert [kept(network) for network in networks] == [kept(network) for network in others]


class Function(torch.autograd.Function):
    """An operation that PyTorch's functions do not show."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


def test_what_an_operation_of_ones_own_makes_is_kept_too() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([Function.apply(self.conv(x)), x], 1).mean((2, 3))

    assert kept(Own()) == [(4 + 1 + 5) * IMAGE, 5 * IMAGE + 5 * FLOAT]


def test_each_cost_has_a_limit_in_the_budget() -> None:
    limits = {entry.name for entry in fields(config.Budget)}
    assert limits - {"epochs"} == set(budget.COSTS)
    assert set(budget.costs(models.V2(), budget.layers(models.V2()))) == set(budget.COSTS)


def test_a_limit_is_strict_and_null_is_none() -> None:
    costs = {"parameters": 10, "multiply_adds": 20, "bytes": 30, "activations": 40}
    limits = {"parameters": 10, "multiply_adds": None, "bytes": 31, "epochs": 1}
    assert budget.excess(costs, limits) == {"parameters": 1, "bytes": 0}
