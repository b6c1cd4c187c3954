import dataclasses
import functools
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from bantam import data
from bantam.augmentation import Augmentation
from bantam.kernels.compiler import Unavailable
from bantam.kernels.direct import Direct
from bantam.kernels.fuse import fuse
from bantam.models import V2
from bantam.schedulers import OneCycle, Schedule, TorchSchedule
from bantam.training.average import Average
from bantam.training.loop import Diverged, Epoch, Training, measure, score, train

STUDY = Augmentation(0.1, 0.1, 7, interpolation="nearest")


def images(validation: int = 0) -> data.Data:
    whole = data.mnist5k(validation, 1, 0.1307, 0.3081)
    return dataclasses.replace(whole, train_images=whole.train_images[:512], train_labels=whole.train_labels[:512])


def start(
    *,
    seed: int = 1,
    epochs: int = 2,
    lr: float = 0.05,
    validation: int = 0,
    schedule: Schedule | None = None,
    precision: torch.dtype = torch.float32,
    decay: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[nn.Module, Iterator[Epoch]]:
    torch.manual_seed(seed)
    model = V2(width=4)
    average = Average(model, decay) if decay else None
    training = Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        schedule=schedule or TorchSchedule(functools.partial(StepLR, step_size=1, gamma=0.5)),
        augmentation=STUDY,
        data=images(validation),
        epochs=epochs,
        batch_size=100,
        seed=seed,
        precision=precision,
        training_model=model,
        scoring_model=average.model if average else model,
        rates=[lr],
        label_smoothing=label_smoothing,
        average=average,
    )
    return model, train(training)


def numbers(epoch: Epoch) -> dict[str, float]:
    """A record without its timings."""
    return {k: v for k, v in dataclasses.asdict(epoch).items() if k not in ("seconds", "images_per_second")}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_same_seed_gives_bitwise_identical_weights_and_records(precision: torch.dtype) -> None:
    results = []
    for _ in range(2):
        model, records = start(precision=precision)
        results.append(([numbers(record) for record in records], model.state_dict()))
    (first, weights), (second, again) = results
    assert first == second
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_two_seeds_differ() -> None:
    first, second = (numbers(next(start(seed=seed)[1])) for seed in (1, 2))
    assert first["train_loss"] != second["train_loss"]


def test_it_learns_and_the_schedule_steps() -> None:
    _, records = start(epochs=6)
    history = list(records)
    assert [record.epoch for record in history] == [1, 2, 3, 4, 5, 6]
    assert [record.lr for record in history] == [0.05 * 0.5**i for i in range(6)]
    assert history[-1].train_accuracy > 30
    assert history[-1].train_loss < history[0].train_loss


def test_one_cycle_moves_within_an_epoch() -> None:
    cycle = OneCycle(epochs=2)
    _, records = start(epochs=2, schedule=cycle)
    rates = [record.lr for record in records]
    # Six steps an epoch; the record holds the rate of the last one.
    assert rates == [cycle.rate(0.05, 5 / 6, []), cycle.rate(0.05, 1 + 5 / 6, [])]


class Listening(Schedule):
    """Keeps the losses that it is told, and changes the rate with the epoch."""

    drops_momentum = True

    def __init__(self, changes: bool) -> None:
        self.changes = changes
        self.seen: dict[float, list[float]] = {}

    def rate(self, lr: float, epoch: float, losses: Sequence[float]) -> float:
        self.seen[epoch] = list(losses)
        return lr / (1 + int(epoch)) if self.changes else lr


def test_a_schedule_sees_the_training_loss_of_every_epoch_that_has_ended() -> None:
    listening = Listening(changes=False)
    _, records = start(epochs=3, schedule=listening)
    losses = [record.train_loss for record in records]
    assert len(listening.seen) == 18  # six steps an epoch
    for epoch, seen in listening.seen.items():
        assert seen == losses[: int(epoch)]


def test_a_schedule_may_drop_the_momentum_where_the_rate_changes() -> None:
    def weights(schedule: Schedule) -> list[torch.Tensor]:
        model, records = start(epochs=2, schedule=schedule)
        list(records)
        return list(model.parameters())

    class Keeping(Listening):
        drops_momentum = False

    dropped, kept = weights(Listening(changes=True)), weights(Keeping(changes=True))
    assert not all(torch.equal(a, b) for a, b in zip(dropped, kept, strict=True))
    same, unchanged = weights(Listening(changes=False)), weights(Keeping(changes=False))
    assert all(torch.equal(a, b) for a, b in zip(same, unchanged, strict=True))


def test_an_epoch_is_a_generator_step() -> None:
    model, records = start()
    before = [p.clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))  # nothing yet
    next(records)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_held_out_validation_images_are_scored_instead_of_the_test_images() -> None:
    record = next(start(validation=500)[1])
    assert record.test_accuracy is None
    assert record.test_loss is None
    assert record.validation_accuracy == record.accuracy
    record = next(start()[1])
    assert record.validation_accuracy is None
    assert record.test_accuracy == record.accuracy


def test_a_loss_that_is_not_finite_stops_with_epoch_step_and_rate() -> None:
    _, records = start(lr=1e30)
    with pytest.raises(Diverged, match=r"in epoch 1, step [2-6], at a learning rate of 1e\+30") as caught:
        list(records)
    assert caught.value.epoch == 1
    assert caught.value.lr == 1e30


def test_a_last_batch_of_one_image_is_left_to_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = start()
    try:
        fused = fuse(model.to(memory_format=torch.channels_last), (1, 28, 28)).model
    except Unavailable as error:
        pytest.skip(str(error))
    assert fused is not None
    computed, batches = Direct.__call__, list[int]()

    def counted(step: Direct, x: torch.Tensor, labels: torch.Tensor, smoothing: float) -> tuple[float, int]:
        batches.append(len(x))
        return computed(step, x, labels, smoothing)

    monkeypatch.setattr(Direct, "__call__", counted)
    few = images()
    few = dataclasses.replace(few, train_images=few.train_images[:201], train_labels=few.train_labels[:201])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    (epoch,) = train(
        Training(
            model=model,
            optimizer=optimizer,
            schedule=TorchSchedule(functools.partial(StepLR, step_size=1, gamma=0.5)),
            augmentation=STUDY,
            data=few,
            epochs=1,
            batch_size=100,
            seed=1,
            precision=torch.float32,
            training_model=fused,
            scoring_model=fused,
            rates=[0.05],
        )
    )
    assert batches == [100, 100]
    assert epoch.train_loss < 3
    assert all(p.grad is not None for p in model.parameters())


def test_scoring_does_not_depend_on_dropout_or_batches() -> None:
    model, records = start()
    record = next(records)
    held_out = images()
    logits = score(model, held_out.held_out_images, held_out, torch.float32)
    one_by_one = torch.cat([score(model, x[None], held_out, torch.float32) for x in held_out.held_out_images[:20]])
    torch.testing.assert_close(logits[:20], one_by_one)
    assert measure(logits, held_out.held_out_labels) == (record.test_loss, record.test_accuracy)
    assert 0 <= record.accuracy <= 100


def test_label_smoothing_changes_the_weights_and_not_what_the_recorded_loss_means() -> None:
    model, records = start(epochs=1, label_smoothing=0.2)
    plain, plain_records = start(epochs=1)
    smoothed, unsmoothed = next(records), next(plain_records)
    assert not torch.equal(model.state_dict()["0.weight"], plain.state_dict()["0.weight"])
    # After one epoch both are near the start: the smoothed loss itself would be higher by much more.
    assert smoothed.train_loss == pytest.approx(unsmoothed.train_loss, abs=0.05)


def test_the_average_is_scored_and_training_goes_on_without_it() -> None:
    model, records = start(epochs=2, decay=0.9)
    plain, plain_records = start(epochs=2)
    averaged, unaveraged = list(records), list(plain_records)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert [e.train_loss for e in averaged] == [e.train_loss for e in unaveraged]
    assert [e.test_loss for e in averaged] != [e.test_loss for e in unaveraged]


def test_the_augmentation_knows_how_far_the_training_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(Augmentation, "strength", lambda self, progress: seen.append(progress) or 1.0)
    list(start(epochs=2)[1])
    assert seen == [pytest.approx(i / 12) for i in range(12)]  # six steps an epoch
