import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL
from omegaconf import DictConfig
from single_runs import at

from bantam.training.evaluate import evaluate
from bantam.training.setup import prepare_finished

Compose = Callable[..., DictConfig]


def test_evaluate_repeats_the_recorded_accuracy(
    composed: Compose, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = composed(*SMALL)
    shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)
    assert evaluate(prepare_finished(cfg, at(tmp_path)))
    assert "exactly as recorded" in capsys.readouterr().out
    assert evaluate(prepare_finished(composed(*SMALL, "data.validation=500"), at(tmp_path)))
    said = capsys.readouterr().out
    assert "The run itself was scored on 1,000 held-out images of mnist5k (" in said
    assert "the two are not comparable" in said
    with pytest.raises(ValueError, match="holds the weights of another network"):
        evaluate(prepare_finished(composed(*SMALL, "model.width=5"), at(tmp_path)))
