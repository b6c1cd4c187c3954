"""Pictures of a finished run: learning curves, confusion matrix, mistakes."""

import io
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay
from torch import Tensor

from bantam.data import Data
from bantam.training.folder import write
from bantam.training.loop import Epoch

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # from Okabe and Ito's colour-blind safe set
MISTAKES = 40

NUMBERED = 40
"""Classes up to which the cells of a confusion matrix have their numbers."""

LONGEST = 16
"""Characters of a class's name."""


def draw(folder: Path, title: str, history: list[Epoch], logits: Tensor, data: Data, target: float) -> None:
    """Write curves.png, confusion.png and mistakes.png; `logits` are N×classes, of the scored images."""
    logits = logits.cpu()
    labels = data.held_out_labels.cpu()
    pictures = {
        "curves": curves(title, history, data.held_out, target),
        "confusion": confusion(title, logits.argmax(1), labels, data),
        "mistakes": mistakes(title, logits, labels, data),
    }
    for name, figure in pictures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=120, format="png")
        write(folder / f"{name}.png", buffer.getvalue())


def curves(title: str, history: list[Epoch], split: str, target: float) -> Figure:
    """Accuracy (its upper end enlarged, with the target line) and loss against the epoch."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")  # not pyplot's: no window, and none in a notebook
    left, right = figure.subplots(1, 2)
    epochs = [e.epoch for e in history]
    scored = [e.accuracy for e in history]
    left.axhline(target, color=GREY, linestyle="--", linewidth=1, label=f"target {target:g} %")
    left.plot(epochs, [e.train_accuracy for e in history], color=ORANGE, label="training (augmented)")
    left.plot(epochs, scored, color=BLUE, marker="o", markersize=4, label=split)
    # The first epochs are far below the rest: start the axis where the later ones differ.
    middle = sorted(scored)[len(scored) // 4]
    floor = max(0.0, min(middle, target) - max(0.3, 0.75 * abs(target - middle)))
    left.set_ylim(floor, 100 + (100 - floor) * 0.03)
    if min(scored) < floor:
        left.set_xlabel(f"epoch (lowest, {min(scored):.2f} %, is off the scale)")
    else:
        left.set_xlabel("epoch")
    left.set_ylabel("accuracy, %")
    left.legend(loc="lower right")
    right.plot(epochs, [e.train_loss for e in history], color=ORANGE, label="training (augmented)")
    losses = [e.test_loss if e.validation_loss is None else e.validation_loss for e in history]
    right.plot(epochs, losses, color=BLUE, marker="o", markersize=4, label=split)
    right.set_yscale("log")
    right.set_xlabel("epoch")
    right.set_ylabel("loss (cross-entropy)")
    right.legend(loc="upper right")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}: best {max(scored):.2f} % in epoch {1 + scored.index(max(scored))}")
    return figure


def confusion(title: str, guesses: Tensor, labels: Tensor, data: Data) -> Figure:
    """Truth against guess; the colour shows the mistakes only, which the diagonal would drown.

    Of more classes than `NUMBERED` only the colours are shown: numbers would be too small to read.
    """
    count = len(data.classes)
    side = max(7.0, 0.45 * min(count, NUMBERED))
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    axes = figure.subplots()
    matrix = np.zeros((count, count), dtype=int)
    np.add.at(matrix, (labels.numpy(), guesses.numpy()), 1)
    names = [_short(name) for name in data.classes]
    display = ConfusionMatrixDisplay(matrix, display_labels=names)
    display.plot(
        ax=axes,
        include_values=count <= NUMBERED,
        colorbar=False,
        values_format="d",
        xticks_rotation=45 if count * max(map(len, names)) > 50 else 0,
    )
    wrong = matrix - np.diag(np.diag(matrix))
    display.im_.set_data(wrong)
    display.im_.set_cmap("Blues")
    display.im_.set_clim(0, max(1, wrong.max() * 1.6))
    if count > 2 * NUMBERED:
        axes.tick_params(labelsize=4)
    for (row, column), text in np.ndenumerate(display.text_ if count <= NUMBERED else np.empty((0, 0))):
        text.set_color("black" if row == column or wrong[row, column] else "#bbbbbb")
        text.set_fontweight("bold" if row == column else "normal")
    axes.set_xlabel("guess")
    axes.set_ylabel("truth")
    axes.set_title(f"{title}: {wrong.sum()} of {len(labels):,} {data.held_out} images are wrong")
    return figure


def _short(name: str) -> str:
    """The name of a class as it fits beside a picture."""
    name = name.replace("$", r"\$")  # no formula
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _seen(image: np.ndarray) -> np.ndarray:
    """C×H×W bytes as they are shown: three channels in colour, any other number as their mean in grey."""
    return image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)


def mistakes(title: str, logits: Tensor, labels: Tensor, data: Data) -> Figure:
    """The wrongly classified images, the most confident mistakes first: truth, guess, confidence."""
    confidence, guesses = logits.softmax(1).max(1)
    wrong = (guesses != labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:MISTAKES]
    columns = 8
    rows = max(1, math.ceil(len(worst) / columns))
    figure = Figure(figsize=(11, 1.75 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for cell in axes.flat:
        cell.axis("off")
    for cell, i in zip(axes.flat, worst.tolist(), strict=False):
        cell.imshow(_seen(data.held_out_images[i].cpu().numpy()), cmap="gray", vmin=0, vmax=255)
        truth, guess = (_short(data.classes[int(which[i])]) for which in (labels, guesses))
        cell.set_title(f"is {truth}, says {guess}\n{100 * confidence[i]:.0f} % sure", fontsize=8)
    shown = (
        f"the {len(worst)} most confident of" if len(worst) < len(wrong) else "all" if len(wrong) else "there are"
    )
    figure.suptitle(f"{title}: {shown} {len(wrong)} mistakes on {len(labels):,} {data.held_out} images")
    return figure
