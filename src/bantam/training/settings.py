"""What a run is about, in words: a line for each of its settings.

torch is imported only where it is there already.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bantam.training.setup import Prepared


def short_path(path: Path, typed_in: Path | None = None) -> str:
    """A path as a person would type it, from the working folder or the one in which the command was typed."""
    typed_in = typed_in or Path.cwd()
    path = typed_in / path
    return str(path.relative_to(typed_in) if path.is_relative_to(typed_in) else path)


def every_one_of(last: int) -> str:
    """The epochs that a target is about, in words."""
    return "the last epoch" if last == 1 else f"every one of the last {last} epochs"


def in_words(prepared: "Prepared") -> dict[str, str]:
    """What a run is about, a line each."""
    cfg, images, info = prepared.cfg, prepared.data, prepared.info
    steps = -(-len(images.train_labels) // cfg.batch_size)
    rates = " ".join(f"{rate:.2g}" for rate in prepared.epoch_rates)
    last = every_one_of(cfg.target.last_epochs)
    epochs = f"{cfg.epochs} epoch{'s' * (cfg.epochs > 1)}"
    threads = f"{prepared.threads} thread{'s' * (prepared.threads > 1)}" + f" ({prepared.busy})" * bool(
        prepared.busy
    )
    precision = str(prepared.precision).removeprefix("torch.")
    first, *others = _costs(prepared)
    return {
        "budget": "; ".join([first, f"{epochs} of at most {cfg.budget.epochs}", *others]),
        "target": f"{cfg.target.accuracy:g} % in {last}",
        "data": f"{images.name}: {len(images.train_labels):,} images to train on, "
        f"{len(images.held_out_labels):,} {images.held_out} images scored after every epoch; "
        f"{'×'.join(map(str, images.shape))} pixels, {len(images.classes)} classes" + _computed(prepared),
        "steps": f"{steps:,} an epoch, {steps * cfg.epochs:,} in all, {cfg.batch_size} images each",
        **{key: _arguments(prepared, key) for key in ("model", "optimizer", "scheduler", "augmentation")},
        **({"smoothing": f"{cfg.label_smoothing:g} of each label"} if cfg.label_smoothing else {}),
        **({"average": f"of the weights, keeping {cfg.ema:g} a step: it is scored and saved"} if cfg.ema else {}),
        "rates": rates + (" (falls with the training loss)" if prepared.schedule.follows_loss else ""),
        "machine": f"{prepared.device.type}, {threads}, {precision}, {prepared.kernels} kernels"
        + ", compiled" * cfg.compile,
        **({"in PyTorch": _not_in_c(prepared)} if prepared.not_in_c else {}),
        "seed": str(cfg.seed),
        "folder": "none: dry_run" if cfg.dry_run else short_path(info.folder, info.typed_in),
    }


def _computed(prepared: "Prepared") -> str:
    """What normalisation takes from the training images; empty where it is given."""
    images, data = prepared.data, prepared.cfg.data
    computed = {"mean": images.mean, "deviation": images.std}
    known = zip(computed.items(), (data.mean, data.std), strict=True)
    return "".join(
        f", {word} {' '.join(f'{n:.4f}' for n in found)}" for (word, found), key in known if key is None
    )


def _not_in_c(prepared: "Prepared") -> str:
    """Why C does not compute which convolutions, a line for each reason."""
    layers: dict[str, list[str]] = {}
    for name, reason in prepared.not_in_c.items():
        layers.setdefault(reason, []).append(name)
    return "\n".join(f"{', '.join(names)}: {reason}" for reason, names in layers.items())


def _costs(prepared: "Prepared") -> Iterator[str]:
    """What the network costs, each amount with the limit that it has."""
    from bantam.budget import in_words as cost  # loads torch

    for key, amount in prepared.costs.items():
        limit = prepared.cfg.budget.get(key)
        yield cost({key: amount}) + ("" if limit is None else f" of fewer than {limit:,}")


def _arguments(prepared: "Prepared", group: str) -> str:
    values: Iterable[tuple[str, Any]] = ((str(name), value) for name, value in prepared.cfg[group].items())
    if group == "model":  # what the data say stands there
        values = ((name, value) for name, value in values if value != prepared.cfg.data.get(name, name))
    given = ", ".join(f"{name} {value}" for name, value in values if not name.startswith("_"))
    return f"{prepared.info.choices.get(group)}: {given}"
