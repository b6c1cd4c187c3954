from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROJECT
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from bantam.training import saved

Compose = Callable[..., DictConfig]


def write_hydra(folder: Path, cfg: DictConfig) -> saved.Saved:
    """The folder of a run with this configuration."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    (folder / ".hydra" / "overrides.yaml").write_text("- model.width=8\n")
    choices = {"model": "v2", "data": "mnist5k", "experiment": None, "hydra/launcher": "basic"}
    OmegaConf.save(
        OmegaConf.create({"hydra": {"runtime": {"choices": choices}}}), folder / ".hydra" / "hydra.yaml"
    )
    return saved.load(folder)


def test_what_came_from_outside_is_saved_as_it_was_and_references_are_kept(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEED", "3")
    cfg = composed("scheduler=one_cycle", "seed=${oc.env:SEED}", "data.root=${oc.env:SEED}/data")
    write_hydra(tmp_path, cfg)
    saved.save(tmp_path, cfg)
    monkeypatch.setenv("SEED", "4")
    again = saved.load(tmp_path).config
    assert (again.seed, again.data.split_seed, again.data.root) == (3, 3, "3/data")
    again.epochs = 7
    assert again.scheduler.epochs == 7


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *(("${oc.env:SEED}", "3"), ("${ oc.env:SEED }", "3"), ("${oc.env:${name}}", "3"), ("${${of}:SEED}", "3")),
        *(("${name}:${of}", "${name}:${of}"), ("${name}", "${name}"), ("a: {b}", "a: {b}")),
    ],
)
def test_whatever_calls_a_resolver_is_saved_as_it_was(
    value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEED", "3")
    cfg = OmegaConf.create({"name": "SEED", "of": "oc.env", "value": value})
    assert saved.pinned(cfg)["value"] == expected


def test_overrides_are_merged_into_the_runs_own_configuration(composed: Compose, tmp_path: Path) -> None:
    own = write_hydra(tmp_path, composed("data=mnist5k", "model.width=8"))
    assert saved.merged(own, []) == (own.config, [])
    cfg, keys = saved.merged(own, ["optimizer.lr=0.5", "target.accuracy=90"])
    assert (cfg.optimizer.lr, cfg.model.width, keys) == (0.5, 8, ["optimizer.lr", "target.accuracy"])
    with initialize_config_dir(str(PROJECT / "conf")):
        cfg, keys = saved.merged(own, ["data=fashion_mnist", "data.validation=500"])
    assert (cfg.data._target_, cfg.data.validation) == ("bantam.data.torchvision_dataset", 500)
    assert {key.partition(".")[0] for key in keys} == {"data"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "optimizer.lrr is no key of the run in"),
        ("optimizer.lr=1,2", "is no plain key=value"),
        ("~optimizer.lr", "is no plain key=value"),
        ("+optimizer.colour=1", "is no plain key=value"),
        ("experiment=champion", "chooses a whole recipe: give the single keys"),
        ("optimizer.lr=(", r"write 'optimizer.lr=\"\(\"'"),
    ],
)
def test_what_cannot_be_merged_is_one_sentence(
    composed: Compose, tmp_path: Path, override: str, message: str
) -> None:
    own = write_hydra(tmp_path, composed("data=mnist5k"))
    with initialize_config_dir(str(PROJECT / "conf")), pytest.raises(ValueError, match=message):
        saved.merged(own, [override])


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml", "hydra.yaml"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"- a: [", None])
def test_a_damaged_configuration_is_one_sentence(
    composed: Compose, tmp_path: Path, name: str, content: bytes | None
) -> None:
    write_hydra(tmp_path, composed())
    file = tmp_path / ".hydra" / name
    file.unlink() if content is None else file.write_bytes(content)
    if (name, content) == ("overrides.yaml", b""):
        assert saved.load(tmp_path).overrides == []  # nothing was typed
        return
    with pytest.raises(ValueError, match=f"is no run folder: its .hydra/{name} "):
        _ = saved.load(tmp_path).choices


@pytest.mark.parametrize("below", ["3", "2026-11-29/14-30-00"])
def test_a_folder_of_runs_names_one(composed: Compose, tmp_path: Path, below: str) -> None:
    write_hydra(tmp_path / below, composed())
    said = f"is no run folder, but holds some: give one, such as {tmp_path / below}"
    with pytest.raises(ValueError, match=said):
        saved.load(tmp_path)


def test_a_run_that_is_older_than_the_shape_of_images_has_the_one_of_then(
    composed: Compose, tmp_path: Path
) -> None:
    for model in ("v2", "skeleton", "flexible"):
        cfg = composed(f"model={model}", "data=mnist5k")
        older = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
        for group in (older.model, older.data):
            for key in ("channels", "side", "classes"):
                group.pop(key, None)
        own = write_hydra(tmp_path / model, older)
        assert saved.differences(own.config, cfg) == []
        assert own.checked.model.classes == 10
        assert own.settings["model.channels"] == 1


def test_a_reference_is_the_same_as_the_value_that_it_has(composed: Compose) -> None:
    plain = composed("seed=3")
    assert saved.differences(plain, composed("seed=3", "data.split_seed=3")) == []
    assert saved.differences(plain, composed("seed=3", "data.split_seed=4")) == ["data.split_seed"]
    assert saved.differences(plain, composed("seed=4")) == ["seed"]
    assert saved.followed({"a": "${b}", "b": "${a}"}, "a") == "${a}"
