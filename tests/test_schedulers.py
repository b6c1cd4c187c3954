import math

import pytest
import torch
from torch import nn

from bantam.schedulers import LossDip, OneCycle


def optimizer(lr: float = 0.1, momentum: float = 0.0) -> torch.optim.SGD:
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr, momentum=momentum)


def test_one_cycle_rises_linearly_falls_as_a_cosine_and_stays_at_its_floor() -> None:
    sgd = optimizer(0.1)
    schedule = OneCycle(sgd, epochs=10, warmup=0.2, end=0.8, initial=0.5, floor=0.01)

    def rate(epoch: float) -> float:
        schedule.step(epoch)
        return float(sgd.param_groups[0]["lr"])

    assert rate(0) == pytest.approx(0.05)
    assert rate(1) == pytest.approx(0.075)
    assert rate(2) == pytest.approx(0.1)
    assert rate(5) == pytest.approx(0.1 * (0.01 + 0.99 * (1 + math.cos(math.pi / 2)) / 2))
    assert rate(8) == pytest.approx(0.001)
    assert rate(9.9) == pytest.approx(0.001)


def test_one_cycle_starts_at_its_initial_rate() -> None:
    sgd = optimizer(0.1)
    OneCycle(sgd, epochs=10, initial=0.04)
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.004)


def test_one_cycle_refuses_a_warm_up_after_its_end() -> None:
    with pytest.raises(ValueError, match="warmup is 0.9 and end is 0.5"):
        OneCycle(optimizer(), epochs=10, warmup=0.9, end=0.5)


def test_one_cycle_resumes() -> None:
    schedule = OneCycle(optimizer(0.1), epochs=10)
    other = OneCycle(optimizer(0.7), epochs=10)
    other.load_state_dict(schedule.state_dict())
    other.step(2.0)
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def rates(losses: list[float]) -> list[float]:
    sgd = optimizer(1.0)
    schedule = LossDip(sgd, factor=0.9)
    result = []
    for loss in losses:
        schedule.step(loss)
        result.append(float(sgd.param_groups[0]["lr"]))
    return result


def test_loss_dip_follows_the_studys_rule() -> None:
    # Dips from epoch 2 on: 0.5, 0.1 (not before epoch 4), 0.2 (larger), 0.05 (smaller).
    losses = [1.0, 0.5, 0.45, 0.36, 0.342]
    assert rates(losses) == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.9])


def test_loss_dip_takes_the_sign_of_a_negative_dip_as_the_study_does() -> None:
    # A rising loss has a negative dip; after it, a larger dip makes the relative change negative.
    assert rates([1.0, 1.0, 1.1, 0.9]) == pytest.approx([1.0, 1.0, 1.0, 0.9])


def test_loss_dip_survives_a_loss_that_does_not_move() -> None:
    assert rates([2.3026] * 8) == [1.0] * 8
    assert rates([1.0, 0.5, 0.0, 0.0, 0.0]) == [1.0] * 5


def test_loss_dip_drops_the_momentum_as_a_rebuilt_optimizer_would() -> None:
    sgd = optimizer(1.0, momentum=0.9)
    for parameter in sgd.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    sgd.step()
    assert sgd.state
    schedule = LossDip(sgd, factor=0.9)
    for loss in (1.0, 0.5, 0.25, 0.24):
        schedule.step(loss)
    assert not sgd.state


def test_loss_dip_resumes() -> None:
    schedule = LossDip(optimizer())
    for loss in (1.0, 0.5, 0.25):
        schedule.step(loss)
    other = LossDip(optimizer(1.0))
    other.load_state_dict(schedule.state_dict())
    other.step(0.24)
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(0.9)
