import re
import shutil
import sys
from pathlib import Path

import pytest
from commands import PROJECT, Bantam
from hydra import compose, initialize_config_dir
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from bantam import config, snapshot
from bantam.own import code
from bantam.snapshot import Snapshot

SHORT = ("data=mnist5k", "data.validation=2000", "threads=1", "report=false", "pictures=false", "epochs=2")


def options(folder: Path) -> Path:
    """A folder for --config-dir with an option of the optimizer; returns the option's file."""
    file = folder / "mine" / "optimizer" / "own.yaml"
    file.parent.mkdir(parents=True)
    shutil.copy(PROJECT / "conf" / "optimizer" / "sgd.yaml", file)
    return file


def edit(file: Path) -> None:
    """Give the option another learning rate."""
    file.write_text(re.sub("(?m)^lr:.*", "lr: 0.0777", file.read_text()))


def rates(folder: Path) -> list[float]:
    """The learning rate of every job with the option, as its folder says."""
    configs = [OmegaConf.load(path) for path in folder.glob("**/[0-9]/.hydra/config.yaml")]
    return [cfg.optimizer.lr for cfg in configs if "momentum" in cfg.optimizer]


@pytest.mark.whole
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_editing_an_option_changes_no_later_job(bantam: Bantam, tmp_path: Path, launcher: str) -> None:
    file = options(tmp_path)
    line = ("-m", "--config-dir", "mine", *SHORT, "optimizer=own", "model.width=3,4", "hydra.sweep.dir=jobs")
    launch = (f"hydra/launcher={launcher}", *(("hydra.launcher.n_jobs=1",) if launcher == "joblib" else ()))
    if launcher == "joblib":
        line = (*line, "hydra.launcher.pre_dispatch=1")
    process = bantam.start("train.py", *line, *launch, hold=1)
    if launcher == "basic":
        bantam.wait_until_held("0")
    else:  # its processes are no forks of the test's
        while not (tmp_path / "jobs" / "0" / ".hydra").exists():
            assert process.poll() is None
    edit(file)
    bantam.let_go()
    output, _ = process.communicate(300)
    assert process.returncode == 0, output
    assert rates(tmp_path / "jobs") == [0.025, 0.025]


@pytest.mark.whole
def test_editing_an_option_of_a_searched_group_changes_no_later_trial(bantam: Bantam, tmp_path: Path) -> None:
    """In a folder with a time stamp, which workers that begin in another second must find."""
    file = options(tmp_path)
    process = bantam.start(
        *("train.py", "-m", "hydra/sweeper=bantam", "--config-dir", "mine", *SHORT, "model.width=3"),
        *("optimizer=choice(own,adamw)", "label_smoothing=choice(0.0,0.1)", "hydra/sweeper/sampler=grid"),
        *("hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1"),
        hold=1,
    )
    bantam.wait_until_held("0")
    edit(file)
    bantam.let_go()
    output, _ = process.communicate(300)
    assert process.returncode == 0, output
    assert rates(tmp_path / "multirun") == [0.025, 0.025]
    assert len(list((tmp_path / "multirun").glob("*/*"))) == 1


def test_what_is_kept_is_what_hydra_reads(tmp_path: Path) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text("a: 1\n")
    path = ConfigSearchPathImpl()
    for folder in (PROJECT / "conf", tmp_path):
        path.append("main", f"file://{folder}")
    plain, kept = ConfigRepository(path), Snapshot(path)
    for group in ("", "model", "optimizer", "hparams_search", "nothing", "model/v2"):
        assert kept.group_exists(group) == plain.group_exists(group)
        if plain.group_exists(group) and group:
            for kind in (ObjectType.CONFIG, ObjectType.GROUP, None):
                assert kept.get_group_options(group, kind) == plain.get_group_options(group, kind)
    for name in ("config", "model/v2", "experiment/champion.yaml", "nothing"):
        one, other = kept.load_config(name), plain.load_config(name)
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one.config, one.header, one.path) == (other.config, other.header, other.path)
            assert one.defaults_list == other.defaults_list
    assert not kept.config_exists("run/.hydra/config")


def test_a_network_of_ones_own_is_as_it_was_when_it_was_composed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.register()
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self, width: int = 3):\n        ...\n"
    )
    monkeypatch.setattr(sys, "argv", ["train.py", f"model={mine}:Net"])
    with initialize_config_dir(str(PROJECT / "conf")):
        cfg = compose("config", [f"model={mine}:Net"])
        mine.write_text("edited while PyTorch was being imported")
        kept = snapshot.take(GlobalHydra.instance().config_loader())
    (own,) = kept.networks.values()
    assert isinstance(own, code.Code)
    assert own.checksum == cfg.model._sha256_
