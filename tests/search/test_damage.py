"""What of a storage may be gone or altered: one sentence with its address and what helps."""

import shutil
import sqlite3
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from commands import PROJECT, Bantam
from omegaconf import read_write
from searches import work

from bantam.search import confirm
from bantam.search.space import Search
from bantam.search.study import open_study

pytestmark = pytest.mark.slow

Damage = Callable[[Path], object]

TABLES = ("trials", "trial_params", "trial_values", "trial_user_attributes", "studies")
TABLES = (*TABLES, "study_user_attributes", "study_directions")


def sql(statement: str) -> Damage:
    """Damage to the rows of a database."""

    def damage(file: Path) -> None:
        with sqlite3.connect(file) as connection:
            connection.execute(statement)
        connection.close()

    return damage


DAMAGES: dict[str, Damage] = {
    "halved": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "text": lambda file: file.write_text("Once upon a time"),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "link": lambda file: (file.unlink(), file.symlink_to(file.name)),
    "gone": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    **{f"no {table}": sql(f"DROP TABLE {table}") for table in TABLES},
    "settings of a trial gone": sql("DELETE FROM trial_params WHERE trial_id = 2"),
    "a setting of a trial gone": sql("DELETE FROM trial_params WHERE trial_id = 2 AND param_name = 'model.width'"),
    "accuracy of a trial gone": sql("DELETE FROM trial_values WHERE trial_id = 2"),
    "costs of a trial gone": sql("DELETE FROM trial_user_attributes WHERE trial_id = 2"),
    "a trial gone": sql("DELETE FROM trials WHERE trial_id = 2"),
    "the last trial gone": sql("DELETE FROM trials WHERE trial_id = 3"),
    "definition gone": sql("DELETE FROM study_user_attributes"),
    "definition no JSON": sql("UPDATE study_user_attributes SET value_json = '{'"),
    "definition a list": sql("UPDATE study_user_attributes SET value_json = '[1]'"),
    "range no JSON": sql("UPDATE trial_params SET distribution_json = '{'"),
    "note no JSON": sql("UPDATE trial_user_attributes SET value_json = '{'"),
    "infinite accuracy": sql("UPDATE trial_values SET value = NULL, value_type = 'INF_POS'"),
    "accuracy of 500 %": sql("UPDATE trial_values SET value = 500"),
    "another name": sql("UPDATE studies SET study_name = 'another'"),
}


def elsewhere(search: Search, folder: Path) -> Search:
    """The same search in another folder."""
    config = deepcopy(search.config)
    with read_write(config.hydra.sweep):
        config.hydra.sweep.dir = str(folder)
    return replace(search, config=config)


def test_a_damaged_storage_is_one_sentence(searching: Callable[..., Search], tmp_path: Path) -> None:
    whole = searching("hydra.sweeper.n_trials=3", folder="whole")
    work(whole)
    bad = {}
    for i, (what, damage) in enumerate(DAMAGES.items()):
        shutil.copytree(tmp_path / "whole", tmp_path / f"study{i}")
        damage(tmp_path / f"study{i}" / "study.db")
        try:
            open_study(elsewhere(whole, tmp_path / f"study{i}"))
            bad[what] = "nothing was said"
        except ValueError as error:
            said = " ".join(str(error).split())
            helps = "restore" in said and f"study{i}/study.db" in said
            if not helps or "hydra.sweeper.storage" not in said:
                bad[what] = said
    assert not bad


def test_a_whole_storage_is_no_damage(searching: Callable[..., Search]) -> None:
    for sampler in ("multivariate_tpe", "gp", "nsgaii"):
        line = (f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=4", "budget.parameters=6000")
        work(searching(*line, folder=sampler))
        assert len(open_study(searching(*line, folder=sampler)).trials) >= 4


def test_the_end_of_a_search_keeps_the_experiment_of_a_trial_that_is_gone(
    bantam: Bantam, finished_study: Path, few: tuple[str, ...], tmp_path: Path
) -> None:
    one = ("hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1", "data.validation=100", "report=false")
    line = ("train.py", "-m", "hparams_search=optuna", *few, *one)
    study = shutil.copytree(finished_study, tmp_path / "multirun" / "optuna")
    best = study / "experiment" / "best.yaml"
    kept = best.read_bytes()
    shutil.rmtree(study / "0")
    done = bantam(*line)
    assert done.returncode == 0, done.stderr
    assert best.read_bytes() == kept
    assert "experiment=best" in done.stdout.partition("Run it with:")[2]
    refused = bantam("confirm.py", "multirun/optuna")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: multirun/optuna/0 is gone: restore it"), refused.stderr
    best.write_bytes(kept[: len(kept) // 2])
    done = bantam(*line)
    assert "It cannot be run again: multirun/optuna/0 is gone: restore it" in " ".join(done.stdout.split())
    assert not best.exists()


@pytest.mark.parametrize("content", ["version: 2\nservices: {}\n", "model: 5\n"])
def test_the_end_of_a_search_repeats_no_foreign_configuration(
    bantam: Bantam, finished_study: Path, few: tuple[str, ...], tmp_path: Path, content: str
) -> None:
    one = ("hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1", "data.validation=100", "report=false")
    study = shutil.copytree(finished_study, tmp_path / "multirun" / "optuna")
    best = study / "experiment" / "best.yaml"
    kept = best.read_bytes()
    (study / "0" / ".hydra" / "config.yaml").write_text(content)
    done = bantam("train.py", "-m", "hparams_search=optuna", *few, *one)
    assert done.returncode == 0, done.stderr
    assert best.read_bytes() == kept
    best.unlink()
    done = bantam("train.py", "-m", "hparams_search=optuna", *few, *one)
    assert done.returncode == 0, done.stderr
    said = "It cannot be run again: multirun/optuna/0/.hydra/config.yaml is damaged, or of another version"
    assert said in " ".join(done.stdout.split())
    assert not best.exists()


def test_what_is_missing_of_a_trial_is_said_with_other_trials_to_confirm(
    finished_study: Path, tmp_path: Path
) -> None:
    for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
        study = shutil.copytree(finished_study, tmp_path / name)
        (study / "0" / ".hydra" / name).unlink()
        with pytest.raises(ValueError, match=f"its .hydra/{name} is missing; restore it.*--trials"):
            confirm.confirm(study, 1, 2, PROJECT / "train.py")
