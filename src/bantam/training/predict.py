"""The network of a finished run: classes and probabilities of images, normalised as in training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bantam import budget
from bantam.own import code
from bantam.training import saved
from bantam.training.build import build
from bantam.training.folder import read_finished, read_weights
from bantam.training.loop import SCORING_BATCH


class Prediction(NamedTuple):
    """What a network takes N images for: tensors where tensors were given, else NumPy arrays."""

    classes: Any
    """N whole numbers: positions in `Network.classes`, and in what training labels are."""
    probabilities: Any
    """N×classes floats; each row sums to 1."""


class Network(nn.Module):
    """A finished run's network in evaluation mode: `net.predict(bytes)`, and `net(x)` for logits."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        classes: Sequence[str],
        mean: float | Sequence[float],
        std: float | Sequence[float],
    ) -> None:
        """`shape` is channels×height×width of an image; mean and deviation are of pixels from 0 to 1."""
        super().__init__()
        self.network, self.shape, self.classes = network, tuple(shape), tuple(classes)
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).reshape(-1, 1, 1), persistent=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """N×classes logits of N×C×H×W floats, which are normalised: (bytes / 255 - mean) / std."""
        logits: Tensor = self.network(x)
        return logits

    @torch.no_grad()
    def predict(self, images: Any) -> Prediction:
        """Classes and probabilities of bytes: N×H×W or H×W, in colour N×H×W×C or H×W×C, as arrays or tensors.

        It computes in float32, in evaluation mode. Raises ValueError for other types and shapes.
        """
        given = images if isinstance(images, Tensor) else _tensor(images)
        bytes_ = self._checked(given)
        training = self.training
        self.eval()
        try:
            rows = [self._probabilities(batch) for batch in torch.split(bytes_, SCORING_BATCH)]
        finally:
            self.train(training)
        probabilities = torch.cat(rows).to(given.device)
        classes = probabilities.argmax(1)
        if isinstance(images, Tensor):
            return Prediction(classes, probabilities)
        return Prediction(classes.numpy(), probabilities.numpy())

    def _probabilities(self, batch: Tensor) -> Tensor:
        x = (batch.to(self.mean.device).float() / 255 - self.mean) / self.std
        logits: Tensor = self(x)
        return logits.float().softmax(1)

    def _checked(self, images: Tensor) -> Tensor:
        """Images as N×C×H×W bytes. Raises ValueError for what is not of this network."""
        channels, height, width = self.shape
        if images.dtype != torch.uint8:
            kind = str(images.dtype).removeprefix("torch.")
            raise ValueError(f"images are {kind}: predict takes uint8, from 0 to 255, and normalises them itself")
        one = (height, width) if channels == 1 else (height, width, channels)
        found = "×".join(map(str, images.shape))
        if tuple(images.shape) == one:
            images = images.unsqueeze(0)
        if tuple(images.shape[1:]) != one:
            wanted = "×".join(map(str, one))
            raise ValueError(f"images are {found}: this network takes N×{wanted}, or one image of {wanted}")
        if not len(images):
            raise ValueError(f"images are {found}: there is none among them")
        return images.unsqueeze(1) if channels == 1 else images.movedim(-1, 1)


def _tensor(images: Any) -> Tensor:
    try:
        return torch.from_numpy(np.array(images))  # a copy: some arrays cannot be written
    except (TypeError, ValueError) as error:
        raise ValueError(f"images are no array of numbers ({' '.join(str(error).split())})") from error


def load(folder: Path) -> Network:
    """The network of a finished run, with the weights that it saved, on the CPU.

    Raises ValueError where the folder holds no run that was trained to its end, or is damaged.
    """
    own = saved.load(folder)
    cfg, result = own.checked, read_finished(folder)
    code.restore(folder, cfg.model)
    with torch.random.fork_rng(devices=[]):
        model = build(cfg, "model", own.choices)
    read_weights(folder, model)
    about: dict[str, Any] = {**cfg.data, **{key: value for key, value in result.items() if value is not None}}
    return Network(model, _shape(about), _classes(result, model, _shape(about)), *_normalisation(about, folder))


def _shape(about: Mapping[str, Any]) -> tuple[int, int, int]:
    """Channels, height and width of a run's images; older runs do not say, and had those of MNIST."""
    channels, height, width = budget.IMAGE
    side = about.get("side")
    return int(about.get("channels") or channels), int(side or height), int(side or width)


def _normalisation(about: Mapping[str, Any], folder: Path) -> Sequence[Any]:
    """Mean and deviation, one of each or one a channel. Raises ValueError where the run does not say."""
    for key in ("mean", "std"):
        if about.get(key) is None:
            raise ValueError(
                f"{folder} does not say with which data.{key} its images were normalised: give it there"
            )
    return [about[key] if isinstance(about[key], int | float) else list(about[key]) for key in ("mean", "std")]


def _classes(result: Mapping[str, Any], model: nn.Module, shape: Sequence[int]) -> Sequence[str]:
    """Names of the classes; their numbers where an older run does not say."""
    if result.get("classes"):
        names: list[str] = result["classes"]
        return names
    with torch.no_grad():
        return [str(number) for number in range(model.eval()(torch.zeros(1, *shape)).shape[1])]
