"""Training as a generator: one record an epoch, everything else is up to the caller."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bantam.augmentation import Augmentation, Changes
from bantam.data import Data
from bantam.schedulers import LossDip, OneCycle

Scheduler = LRScheduler | OneCycle | LossDip

LOOK_EVERY = 50
"""Steps between two looks at the loss: each look waits for an accelerator to catch up."""

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


class Average:
    """The exponential moving average of a network's weights and batch-norm statistics, in a network of its own.

    Every step keeps the share `decay` of it; less of the first ones, which are far from anything good:
    of step n at most (n + 1) / (n + 10).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay, self.steps = decay, 0
        # Listed once: with so few weights, finding them would take longer than averaging them.
        averages, currents = ([*network.parameters(), *network.buffers()] for network in (self.model, model))
        whole = [not tensor.is_floating_point() for tensor in currents]
        self.averages, self.counts = _parted([tensor.detach() for tensor in averages], whole)
        self.current, self.current_counts = _parted([tensor.detach() for tensor in currents], whole)

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present weights into the average; nothing waits for an accelerator."""
        self.steps += 1
        kept = min(self.decay, (self.steps + 1) / (self.steps + 10))
        torch._foreach_lerp_(self.averages, self.current, 1 - kept)
        torch._foreach_copy_(self.counts, self.current_counts)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the average back from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]


def _parted(tensors: list[Tensor], apart: list[bool]) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors in two lists, the second of those to be set apart."""
    pairs = list(zip(tensors, apart, strict=True))
    return [tensor for tensor, away in pairs if not away], [tensor for tensor, away in pairs if away]


def train(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: Scheduler,
    augmentation: Augmentation,
    data: Data,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    precision: torch.dtype,
    label_smoothing: float = 0.0,
    average: Average | None = None,
    first_epoch: int = 1,
    forward: nn.Module | None = None,
    scored: nn.Module | None = None,
    show: Callable[[int, int, float], None] = lambda epoch, images, loss: None,
) -> Iterator[Epoch]:
    """Train `model` in place and yield a record after every epoch, scored on the held-out images.

    Model and data are on the same device. All random numbers of an epoch follow from `seed` and its
    number, so training can go on at `first_epoch` as if it had never stopped. `forward` is what
    computes the logits in training where that is not `model` itself: a faster twin with the same
    parameters. Scored is `model`, or the `average` of its weights where there is one; or `scored`, a faster twin
    of that. `show` gets the epoch, the images trained on so far in it and the latest loss, a
    few times an epoch. Raises Diverged.
    """
    forward = forward or model
    scored = scored or (average.model if average else model)
    device, count = data.train_images.device, len(data.train_labels)
    steps = -(-count // batch_size)
    for epoch in range(first_epoch, epochs + 1):
        torch.manual_seed(1_000_003 * seed + epoch)
        start = time.perf_counter()
        for network in (model, forward):
            network.train()
        order = torch.randperm(count, device=device)
        losses = torch.zeros(steps, device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        strengths = [augmentation.strength((epoch - 1 + step / steps) / epochs) for step in range(steps)]
        of_images = torch.tensor(strengths, device=device).repeat_interleave(batch_size)[:count]
        changes = augmentation.draw(of_images)
        lr = 0.0
        looked = 0
        for step in range(steps):
            if isinstance(scheduler, OneCycle):
                scheduler.step(epoch - 1 + step / steps)
            lr = float(optimizer.param_groups[0]["lr"])
            place = slice(step * batch_size, (step + 1) * batch_size)
            batch = order[place]
            labels = data.train_labels[batch]
            # index_select: plain indexing copies bytes one by one on a CPU.
            images = data.train_images.index_select(0, batch)
            x = augmentation.apply(images, changes.of(place) if strengths[step] else Changes())
            x = x.sub_(data.mean).div_(data.std)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                logits = forward(x)
                loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if average:
                average.update()
            # What is recorded is the same with and without smoothing, so that runs can be compared.
            losses[step] = F.cross_entropy(logits.detach().float(), labels) if label_smoothing else loss.detach()
            correct += (logits.detach().argmax(1) == labels).sum()
            if (step + 1) % LOOK_EVERY == 0 or step + 1 == steps:
                seen = losses[looked : step + 1].tolist()
                for i, value in enumerate(seen, looked + 1):
                    if not -float("inf") < value < float("inf"):
                        raise Diverged(epoch, i, lr, value)
                looked = step + 1
                show(epoch, min(looked * batch_size, count), seen[-1])
        train_loss = losses.mean().item()
        advance(scheduler, train_loss)
        train_seconds = time.perf_counter() - start
        logits = score(scored, data.held_out_images, data, precision)
        loss_value, accuracy = measure(logits, data.held_out_labels)
        validating = data.split == "validation"
        yield Epoch(
            epoch=epoch,
            lr=lr,
            train_loss=train_loss,
            train_accuracy=100 * correct.item() / count,
            validation_loss=loss_value if validating else None,
            validation_accuracy=accuracy if validating else None,
            test_loss=None if validating else loss_value,
            test_accuracy=None if validating else accuracy,
            seconds=time.perf_counter() - start,
            images_per_second=count / train_seconds,
        )


def advance(scheduler: Scheduler, train_loss: float) -> None:
    """Move a schedule on at the end of an epoch; OneCycle has moved at every step already."""
    if isinstance(scheduler, LossDip):
        scheduler.step(train_loss)
    elif not isinstance(scheduler, OneCycle):
        scheduler.step()


@torch.no_grad()
def score(model: nn.Module, images: Tensor, data: Data, precision: torch.dtype) -> Tensor:
    """Logits of the network for N×H×W images: N×10 floats, in evaluation mode, not augmented."""
    model.eval()
    logits = []
    for batch in torch.split(images, SCORING_BATCH):
        x = (batch.unsqueeze(1).float() / 255 - data.mean) / data.std
        with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
            logits.append(model(x).float())
    return torch.cat(logits)


def measure(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy, and accuracy in percent."""
    correct = (logits.argmax(1) == labels).sum().item()
    return F.cross_entropy(logits, labels).item(), 100 * correct / len(labels)
