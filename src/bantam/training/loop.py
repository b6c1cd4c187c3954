"""Training as a generator: one record an epoch, everything else is up to the caller."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from bantam.augmentation import Augmentation, Changes
from bantam.data import Data
from bantam.kernels.direct import direct
from bantam.schedulers import Schedule
from bantam.training.average import Average

CHECK_EVERY = 50
"""Steps between two checks of the loss: each one waits for an accelerator to catch up."""

SCORING_BATCH = 200


@dataclass(frozen=True)
class Epoch:
    """What one epoch brought; a row of `history.csv`."""

    epoch: int
    """Counted from 1."""
    lr: float
    """Learning rate of the epoch's last step."""
    train_loss: float
    """Mean cross-entropy, without label smoothing."""
    train_accuracy: float
    """Percent of the augmented training images, as they were seen while the weights changed."""
    validation_loss: float | None
    validation_accuracy: float | None
    """Percent; None where no validation images are held out."""
    test_loss: float | None
    test_accuracy: float | None
    """Percent; None where validation images are held out: the test images are not scored then."""
    seconds: float
    images_per_second: float
    """Of the training, without the scoring."""

    @property
    def accuracy(self) -> float:
        """Accuracy on the images that were scored, in percent."""
        accuracy = self.test_accuracy if self.validation_accuracy is None else self.validation_accuracy
        assert accuracy is not None
        return accuracy


class Diverged(ArithmeticError):
    """The training loss stopped being a finite number."""

    def __init__(self, epoch: int, step: int, lr: float, loss: float) -> None:
        super().__init__(
            f"the loss became {loss} in epoch {epoch}, step {step}, at a learning rate of {lr:g}: "
            "lower optimizer.lr or optimizer.momentum"
        )
        self.epoch, self.step, self.lr = epoch, step, lr


class BadRate(ArithmeticError):
    """The schedule has set a learning rate that no optimizer can take."""

    def __init__(self, epoch: int, rate: float) -> None:
        super().__init__(
            f"sets the learning rate of epoch {epoch} to {rate}: change scheduler.* so that it stays at 0 or above"
        )


@dataclass(frozen=True)
class Training:
    """All that the loop needs; model and data are on the same device."""

    model: nn.Module
    """Trained in place."""
    optimizer: Optimizer
    schedule: Schedule
    augmentation: Augmentation
    data: Data
    epochs: int
    batch_size: int
    seed: int
    """All random numbers of an epoch follow from it and the epoch's number."""
    precision: torch.dtype
    training_model: nn.Module
    """What computes the logits in training: the model, or a faster twin with the same parameters."""
    scoring_model: nn.Module
    """What computes the logits that are scored: the model, its average, or a faster twin of either."""
    rates: Sequence[float]
    """The own rate of each group of the optimizer, from which the schedule makes the present ones."""
    label_smoothing: float = 0.0
    average: Average | None = None
    """Of the weights, updated after every step."""


def train(
    training: Training,
    history: Sequence[Epoch] = (),
    show: Callable[[int, int, float], None] = lambda epoch, images, loss: None,
) -> Iterator[Epoch]:
    """Train and yield a record after every epoch, scored on the held-out images.

    After the epochs of `history` it goes on as if it had never stopped. `show` gets the epoch, the images trained
    on so far in it and the latest loss, a few times an epoch. Raises Diverged, and BadRate.
    """
    data, count = training.data, len(training.data.train_labels)
    losses = [epoch.train_loss for epoch in history]
    for epoch in range(len(losses) + 1, training.epochs + 1):
        start = time.perf_counter()
        lr, train_loss, train_accuracy = _train_epoch(training, epoch, losses, show)
        losses.append(train_loss)
        train_seconds = time.perf_counter() - start
        logits = score(training.scoring_model, data.held_out_images, data, training.precision)
        loss, accuracy = measure(logits, data.held_out_labels)
        validating = data.split == "validation"
        yield Epoch(
            epoch=epoch,
            lr=lr,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            validation_loss=loss if validating else None,
            validation_accuracy=accuracy if validating else None,
            test_loss=None if validating else loss,
            test_accuracy=None if validating else accuracy,
            seconds=time.perf_counter() - start,
            images_per_second=count / train_seconds,
        )


def _train_epoch(
    training: Training, epoch: int, losses_before: Sequence[float], show: Callable[[int, int, float], None]
) -> tuple[float, float, float]:
    """Train for one epoch; returns the last learning rate, the mean loss and the accuracy in percent."""
    data, batch_size, optimizer = training.data, training.batch_size, training.optimizer
    augmentation, smoothing, forward = training.augmentation, training.label_smoothing, training.training_model
    device, count = data.train_images.device, len(data.train_labels)
    torch.manual_seed(1_000_003 * training.seed + epoch)
    for network in (training.model, forward):
        network.train()
    steps = -(-count // batch_size)
    order = torch.randperm(count, device=device)
    # Those that PyTorch computes stay where they are until they are looked at.
    losses: list[float | Tensor] = []
    values: list[float] = []
    correct: int | Tensor = 0
    strengths = [augmentation.strength((epoch - 1 + step / steps) / training.epochs) for step in range(steps)]
    of_images = torch.tensor(strengths, device=device).repeat_interleave(batch_size)[:count]
    changes = augmentation.draw(of_images)
    in_c = direct(forward, data.shape)
    lr = 0.0
    for step in range(steps):
        lr = _set_rates(training, epoch - 1 + step / steps, losses_before)
        rows = slice(step * batch_size, (step + 1) * batch_size)
        batch = order[rows]
        # index_select: plain indexing copies bytes one by one on a CPU.
        labels = data.train_labels.index_select(0, batch)
        images = data.train_images.index_select(0, batch)
        x = augmentation.apply(images, changes.of(rows) if strengths[step] else Changes())
        x = data.normalise(x)
        # Of one image a map of one pixel has no variance: PyTorch's layers say so.
        alone = len(labels) == 1
        loss, hits = in_c(x, labels, smoothing) if in_c and not alone else _gradients(training, x, labels)
        losses.append(loss)
        correct = correct + hits
        optimizer.step()
        if training.average:
            training.average.update()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            values += _finite(losses[len(values) :], epoch, len(values), lr)
            show(epoch, min(len(values) * batch_size, count), values[-1])
    return lr, torch.tensor(values).mean().item(), 100 * int(correct) / count


def _gradients(training: Training, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Give every parameter its gradient of the loss: that, and how many images are classified correctly."""
    with torch.autocast(x.device.type, training.precision, enabled=training.precision != torch.float32):
        logits = training.training_model(x)
        loss = F.cross_entropy(logits, labels, label_smoothing=training.label_smoothing)
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    logits = logits.detach()
    # What is recorded is the same with and without smoothing, so that runs can be compared.
    recorded = F.cross_entropy(logits.float(), labels) if training.label_smoothing else loss.detach()
    return recorded, (logits.argmax(1) == labels).sum()


def _set_rates(training: Training, epoch: float, losses: Sequence[float]) -> float:
    """Give every group of the optimizer its rate for this moment; returns that of the first. Raises BadRate."""
    optimizer, schedule = training.optimizer, training.schedule
    rates = [schedule.rate(lr, epoch, losses) for lr in training.rates]
    for rate in rates:
        if not 0 <= rate < math.inf:
            raise BadRate(int(epoch) + 1, rate)
    if schedule.drops_momentum and epoch.is_integer() and rates[0] != optimizer.param_groups[0]["lr"]:
        optimizer.state.clear()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return rates[0]


def _finite(losses: Sequence[float | Tensor], epoch: int, before: int, lr: float) -> list[float]:
    """Some losses, which follow those of `before` steps, as numbers. Raises Diverged if one is not finite."""
    tensors = [loss for loss in losses if isinstance(loss, Tensor)]
    # One look at a GPU's memory, not one for each.
    looked_at = iter(torch.stack(tensors).tolist() if tensors else ())
    values: list[float] = [next(looked_at) if isinstance(loss, Tensor) else loss for loss in losses]
    for step, value in enumerate(values, before + 1):
        if not math.isfinite(value):
            raise Diverged(epoch, step, lr, value)
    return values


@torch.no_grad()
def score(model: nn.Module, images: Tensor, data: Data, precision: torch.dtype) -> Tensor:
    """Logits of the network for N×C×H×W bytes: N×classes floats, in evaluation mode, not augmented."""
    model.eval()
    logits = []
    for batch in torch.split(images, SCORING_BATCH):
        x = data.normalise(batch.float() / 255)
        with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
            logits.append(model(x).float())
    return torch.cat(logits)


def measure(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy, and accuracy in percent."""
    correct = (logits.argmax(1) == labels).sum().item()
    return F.cross_entropy(logits, labels).item(), 100 * correct / len(labels)
