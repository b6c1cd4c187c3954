import pytest
import torch
from torch import Tensor, nn

from bantam.models import V2
from bantam.optimizers import Muon, orthogonal


@pytest.mark.parametrize("shape", [(16, 144), (20, 126), (24, 8), (10, 10)])
def test_a_step_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    rows, columns = shape
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape) * 1e-3))
    values /= max(1, rows / columns) ** 0.5
    assert values.max() < 1.25
    assert values.median() > 0.65


def test_it_keeps_the_directions() -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(6, 30), full_matrices=False)
    found = orthogonal(u @ torch.diag(torch.linspace(1, 2, 6)) @ v)
    cosine = (found * (u @ v)).sum() / found.norm() / (u @ v).norm()
    assert cosine > 0.97


def test_kernels_step_as_matrices_and_vectors_as_in_sgd() -> None:
    torch.manual_seed(0)
    network = V2(width=4)
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimizer = Muon(network.parameters(), lr=0.1, vector_lr=0.5, momentum=0.8, weight_decay=0.2)
    sgd = torch.optim.SGD(
        [p for p in V2(width=4).parameters() if p.ndim == 1], lr=0.5, momentum=0.8, nesterov=True
    )
    mirrored: list[Tensor] = sgd.param_groups[0]["params"]
    vectors = [p for p in network.parameters() if p.ndim == 1]
    with torch.no_grad():
        for p, q in zip(vectors, mirrored, strict=True):
            q.copy_(p)
    for step in range(3):
        for p in network.parameters():
            p.grad = torch.randn_like(p)
        for p, q in zip(vectors, mirrored, strict=True):
            q.grad = p.grad
        optimizer.step()
        sgd.step()
        if step == 0:
            kernel = dict(network.named_parameters())["4.weight"]
            moved = (before["4.weight"] * (1 - 0.1 * 0.2) - kernel).detach().flatten(1) / 0.1
            assert torch.linalg.svdvals(moved).max() < 1.25
    for p, q in zip(vectors, mirrored, strict=True):
        torch.testing.assert_close(p, q)


def test_a_schedule_moves_both_rates_and_the_first_is_the_one_of_kernels() -> None:
    optimizer = Muon(nn.Linear(3, 2).parameters(), lr=0.02, vector_lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.05]
