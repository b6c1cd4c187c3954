"""What a network makes of a few images before it is trained: what is refused, and what it is given instead."""

import copy
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from bantam.data import Data
from bantam.training.build import Choices, image_shape, is_own, told


def settle_layout(cfg: DictConfig, choices: Choices, model: nn.Module) -> tuple[DictConfig, str]:
    """Take channels_last back where the network cannot be run in it, as with x.view(len(x), -1) after a pooling.

    Returns the configuration as it is then, and what is to be said of that.
    """
    shape = image_shape(cfg)
    if not cfg.channels_last or _runs(model, shape):
        return cfg, ""
    model.to(memory_format=torch.contiguous_format)
    if not _runs(model, shape):
        return cfg, ""  # it fails for another reason
    cfg = cfg.copy()
    cfg.channels_last = False
    what = f"model={choices.get('model')} reshapes with view, which needs channels_last=false and has it now"
    return cfg, f"{what}: with reshape or torch.flatten convolutions may be faster"


def _runs(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether a network computes two images, as they lie in memory."""
    try:
        _logits(model, shape)
    except RuntimeError:
        return False
    return True


def settle_precision(
    cfg: DictConfig, choices: Choices, model: nn.Module, precision: torch.dtype
) -> tuple[torch.dtype, str]:
    """Take float32 where the network cannot be computed in bfloat16, as where an operation wants two alike types.

    Returns the precision, and what is to be said of that. Raises ValueError where bfloat16 was asked for.
    """
    if precision == torch.float32:
        return precision, ""
    try:
        for training in (False, True):
            logits = _logits(model, image_shape(cfg), training, precision)
            if training:
                logits.float().sum().backward()
    except Exception as error:  # a network of one's own may raise anything
        what = f"model={choices.get('model')} cannot be computed in bfloat16 ({told(error)})"
        if cfg.precision != "auto":
            raise ValueError(f"{what}: use precision=float32") from error
        return torch.float32, f"{what}: precision=auto is float32 here"
    return precision, ""


def _logits(
    model: nn.Module,
    shape: tuple[int, int, int],
    training: bool = False,
    precision: torch.dtype = torch.float32,
    count: int = 2,
) -> Any:
    """What a copy of a network returns for so many images; of training it keeps what gradients need."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))[:count].to(device)
    with (
        torch.set_grad_enabled(training),
        torch.random.fork_rng(devices=[]),
        torch.autocast(device.type, precision, enabled=precision != torch.float32),
    ):
        return copy.deepcopy(model).train(training)(images)


def check_logits(choices: Choices, model: nn.Module, shape: tuple[int, int, int], classes: int) -> str:
    """Refuse a network that does not give each image a logit for each class, in training or scoring.

    `shape` is that of an image, C×H×W. Returns what else is to be said of its output, a sentence or nothing.
    """
    name, note, scored = f"model={choices.get('model')}", "", list[Tensor]()
    for training, count in ((False, 2), (False, 1), (True, 2)):
        of = ("two images" if count == 2 else "one image") + " in training" * training
        try:
            logits = _logits(model, shape, training, count=count)
        except (Exception, SystemExit) as error:  # a network of one's own may raise anything
            raise ValueError(f"{name} cannot compute a batch of {of}: {told(error)}") from error
        found = "×".join(map(str, logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__
        if found != f"{count}×{classes}":
            what = f"{found} for {of}, not {count}×{classes}: a logit for each class"
            raise ValueError(f"{name} returns {what}{_remedy(logits, classes, count)}{_forward(model)}")
        if not logits.is_floating_point() or (training and not logits.requires_grad):
            raise ValueError(f"{name} returns logits that have no gradient{_forward(model)}")
        note = note or _note(name, logits.detach().float())
        scored += [] if training else [logits.detach().float()[:1]]
    note = note or _note_of_batch(name, *scored)
    try:
        logits.float().sum().backward()
    except Exception as error:  # of an operation that changes in its place what its gradient needs, for example
        raise ValueError(f"{name} cannot be trained, since it has no gradients: {_without_hint(error)}") from error
    return note


def _without_hint(error: Exception) -> str:
    """What PyTorch says of a gradient, without how to find the line in a program of one's own."""
    return told(error).partition(" Hint: ")[0]


def _forward(model: nn.Module) -> str:
    """Where the code stands that computes a network of one's own; empty where that is a library's."""
    compiled = getattr(type(model).forward, "__code__", None)
    if compiled is None or not is_own(compiled.co_filename):
        return ""
    return f" ({compiled.co_filename}, line {compiled.co_firstlineno})"


def _remedy(logits: Any, classes: int, count: int) -> str:
    """What helps where a network returns something else than logits."""
    if count == 1 and isinstance(logits, Tensor) and logits.dim() == 1:
        return "; squeeze() takes away the dimension of the batch too: use flatten(1)"
    if not isinstance(logits, Tensor) or len(logits) != count:
        return ""
    if logits.dim() > 2 and logits[0].numel() == classes:
        return "; add nn.Flatten() at its end"
    if logits.dim() == 4 and logits.shape[1] == classes:
        return "; add nn.AdaptiveAvgPool2d(1) and nn.Flatten() at its end"
    if logits.dim() == 2:
        return f"; its last layer must have {classes} outputs"
    return f"; end it with nn.Flatten() and a linear layer of {classes} outputs"


def _note(name: str, logits: Tensor) -> str:
    """What is to be said where logits are probabilities or their logarithms already."""
    ones = torch.ones(len(logits), device=logits.device)
    if torch.allclose(logits.exp().sum(1), ones, atol=1e-3) and (logits <= 0).all():
        return f"{name} ends with log_softmax, which the loss has too: cross-entropy of the result is the same"
    if torch.allclose(logits.sum(1), ones, atol=1e-3) and (logits >= 0).all():
        return f"{name} ends with softmax, but the loss expects logits: leave softmax out, it trains worse with it"
    return ""


def _note_of_batch(name: str, beside_another: Tensor, alone: Tensor) -> str:
    """What is to be said where an image has other logits in another batch."""
    far, length = (float(tensor.norm()) for tensor in (beside_another - alone, alone))
    if not far > 0.01 * length + 1e-4:  # nan, of which the loss will tell
        return ""
    why = "as batch norm does with track_running_stats=False: what it predicts depends on the batch"
    return f"{name} gives an image other logits beside another than alone, {why}"


def check_last_batch(cfg: DictConfig, choices: Choices, model: nn.Module, images: Data) -> None:
    """Refuse batches of one image where the network cannot be trained on one.

    Batch norm divides by the deviation of a channel's values: behind a 1×1 map one image has a single value.
    """
    count = len(images.train_labels)
    if (count % cfg.batch_size or cfg.batch_size) > 1:
        return
    image = torch.zeros(1, *images.shape, device=next(model.parameters()).device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(model).train()(image)
    except Exception as error:  # a network of one's own may raise anything
        name = f"model={choices.get('model')}"
        if "more than 1 value per channel" not in str(error):
            raise ValueError(f"{name} cannot compute a batch of one image in training: {told(error)}") from error
        fitting = next(size for size in range(cfg.batch_size + 1, count + 1) if count % size != 1)
        raise ValueError(
            f"batch_size is {cfg.batch_size:,}: of {count:,} images the last batch has a single one, and batch "
            f"norm in {name} cannot be trained on one value a channel: use "
            f"batch_size={fitting}"
        ) from error
