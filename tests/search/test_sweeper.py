import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf
from searches import hydra

from bantam import config
from bantam.budget import count


def test_the_default_search() -> None:
    settings = hydra("hparams_search=optuna").sweeper
    assert settings._target_ == "bantam.search.sweeper.BantamSweeper"
    assert settings.params == {
        "optimizer.lr": "tag(log, interval(0.005, 0.3))",
        "optimizer.momentum": "interval(0.7, 0.97)",
        "scheduler.step_size": "range(2, 11)",
        "scheduler.gamma": "interval(0.05, 0.7)",
        "model.width": "range(8, 21)",
    }
    assert (settings.n_trials, settings.n_jobs, settings.storage) == (30, None, None)
    assert (settings.sampler.multivariate, settings.sampler.constant_liar) == (True, True)
    assert settings.enqueue[1] == {
        "optimizer.lr": 0.025,
        "optimizer.momentum": 0.8,
        "scheduler.step_size": 6,
        "scheduler.gamma": 0.1,
        "model.width": 16,
    }


def test_the_search_for_a_network_has_two_objectives_and_the_champions_recipe() -> None:
    with initialize_config_dir(str(PROJECT / "conf")):
        loader = GlobalHydra.instance().config_loader()
        cfg = loader.load_configuration("config", ["hparams_search=architecture"], RunMode.MULTIRUN)
        champion = loader.load_configuration("config", ["experiment=champion"], RunMode.MULTIRUN)
    settings = cfg.hydra.sweeper
    assert settings.objectives == ["accuracy", "parameters"]
    assert settings.pruner._target_ == "bantam.search.pruners.Dominated"
    assert cfg.model._target_ == "bantam.models.Flexible"
    assert cfg.data.validation == 10_000
    found, recipe = (OmegaConf.to_container(each, resolve=False) for each in (cfg, champion))
    assert isinstance(found, dict)
    assert isinstance(recipe, dict)
    for key in ("optimizer", "scheduler", "augmentation", "batch_size", "ema", "label_smoothing"):
        assert found[key] == recipe[key]
    sizes = []
    for known in settings.enqueue:
        assert set(known) == set(settings.params)
        widths = {key.removeprefix("model."): value for key, value in known.items()}
        sizes.append(count(instantiate(cfg.model, _execution_whitelist_=config.WHITELIST, **widths)))
    for key, value in settings.enqueue[0].items():  # the search begins with the champion
        assert OmegaConf.select(champion, key) == value
    assert sizes == [9440, 7532, 4064, 3044]


def test_a_study_has_its_folder_by_name() -> None:
    assert hydra("hparams_search=optuna", "hydra.sweeper.study_name=mine").sweep.dir == "multirun/mine"


def test_the_stock_sweeper_stays_usable() -> None:
    target = hydra("hydra/sweeper=optuna").sweeper._target_
    assert target == "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"


def test_hyperband_knows_how_long_a_training_is() -> None:
    assert (
        hydra("hparams_search=optuna", "hydra/sweeper/pruner=hyperband", "epochs=7").sweeper.pruner.max_resource
        == 7
    )


@pytest.mark.parametrize("override", ["hydra.sweeper.n_trialss=3", "hydra.sweeper.n_trials=many"])
def test_mistakes_are_refused_while_composing(override: str) -> None:
    with pytest.raises(HydraException, match="n_trials"):
        hydra("hparams_search=optuna", override)


def test_a_job_may_inherit_the_search() -> None:
    """Launched jobs are composed with the command line's hparams_search: as a single run it changes no model."""
    with initialize_config_dir(str(PROJECT / "conf")):
        loader = GlobalHydra.instance().config_loader()
        plain = loader.load_configuration("config", [], RunMode.RUN)
        inherited = loader.load_configuration("config", ["hparams_search=optuna"], RunMode.RUN)
    for key in ("model", "optimizer", "scheduler", "augmentation", "budget", "target", "epochs"):
        assert inherited[key] == plain[key]
    assert OmegaConf.select(inherited, "data.validation") == 5000


def test_a_single_run_does_not_import_optuna(tmp_path: Path) -> None:
    program = "import sys, train; sys.exit('optuna' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT).returncode == 0
