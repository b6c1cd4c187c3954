import functools
import math

import pytest
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

from bantam.schedulers import LossDip, Milestones, OneCycle, TorchSchedule


def test_one_cycle_rises_linearly_falls_as_a_cosine_and_stays_at_its_floor() -> None:
    schedule = OneCycle(epochs=10, warmup=0.2, end=0.8, initial=0.5, floor=0.01)

    def rate(epoch: float) -> float:
        return schedule.rate(0.1, epoch, [])

    assert rate(0) == pytest.approx(0.05)
    assert rate(1) == pytest.approx(0.075)
    assert rate(2) == pytest.approx(0.1)
    assert rate(5) == pytest.approx(0.1 * (0.01 + 0.99 * (1 + math.cos(math.pi / 2)) / 2))
    assert rate(8) == pytest.approx(0.001)
    assert rate(9.9) == pytest.approx(0.001)


def test_one_cycle_starts_at_its_initial_rate() -> None:
    assert OneCycle(epochs=10, initial=0.04).rate(0.1, 0.0, []) == pytest.approx(0.004)


def test_one_cycle_refuses_a_warm_up_after_its_end() -> None:
    with pytest.raises(ValueError, match="warmup is 0.9 and end is 0.5"):
        OneCycle(epochs=10, warmup=0.9, end=0.5)


def test_milestones_are_fractions_of_trainings_of_any_length() -> None:
    short, long = (Milestones(epochs=epochs, milestones=[0.5, 0.75], gamma=0.1) for epochs in (5, 20))
    assert [short.rate(1.0, epoch, []) for epoch in (0.0, 2.4, 2.5, 3.7, 3.75, 5.0)] == pytest.approx(
        [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    )
    assert [short.rate(0.3, i / 4, []) for i in range(20)] == [long.rate(0.3, float(i), []) for i in range(20)]


def test_the_rate_follows_from_the_moment_alone_whatever_was_asked_before() -> None:
    for schedule in (
        OneCycle(epochs=10),
        Milestones(10, [0.5], 0.1),
        TorchSchedule(functools.partial(StepLR, step_size=3, gamma=0.1)),
    ):
        forward = [schedule.rate(0.1, epoch / 2, []) for epoch in range(20)]
        assert [schedule.rate(0.1, epoch / 2, []) for epoch in reversed(range(20))] == forward[::-1]


def test_a_schedule_of_torch_moves_at_the_end_of_an_epoch_and_for_every_rate_by_itself() -> None:
    schedule = TorchSchedule(functools.partial(StepLR, step_size=2, gamma=0.5))
    assert [schedule.rate(0.1, epoch, []) for epoch in (0.0, 1.9, 2.0, 3.5, 4.0)] == [0.1, 0.1, 0.05, 0.05, 0.025]
    assert [schedule.rate(8.0, epoch, []) for epoch in (4.0, 0.0)] == [2.0, 8.0]
    # eta_min is a rate, not a factor.
    cosine = TorchSchedule(functools.partial(CosineAnnealingLR, T_max=4, eta_min=0.01))
    assert [cosine.rate(lr, 4.0, []) for lr in (0.1, 0.5)] == [pytest.approx(0.01)] * 2
    with pytest.raises(TypeError, match="metrics"):
        TorchSchedule(ReduceLROnPlateau).rate(0.1, 1.0, [])


def rates(losses: list[float]) -> list[float]:
    return [LossDip(factor=0.9).rate(1.0, float(epochs), losses[:epochs]) for epochs in range(1, len(losses) + 1)]


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


def test_loss_dip_lowers_the_rate_again_and_drops_the_momentum_as_a_rebuilt_optimizer_would() -> None:
    assert rates([1.0, 0.5, 0.25, 0.24, 0.239]) == pytest.approx([1.0, 1.0, 1.0, 0.9, 0.81])
    assert LossDip.drops_momentum
    assert LossDip.follows_loss
