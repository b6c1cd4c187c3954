from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bantam import resolve

PLACES = {
    "sqlite:///runs.db": "sqlite:////typed/runs.db",
    "sqlite:////elsewhere/runs.db": "sqlite:////elsewhere/runs.db",
    "sqlite:///:memory:": "sqlite:///:memory:",
    "sqlite:///file:runs.db?uri=true": "sqlite:///file:runs.db?uri=true",
    "runs": "/typed/runs",
    "/elsewhere": "/elsewhere",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_is_that_of_the_folder_in_which_it_was_typed(place: str) -> None:
    assert resolve.absolute(place, Path("/typed")) == PLACES[place]


def test_paths_of_trackers_do_not_depend_on_where_a_job_has_changed_to() -> None:
    cfg = OmegaConf.create(
        {
            "data": {"root": "data"},
            "tracker": {"mlflow": {"uri": "sqlite:///runs.db"}, "wandb": {"folder": "outputs", "entity": None}},
        }
    )
    resolve.pin(cfg, Path("/typed"))
    assert cfg.data.root == "/typed/data"
    assert cfg.tracker.mlflow.uri == "sqlite:////typed/runs.db"
    assert cfg.tracker.wandb.folder == "/typed/outputs"
    cfg.tracker.mlflow.uri = "http://127.0.0.1:5000"
    resolve.pin(cfg, Path("/typed"))
    assert cfg.tracker.mlflow.uri == "http://127.0.0.1:5000"


def test_a_job_has_what_the_environment_said_when_it_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = OmegaConf.create({"data": {"root": "data"}, "seed": "${ oc.env:SEED }", "split": "${seed}"})
    monkeypatch.setenv("SEED", "3")
    resolve.settle(cfg, Path("/typed"))
    monkeypatch.setenv("SEED", "4")  # as hydra.job.env_set does for a job
    assert (cfg.seed, cfg.split) == ("3", "3")
    assert OmegaConf.to_container(cfg, resolve=False)["split"] == "${seed}"
