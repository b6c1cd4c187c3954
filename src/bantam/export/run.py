"""From a finished run to its network in ONNX: exported, quantised, verified, and only then written."""

from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bantam.data import Data, scored_on
from bantam.export.graph import Session, as_pictures, graph, operations, quiet, shortened, weight_bytes
from bantam.export.int8 import quantised
from bantam.training import folder as files
from bantam.training.build import told
from bantam.training.exported import EXPORT, KINDS, write_export
from bantam.training.loop import Epoch, measure, score
from bantam.training.setup import Prepared

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOAT, INT8 = "network.onnx", "network-int8.onnx"

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the extra brings."""


def check_extra() -> None:
    """Raise ValueError where a package is missing, or is broken, that an export needs."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise ValueError(f"an export needs {' and '.join(missing)}: pip install -e '.[export]'")
    for package in PACKAGES:
        try:
            with quiet():
                import_module(package)
        except Exception as error:  # damaged, or made for another version of Python
            raise ValueError(
                f"an export needs {package}, which cannot be imported ({shortened(told(error))}): "
                "pip install --force-reinstall -e '.[export]'"
            ) from error


def export(prepared: Prepared) -> dict[str, Any]:
    """Write a finished run's network as ONNX in float32 and int8, and what was measured; returns the latter.

    Raises ValueError, with nothing written, where the weights are damaged, the images are not those on which the
    run was scored, or the network in ONNX predicts otherwise than in PyTorch.
    """
    folder, images, name = prepared.info.folder, prepared.data, f"model={prepared.info.choices.get('model')}"
    history = _history(folder, images)
    _refuse_folders(folder)
    files.read_weights(folder, prepared.result_model)
    scored = as_pictures(images.held_out_images).cpu().numpy()
    expected = score(prepared.result_model, images.held_out_images, images, torch.float32).cpu()
    if wrong := int((~expected.isfinite()).any(1).sum()):
        raise ValueError(
            f"{folder / files.WEIGHTS} is damaged (logits of {wrong:,} of {len(scored):,} images are not finite): "
            f"{files.REMEDY}"
        )
    model = graph(prepared.result_model, images, name)
    in_float = model.SerializeToString()
    measured = _measured(model, in_float, Session(in_float, name)(scored), expected, images)
    if changed := round((100 - measured["agreement"]) / 100 * len(scored)):
        raise ValueError(
            f"{name} predicts otherwise in ONNX for {changed:,} of {len(scored):,} {images.held_out} images "
            f"(logits differ by up to {measured['largest_difference']:.2g}), so nothing is written: does it draw "
            "random numbers when it is scored, or depend on the other images of a batch?"
        )
    small, how = quantised(model, as_pictures(images.train_images).cpu().numpy(), name)
    in_int8 = small.SerializeToString()
    answer = {
        "opset": next(entry.version for entry in model.opset_import if not entry.domain),
        "data": images.name,
        "split": images.split,
        "scored_images": len(scored),
        "recorded_accuracy": history[-1].accuracy,
        "recorded_precision": files.read_finished(folder)["precision"],
        "bytes": prepared.costs["bytes"],
        "float32": {"file": FLOAT, **measured},
        "int8": {
            "file": INT8,
            **how,
            **_measured(small, in_int8, Session(in_int8, name)(scored), expected, images),
        },
        "versions": {package: version(package) for package in ("torch", *PACKAGES)},
    }
    _write(folder, in_float, in_int8, answer)
    return answer


def _history(folder: Path, images: Data) -> list[Epoch]:
    """The epochs of a finished run, which was scored on these images; raises ValueError where it was not."""
    result, history = files.read_finished(folder), files.read_history(folder)
    if found := files.contradiction(history, result):
        raise ValueError(f"{folder}: {found}: {files.REMEDY}")
    if images.checksum != result["data_checksum"] or images.split != result["split"]:
        raise ValueError(
            f"{folder} was scored on {result['scored_images']:,} {scored_on(result)} images of {result['data']}, "
            f"which are not those of {images.name} as it is here: give data.root=<their folder>"
        )
    return history


def _refuse_folders(folder: Path) -> None:
    for path in (folder / name for name in (FLOAT, INT8, EXPORT)):
        if path.is_dir():
            raise ValueError(f"{path} is a folder, and a file of that name is to be written: move it away")


def _write(folder: Path, in_float: bytes, in_int8: bytes, answer: dict[str, Any]) -> None:
    """Write all three files, or none where the disk is full, the folder cannot be written, or Ctrl-C is typed."""
    try:
        (folder / EXPORT).unlink(missing_ok=True)  # it is of other files than those that come
        files.write(folder / FLOAT, in_float)
        files.write(folder / INT8, in_int8)
        write_export(folder, answer)
    except BaseException as error:  # Ctrl-C too
        for name in (FLOAT, INT8, EXPORT):
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise ValueError(
            f"{folder} cannot be written ({error.strerror}): make room or allow it, and export again"
        ) from error


def _measured(
    model: Any, content: bytes, logits: "NDArray[Any]", expected: torch.Tensor, images: Data
) -> dict[str, Any]:
    """What is known of a model: its size, and how its logits compare with those of PyTorch."""
    found = torch.from_numpy(logits)
    _, accuracy = measure(found, images.held_out_labels.cpu())
    return {
        "weight_bytes": weight_bytes(model),
        "file_bytes": len(content),
        "operations": operations(model),
        "largest_difference": (found - expected).abs().max().item(),
        "agreement": 100 * (found.argmax(1) == expected.argmax(1)).sum().item() / len(found),
        "accuracy": accuracy,
    }


def in_words(answer: dict[str, Any], folder: object) -> str:
    """What was written, two lines; a third where the run recorded quite another accuracy."""
    recorded = answer["recorded_accuracy"]
    images_apart = abs(answer["float32"]["accuracy"] - recorded) / 100 * answer["scored_images"]
    precision = answer.get("recorded_precision", "float32")
    rounds = f", or {precision} rounds otherwise than these files, which compute in float32"
    why = f"so the weights are those of another run{rounds * (precision != 'float32')}"
    # Kernels, processors and precisions round otherwise, which decides a few close images.
    close = images_apart < 1.5 + answer["scored_images"] / 2000
    apart = [] if close else [f"Recorded were {recorded:.2f} %, {why}."]
    images = f"{answer['scored_images']:,} {scored_on(answer)} images of {answer['data']}"
    lines = [
        f"{folder}/{part['file']}: {part['weight_bytes']:,} bytes of weights ({part['file_bytes']:,} in all), "
        f"{part['accuracy']:.2f} % of {images}, {part['agreement']:.2f} % of the predictions as in PyTorch"
        for part in (answer[kind] for kind in KINDS)
    ]
    return "\n".join([*lines, *apart])
