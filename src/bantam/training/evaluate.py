"""Score a finished run again."""

from bantam.data import scored_on
from bantam.training import terminal
from bantam.training.folder import REMEDY, contradiction, read_finished, read_history, read_weights
from bantam.training.loop import measure, score
from bantam.training.setup import Prepared


def evaluate(prepared: Prepared) -> bool:
    """Score a finished run again; returns whether it repeats the recorded accuracy or has other data.

    Raises ValueError where its weights or its history are damaged or those of another network, and where the
    images number the classes in another way.
    """
    folder, images = prepared.info.folder, prepared.data
    result = read_finished(folder)
    history = read_history(folder)
    if found := contradiction(history, result):
        raise ValueError(f"{folder}: {found}: {REMEDY}")
    trained = result.get("classes") or []
    if list(images.classes) != trained and sorted(images.classes) == sorted(trained):
        raise ValueError(
            f"{images.name} numbers its classes {', '.join(images.classes[:4])} …, but the run was trained on "
            f"{', '.join(trained[:4])} …: give the labels in that order"
        )
    read_weights(folder, prepared.result_model)
    logits = score(prepared.scoring_model, images.held_out_images, images, prepared.precision)
    _, accuracy = measure(logits, images.held_out_labels)
    recorded = history[-1].accuracy
    what = f"{accuracy:.2f} % of {len(images.held_out_labels):,} {images.held_out} images of {images.name}"
    if images.checksum != result["data_checksum"] or images.split != result["split"]:
        terminal.show_evaluation(
            f"{what}. The run itself was scored on {result['scored_images']:,} {scored_on(result)} images of "
            f"{result['data']} ({recorded:.2f} %): the two are not comparable."
        )
        return True
    same = accuracy == recorded
    terminal.show_evaluation(
        f"{what}, {'exactly as recorded' if same else f'but recorded were {recorded:.2f} %'}."
    )
    return same
