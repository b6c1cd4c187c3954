import pickle
import shutil
from pathlib import Path

import pytest
from commands import PROJECT
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.execution_policy import execution_whitelist
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bantam import config, snapshot
from bantam.search import composition


def multirun(loader: ConfigLoaderImpl, *overrides: str) -> DictConfig:
    """The configuration of a multirun."""
    return loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)


TRIALS = (
    ["hparams_search=optuna", "optimizer.lr=0.01", "model.width=8"],
    ["hparams_search=optuna", "optimizer.lr=0.02", "model.width=9", "seed=3"],
    ["optimizer.lr=1e-3", "hparams_search=optuna", "model=flexible", "data.mean=[0.1]", "budget={parameters: 5}"],
    ["hparams_search=optuna", "model=flexible", "data.mean=${optimizer.lr}", "experiment=v2"],
    ["hparams_search=optuna", "optimizer.lr=0.03", "optimizer.lr=0.04", "hydra.sweep.subdir=5/seed_2"],
    ["hparams_search=optuna", "+model.more=0.2", "optimizer.lr=0.03"],
    ["hparams_search=optuna", "data.root='a b'", "scheduler=one_cycle", "scheduler.warmup=0.25"],
)


def test_a_trial_is_composed_as_by_hydra_though_what_trials_have_in_common_is_composed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with initialize_config_dir(str(PROJECT / "conf")):
        loader: ConfigLoaderImpl = GlobalHydra.instance().config_loader()  # type: ignore[assignment]
        search = multirun(loader, "hparams_search=optuna", "optimizer.momentum=0.7")
        snapshot.take(loader)
        composed: list[int] = []
        plain = composition._plain_job
        monkeypatch.setattr(composition, "_plain_job", lambda *given: [composed.append(1), plain(*given)][1])
        for _ in range(2):
            for overrides in TRIALS:
                expected, found = plain(loader, search, overrides), loader.load_sweep_config(search, overrides)
                assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)
                assert OmegaConf.is_struct(found) == OmegaConf.is_struct(expected)
                assert OmegaConf.is_readonly(found.hydra) == OmegaConf.is_readonly(expected.hydra)
        # Six of the seven once, and the one that adds a key each time.
        assert len(composed) == 8
        found.optimizer.lr = 7.0
        assert loader.load_sweep_config(search, ["hparams_search=optuna"]).optimizer.lr != 7.0


def test_what_hydra_refuses_in_a_trial_is_refused() -> None:
    with initialize_config_dir(str(PROJECT / "conf")):
        loader: ConfigLoaderImpl = GlobalHydra.instance().config_loader()  # type: ignore[assignment]
        search = multirun(loader, "hparams_search=optuna")
        for refused in ("optimizer.rate=3", "model=none_such", "hydra/launcher=joblib"):
            with pytest.raises(ConfigCompositionException):
                loader.load_sweep_config(search, ["hparams_search=optuna", refused])


def test_another_search_in_the_process_and_other_multiruns_compose_their_own(tmp_path: Path) -> None:
    with initialize_config_dir(str(PROJECT / "conf")):
        loader: ConfigLoaderImpl = GlobalHydra.instance().config_loader()  # type: ignore[assignment]
        for momentum in ("0.7", "0.6"):
            typed = ["hparams_search=optuna", f"optimizer.momentum={momentum}"]
            search = multirun(loader, *typed, f"hydra.sweep.dir={tmp_path}")
            found = loader.load_sweep_config(search, [*typed, "optimizer.lr=0.5"])
            assert (found.optimizer.momentum, found.optimizer.lr) == (float(momentum), 0.5)
            assert found.hydra.sweep.dir == str(tmp_path)
        basic = multirun(loader, "epochs=3")
        assert loader.load_sweep_config(basic, ["epochs=4", "optimizer.lr=0.5"]).epochs == 4


def test_a_worker_composes_from_the_options_that_it_was_given(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(PROJECT / "conf", conf)
    with initialize_config_dir(str(conf)):
        loader: ConfigLoaderImpl = GlobalHydra.instance().config_loader()  # type: ignore[assignment]
        options = snapshot.take(loader)
        search = multirun(loader, "hparams_search=optuna")
        typed = ["hparams_search=optuna"]
        loader.load_sweep_config(search, typed)
        handed_on = pickle.loads(pickle.dumps((search, options, composition.composed)))
    shutil.rmtree(conf)
    whole = HydraConfig.instance().cfg
    try:
        with execution_whitelist(config.WHITELIST):  # as @hydra.main does
            context = composition.context(*handed_on)
        assert [*composition.composed] == [("hparams_search=optuna",)]
        for overrides in ([*typed, "model.width=9"], [*typed, "model=skeleton", "model.width=9"]):
            job = context.config_loader.load_sweep_config(handed_on[0], overrides)
            assert (job.model.width, job.hydra.job.name) == (9, search.hydra.job.name)
        assert len(composition.composed) == 2
        assert HydraConfig.get().sweeper.study_name == "optuna"
        assert [type(each).__name__ for each in context.callbacks.callbacks] == ["Preflight"]
    finally:
        HydraConfig.instance().cfg = whole
        GlobalHydra.instance().clear()
