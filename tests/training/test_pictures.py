"""What stands on the pictures of a run."""

import torch

from bantam import data
from bantam.training import pictures
from bantam.training.loop import Epoch


def test_the_scored_images_are_called_what_they_are() -> None:
    for validation, called in ((0, "held-out"), (500, "validation")):
        images = data.mnist5k(validation, 1, 0.1307, 0.3081)
        labels = images.held_out_labels
        logits = torch.zeros(len(labels), 10)
        title = pictures.confusion("v2", logits.argmax(1), labels, images).axes[0].get_title()
        assert title.endswith(f" {called} images are wrong")
        assert f" {called} images" in pictures.mistakes("v2", logits, labels, images).get_suptitle()
        history = [Epoch(1, 0.1, 0.1, 98.0, None, None, 0.1, 97.0, 1.0, 1.0)]
        legend = pictures.curves("v2", history, images.held_out, 99.4).axes[0].get_legend()
        assert legend is not None
        assert called in [text.get_text() for text in legend.get_texts()]
