"""Receptive fields against input gradients, for the networks of the tests and for random ones."""

import io
from typing import Any

import gradients
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from small_networks import NETWORKS, Parallel, Residual
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bantam import budget, models
from bantam.training import terminal

IMAGE = (1, 28, 28)


class Lambda(nn.Module):
    """A function as a module, which is no layer that the table knows by its class."""

    def __init__(self, function: Any, *children: nn.Module) -> None:
        super().__init__()
        self.function, self.children_ = function, nn.ModuleList(children)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.children_)  # type: ignore[no-any-return]


def last(network: nn.Module, image: tuple[int, int, int] = IMAGE) -> Any:
    """The receptive field of the last row; ReLU makes a row where all else only moves pixels."""
    return budget.layers(nn.Sequential(network, nn.ReLU()), image)[-1].receptive_field


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(NETWORKS) + 6))
def test_the_networks_of_the_tests_layer_by_layer(number: int) -> None:
    others = [
        models.Skeleton,
        lambda: models.Flexible(early_separable=True, late_separable=True, head=6),
        lambda: models.Flexible(10, 10, 15, 10, 10, 10, 10, linear=False, dilation=2),
        lambda: nn.Sequential(nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, (1, 5), dilation=2)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10)),
    ]
    network = [*NETWORKS, *others][number]()
    layers = list(network)
    ends = [
        at for at, layer in enumerate(layers, 1) if isinstance(layer, nn.Conv2d | nn.Linear) or at == len(layers)
    ]
    ends += [at for at, layer in enumerate(layers, 1) if "Pool" in type(layer).__name__]
    for end in sorted(set(ends)):
        part = nn.Sequential(*layers[:end])
        assert last(part) == gradients.field(part, IMAGE), layers[end - 1]


@pytest.mark.slow
@pytest.mark.parametrize("inplace", [True, False])
def test_the_networks_with_branches(inplace: bool) -> None:
    network = Residual(inplace)
    network.pool = nn.Identity()
    assert last(network) == gradients.field(network, IMAGE, 9000) == 7
    parallel = Parallel()
    parallel.last = nn.Conv2d(10, 10, 5)
    assert last(parallel) == gradients.field(parallel, IMAGE, 6000) == 7


class Net(nn.Module):
    """As in a course's notebook: functions between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6 * 5 * 5, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.log_softmax(self.fc(torch.flatten(x, 1)), dim=1)


def test_functions_between_layers() -> None:
    rows = budget.layers(Net())
    assert [(row.name, row.shape, row.receptive_field) for row in rows] == [
        ("conv 3×3 → ReLU", (4, 26, 26), 3),
        ("max-pool 2", (4, 13, 13), 4),
        ("conv 3×3 → ReLU", (6, 11, 11), 8),
        ("max-pool 2", (150,), 10),
        ("linear → log_softmax", (10,), 26),  # the pools cut the last two rows and columns off
    ]
    assert gradients.field(Net(), IMAGE) == 26


def test_one_cell_of_an_adaptive_pool_sees_its_window_only() -> None:
    tiny = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)
    )
    rows = budget.layers(tiny)
    assert [row.receptive_field for row in rows] == [5, 9, 27]
    assert rows[1].name == "average-pool to 4×4"


def squeeze_and_excite(x: Tensor, down: nn.Module, up: nn.Module) -> Tensor:
    return x * torch.sigmoid(up(F.relu(down(x.sigmoid().square().mean((2, 3), keepdim=True)))))


def attend(x: Tensor, *_: nn.Module) -> Tensor:
    flat = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(flat, flat, flat).transpose(1, 2).view_as(x)


def mix_rows(x: Tensor, *_: nn.Module) -> Tensor:
    weight = torch.ones(x.shape[-1], 3, dtype=x.dtype)
    return torch.einsum("bchw,wk->bchk", x, weight)


def written_in_place(x: Tensor, *_: nn.Module) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :, 1:] = x[:, :, :-1]
    out[:, :1].add_(x[:, :1])
    return out


FUNCTIONS: dict[str, Any] = {
    "relu": lambda x: F.relu(x),
    "gelu": lambda x: F.gelu(x),
    "max_pool": lambda x: F.max_pool2d(x, 2, stride=1),
    "max_pool_padded": lambda x: F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True),
    "average_pool": lambda x: F.avg_pool2d(x, (2, 1), padding=(1, 0)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_max": lambda x: F.adaptive_max_pool2d(x, 2),
    "roll": lambda x: x.roll(1, 2),
    "flip": lambda x: torch.cat([x, x.flip(3)], 1),
    "crop": lambda x: x[:, :, 1:, ::2],
    "pad": lambda x: F.pad(x, (2, 0, 1, 1)),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "larger": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(9, 5), mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "rows": lambda x: x + x.logsumexp(3, keepdim=True),
    "norm": lambda x: x / (1 + x.norm(dim=1, keepdim=True)),
    "columns": lambda x: x + x.mean(2, keepdim=True),
    "attention": attend,
    "einsum": mix_rows,
    "in_place": written_in_place,
    "unfold": lambda x: F.unfold(x, (2, 1), padding=(1, 0)).unflatten(2, (x.shape[2] + 1, x.shape[3])),
}


@st.composite
def blocks(draw: Any, inputs: int, depth: int = 0) -> tuple[nn.Module, int]:
    """A layer, a branch beside its input, or branches side by side, and how many channels come out."""
    kinds = ["conv", "conv", "conv", "transposed", "function", "function", "norm"]
    kind = draw(st.sampled_from(kinds + ["residual", "parallel", "excite"] * (depth < 2)))
    if kind in ("conv", "transposed"):
        outputs, groups = draw(st.sampled_from([2, 4])), draw(st.sampled_from([1, 2]))
        geometry = {
            "kernel_size": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
            "stride": draw(st.sampled_from([1, 1, 2, (1, 2)])),
            "padding": draw(st.integers(0, 2)),
            "dilation": draw(st.sampled_from([1, 1, 2, (2, 1)])),
        }
        layer = nn.ConvTranspose2d if kind == "transposed" else nn.Conv2d
        return layer(inputs, outputs, groups=groups if inputs % 2 == 0 else 1, **geometry), outputs
    if kind == "function":
        name = draw(st.sampled_from(sorted(FUNCTIONS)))
        return Lambda(FUNCTIONS[name]), inputs * {"flip": 2, "unfold": 2}.get(name, 1)
    if kind == "norm":
        norms = [
            nn.BatchNorm2d(inputs),
            nn.GroupNorm(1, inputs),
            nn.InstanceNorm2d(inputs),
            nn.GroupNorm(inputs, inputs),
        ]
        return draw(st.sampled_from(norms)), inputs
    if kind == "excite":
        return Lambda(squeeze_and_excite, nn.Conv2d(inputs, 2, 1), nn.Conv2d(2, inputs, 1)), inputs
    kernel = draw(st.sampled_from([(3, 3), (1, 3), (3, 1), (5, 5)]))
    branch = nn.Conv2d(inputs, inputs, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
    if kind == "residual":
        return Lambda(lambda x, conv: x + F.relu(conv(x)), branch), inputs
    other = nn.Conv2d(inputs, 2, (1, 1))
    return Lambda(lambda x, one, two: torch.cat([one(x), two(x)], 1), branch, other), inputs + 2


@st.composite
def networks(draw: Any) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 1
    for _ in range(draw(st.integers(1, 5))):
        layer, channels = draw(blocks(channels))
        layers.append(layer)
    return nn.Sequential(*layers)


@pytest.mark.slow
@settings(max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.sampled_from([(1, 12, 11), (1, 9, 14)]))
def test_random_networks(network: nn.Module, image: tuple[int, int, int]) -> None:
    try:
        with torch.no_grad():
            output = network.eval()(torch.zeros(1, *image))
    except (RuntimeError, ValueError):  # a kernel that is larger than the map
        return
    if output.numel() > 2000:
        return
    try:
        expected = gradients.field(network, image, 2000)
    except NotImplementedError:
        return
    if expected:  # not of the padding alone
        assert last(network, image) == expected


@pytest.mark.parametrize(
    ("function", "field"),
    [
        (lambda x: F.glu(x, 1), 3),
        (F.logsigmoid, 3),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 4),
        (lambda x: F.interpolate(x, size=(14, 10), mode="bilinear", align_corners=True), (4, 3)),
        (lambda x: F.interpolate(x, size=7, mode="bilinear", antialias=True), 10),
        (lambda x: F.interpolate(x, size=14, mode="bicubic"), 6),
        (lambda x: F.interpolate(x.flatten(2), size=784, mode="linear"), 3),
        (lambda x: F.interpolate(x, size=13, mode="nearest-exact"), 3),
        (lambda x: x.cumprod(2)[:, :, :5], (6, 3)),
        (lambda x: x.flatten(2).tril(), (2, 3)),  # of the first row, above which there is nothing
        (lambda x: x.rot90(1, (2, 3)), 3),
        (lambda x: torch.cdist(x.flatten(2).transpose(1, 2), torch.ones(1, 5, 8)), 3),
        (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127), 3),
    ],
)
def test_functions_on_a_map_of_what_sees_three_pixels(function: Any, field: Any) -> None:
    network = Lambda(lambda x, conv: function(conv(x)), nn.Conv2d(1, 8, 3, padding=1))
    assert last(network) == field
    if function is not F.logsigmoid:  # of large values, which positive weights lead to, it has no gradient
        assert gradients.field(network, IMAGE) == field


def test_what_cannot_be_known_is_not_guessed() -> None:
    def sampled(x: Tensor, *_: nn.Module) -> Tensor:
        grid = F.affine_grid(torch.eye(2, 3)[None], [1, 1, 8, 8], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    rows = budget.layers(nn.Sequential(nn.Conv2d(1, 2, 3), Lambda(sampled), nn.Conv2d(2, 2, 3)))
    assert [row.receptive_field for row in rows] == [None, None]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal.layer_table(rows))
    assert "empty field: it cannot be known" in console.export_text()
    assert [row.receptive_field for row in budget.layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))] == [3]


def test_what_is_written_over_a_weight_is_not_guessed() -> None:
    class Scratch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("memory", torch.zeros(1, 1, 28, 28))

        def forward(self, x: Tensor) -> Tensor:
            self.memory[:, :, :-1] = x[:, :, 1:]
            return self.memory + x

    assert last(Scratch()) is None


def test_a_network_of_weights_only_sees_nothing() -> None:
    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.zeros(1, 1, 28, 28))

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.place)

    (row,) = budget.layers(Position())
    assert (row.receptive_field, row.parameters) == (1, 784)


def test_a_recurrent_network_sees_what_came_before() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(28, 6, batch_first=True), nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lstm(x[:, 0])[0][:, 20])

    rows = budget.layers(Rows())
    assert [(row.name, row.receptive_field) for row in rows] == [("LSTM", 28), ("linear", (21, 28))]
    assert rows[0].multiply_adds == 28 * (28 + 6) * 4 * 6
    assert sum(row.parameters for row in rows) == budget.count(Rows())


class Attention(nn.Module):
    """Patches of 7×7 pixels, attention among them, a product by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 7, stride=7)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix = nn.Parameter(torch.ones(16, 4))
        self.out, self.spare = nn.Linear(32, 10), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.out(torch.einsum("bpc,pk->bkc", x, self.mix).flatten(1))


def test_attention_and_einsum_are_counted_and_seen() -> None:
    rows = budget.layers(Attention())
    assert [(row.name, row.receptive_field) for row in rows[:-1]] == [
        ("conv 7×7", 7),
        ("multi_head_attention_forward → add", 28),
        ("einsum", 28),
        ("linear", 28),
    ]
    assert (rows[-1].name, rows[-1].parameters) == ("not used", 12)
    assert sum(row.parameters for row in rows) == budget.count(Attention())
    # Attention: three projections, scores and sums of 16 patches, one projection.
    assert [row.multiply_adds for row in rows[:-1]] == [
        16 * 8 * 49,
        16 * 8 * 8 * 4 + 2 * 16 * 16 * 8,
        16 * 4 * 8,
        320,
    ]


@pytest.mark.parametrize("number", range(len(NETWORKS)))
def test_multiply_adds_are_half_of_what_pytorch_counts(number: int) -> None:
    network = [*NETWORKS][number]().eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(1, *IMAGE))
    assert 2 * sum(row.multiply_adds for row in budget.layers(network)) == counter.get_total_flops()


@settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(networks())
def test_multiply_adds_of_random_networks(network: nn.Module) -> None:
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            network.eval()(torch.zeros(1, 1, 12, 11))
    except (RuntimeError, ValueError):
        return
    rows = budget.layers(network, (1, 12, 11))
    assert 2 * sum(row.multiply_adds for row in rows) == counter.get_total_flops()
