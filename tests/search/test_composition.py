import pickle
import shutil
import sys
from pathlib import Path

import pytest
from commands import PROJECT
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.execution_policy import execution_whitelist
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bantam import config, snapshot
from bantam.own import code
from bantam.search import composition
from bantam.training import costs


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
    ["hparams_search=optuna", "optimizer.lr=0.1", "optimizer={lr: 0.5}", "model.width=9"],
    ["hparams_search=optuna", "optimizer.lr=0.1", "optimizer[lr]=0.5", "target.accuracy=90", "model.width=9"],
    [
        "hparams_search=optuna",
        "target.accuracy=90",
        "target={accuracy: 50}",
        "optimizer={lr: 0.5}",
        "optimizer.lr=3",
    ],
    ["optimizer.lr=0.5", "hparams_search=optuna", "optimizer=adamw", "model.width=9", "model=skeleton"],
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
        # Each once, and the one that adds a key each time.
        assert len(composed) == len(TRIALS) + 1
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


NETWORK = """
from torch import nn

class Tiny(nn.Sequential):
    def __init__(self, width: int = 4, classes: int = 10) -> None:
        super().__init__(nn.Conv2d(1, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
"""


def test_a_worker_composes_from_the_options_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, mine = tmp_path / "conf", tmp_path / "mine.py"
    shutil.copytree(PROJECT / "conf", conf)
    mine.write_text(NETWORK)
    typed = ["hparams_search=optuna", f"model={mine}:Tiny", "hydra.job.name=trial_${hydra.job.num}"]
    monkeypatch.setattr(sys, "argv", ["train.py", *typed])
    with initialize_config_dir(str(conf)):
        loader: ConfigLoaderImpl = GlobalHydra.instance().config_loader()  # type: ignore[assignment]
        options = snapshot.take(loader)
        search = multirun(loader, *typed)
        loader.load_sweep_config(search, typed[:2])
        handed_on = pickle.loads(pickle.dumps((search, options, composition.composed)))
    shutil.rmtree(conf)
    mine.unlink()
    whole, name = HydraConfig.instance().cfg, JobRuntime.instance().get("name")
    monkeypatch.setattr(code, "_allowed", {})  # as in a process that has composed nothing
    try:
        with execution_whitelist(config.WHITELIST):  # as @hydra.main does
            context = composition.context(*handed_on, "train")
        assert JobRuntime.instance().get("name") == "train"
        assert [*composition.composed] == [tuple(typed[:2])]
        for overrides in (
            [*typed[:2], "model.width=9"],
            ["hparams_search=optuna", "model=skeleton", "model.width=9"],
        ):
            job = context.config_loader.load_sweep_config(handed_on[0], overrides)
            assert job.model.width == 9
            assert costs.count(job, job.hydra.runtime.choices)[1]["parameters"] > 0
        assert len(composition.composed) == 2
        assert HydraConfig.get().sweeper.study_name == "optuna"
        assert [type(each).__name__ for each in context.callbacks.callbacks] == ["Preflight"]
    finally:
        JobRuntime.instance().set("name", name)
        HydraConfig.instance().cfg = whole
        GlobalHydra.instance().clear()
