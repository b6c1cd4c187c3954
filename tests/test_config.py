"""Every file of conf/ composes, and what is wrong is refused by its name."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException, HydraException
from hydra.utils import get_class, get_method
from omegaconf import DictConfig
from small_images import write_folder, write_npz

from bantam import ranges, resolve

CONF = Path(__file__).parent.parent / "conf"
GROUPS = ("model", "optimizer", "scheduler", "augmentation", "data", "experiment")
OPTIONS = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
Compose = Callable[..., DictConfig]


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """What the options need that take images of one's own."""
    return {"npz": write_npz(tmp_path / "my.npz"), "folder": write_folder(tmp_path / "pictures")}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_file_composes_and_is_valid(composed: Compose, own: dict[str, str], group: str, option: str) -> None:
    root = [f"data.root={own[option]}"] if option in own else []
    cfg = composed(f"{group}={option}", *root)
    resolve.settle(cfg, Path.cwd())
    ranges.validate(cfg)
    assert (cfg.model.channels, cfg.model.classes) == (cfg.data.channels, cfg.data.classes)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=npz"], "data.root has no value: set it, for example data.root=my.npz"),
        (["data=folder"], "data.root has no value: set it, for example data.root=pictures"),
        (
            ["data=npz", "data.root={npz}", "data.side=28"],
            "data.side is 28, but {npz} has images of 3×20×20 in 3 cl",
        ),
        (["data=npz", "data.root={npz}", "data.classes=2"], "data.classes is 2, but {npz} has images of 3×20×20"),
        (
            ["data=folder", "data.root={folder}", "data.classes=9"],
            "data.classes is 9, but {folder}/train has 2 classes",
        ),
        (
            ["data=folder", "data.root={folder}", "data.side=null"],
            "data.side is null: pictures are fitted to a number",
        ),
        (
            ["data=mnist5k", "data.classes=null"],
            "data.classes is null, which only data=npz and data=folder can be",
        ),
        (["data=npz", "data.root={folder}"], "data.root={folder} is a folder: give the .npz file with the images"),
    ],
)
def test_what_images_are_like_is_settled_before_a_network_is_counted(
    composed: Compose, own: dict[str, str], overrides: list[str], message: str
) -> None:
    cfg = composed(*(override.format(**own) for override in overrides))
    with pytest.raises(ValueError, match=re.escape(message.format(**own))):
        resolve.settle(cfg, Path.cwd())


def test_classes_without_an_image_may_be_said(composed: Compose, own: dict[str, str]) -> None:
    cfg = composed("data=npz", f"data.root={own['npz']}", "data.classes=7", "model=flexible")
    resolve.settle(cfg, Path.cwd())
    assert (cfg.model.channels, cfg.model.classes, cfg.data.side) == (3, 7, 20)


def test_a_shift_goes_no_further_than_the_image(composed: Compose) -> None:
    ranges.validate(composed("augmentation.pixels=32", "data=cifar10"))
    with pytest.raises(
        ValueError, match="augmentation.pixels is 29.0: it must be at least 0 and at most 28, which is "
    ):
        ranges.validate(composed("augmentation.pixels=29"))


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if pair[0] != "experiment"])
def test_every_key_is_an_argument_of_what_it_configures(composed: Compose, group: str, option: str) -> None:
    node = composed(f"{group}={option}")[group]
    find = get_method if node._target_.split(".")[-1][0].islower() else get_class
    arguments = inspect.signature(find(node._target_)).parameters
    keys = {str(key) for key in node if not str(key).startswith("_")}
    assert keys <= set(arguments)


def test_the_default_is_v2_as_the_study_says(composed: Compose) -> None:
    cfg = composed()
    assert cfg.model._target_ == "bantam.models.V2"
    assert (cfg.optimizer.lr, cfg.optimizer.momentum) == (0.025, 0.8)
    assert (cfg.scheduler.step_size, cfg.scheduler.gamma) == (6, 0.1)
    assert (cfg.augmentation.brightness, cfg.augmentation.contrast, cfg.augmentation.degrees) == (0.1, 0.1, 7)
    assert (cfg.batch_size, cfg.epochs, cfg.seed) == (128, 15, 1)
    assert (cfg.budget.parameters, cfg.budget.epochs) == (10_000, 15)
    assert (cfg.target.accuracy, cfg.target.last_epochs) == (99.4, 5)


@pytest.mark.parametrize(
    ("experiment", "model", "scheduler", "lr", "momentum"),
    [
        ("skeleton", "Skeleton", "LossDip", 0.02, 0.9),
        ("v1", "V1", "MultiStepLR", 0.03, 0.9),
        ("v1_as_recorded", "V1", "ConstantLR", 0.03, 0.9),
        ("v2", "V2", "StepLR", 0.025, 0.8),
        ("v2_as_recorded", "V2", "ConstantLR", 0.025, 0.8),
        ("champion", "Flexible", "OneCycle", 0.035, 0.9),
        ("flyweight", "Flexible", "OneCycle", 0.035, 0.9),
        ("sprint", "Flexible", "OneCycle", 0.035, 0.9),
    ],
)
def test_experiments(
    composed: Compose, experiment: str, model: str, scheduler: str, lr: float, momentum: float
) -> None:
    cfg = composed(f"experiment={experiment}")
    assert cfg.model._target_.split(".")[-1] == model
    assert cfg.scheduler._target_.split(".")[-1] == scheduler
    assert (cfg.optimizer.lr, cfg.optimizer.momentum) == (lr, momentum)


def test_the_command_line_wins_over_an_experiment(composed: Compose) -> None:
    cfg = composed("experiment=skeleton", "scheduler=constant", "optimizer.lr=0.03")
    assert cfg.scheduler._target_.endswith("ConstantLR")
    assert cfg.optimizer.lr == 0.03


@pytest.mark.parametrize(
    "override",
    ["optimizer.lrr=1", "epoch=3", "model.widht=3", "data.rot=x", "budget.parameter=5", "scheduler.step=2"],
)
def test_an_unknown_key_is_refused_by_name(composed: Compose, override: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        composed(override)
    chain = f"{caught.value} {caught.value.__cause__}"
    assert override.split("=")[0] in chain
    assert "Did you mean" in chain


@pytest.mark.parametrize(
    "override",
    [
        "epochs=many",
        "epochs=1.5",
        "seed=one",
        "model.width=wide",
        "optimizer.lr=fast",
        "optimizer.nesterov=perhaps",
        "augmentation.degrees=left",
        "augmentation.interpolation=cubic",
        "data.validation=some",
        "device=tpu",
        "precision=float8",
        "compile=sometimes",
        "budget.parameters=few",
        "target.accuracy=high",
    ],
)
def test_a_wrong_type_is_refused_by_name(composed: Compose, override: str) -> None:
    with pytest.raises(HydraException) as caught:
        composed(override)
    assert override.split("=")[0] in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=-1", "optimizer.lr is -1.0: it must be above 0"),
        ("optimizer.lr=0", "optimizer.lr is 0.0: it must be above 0"),
        ("optimizer.lr=nan", "optimizer.lr is nan: it must be a finite number above 0"),
        ("optimizer.lr=inf", "optimizer.lr is inf"),
        ("optimizer.momentum=nan", "optimizer.momentum is nan"),
        ("optimizer.momentum=1", "optimizer.momentum is 1.0: it must be at least 0 and below 1"),
        ("scheduler.step_size=0", "scheduler.step_size is 0: it must be at least 1"),
        ("scheduler.gamma=nan", "scheduler.gamma is nan"),
        ("model.width=0", "model.width is 0: it must be at least 1"),
        ("model.dropout=1", "model.dropout is 1.0: it must be at least 0 and below 1"),
        ("epochs=0", "epochs is 0: it must be at least 1"),
        ("batch_size=0", "batch_size is 0: it must be at least 1"),
        ("threads=0", "threads is 0"),
        ("data.validation=-1", "data.validation is -1"),
        ("data.side=0", "data.side is 0: it must be at least 1"),  # which model.side is too
        ("target.accuracy=101", "target.accuracy is 101.0"),
        ("+colour=1", "colour is no key of Bantam: see python train.py --help"),
        ("+epoch=3", "epoch is no key of Bantam: did you mean epochs?"),
        ("+budget.parameter=3", "budget.parameter is no key of Bantam: did you mean budget.parameters?"),
        ("+optimizer.dampening=nan", "optimizer.dampening is nan"),
        ("optimizer.lr=???", "optimizer.lr has no value"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(composed: Compose, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ranges.validate(composed(override))


def test_every_number_of_a_list_is_checked(composed: Compose) -> None:
    assert composed("data.mean=[0.5,0,1]").data.mean == [0.5, 0, 1]
    with pytest.raises(ValueError, match="scheduler.milestones is 0: it must be at least 1"):
        ranges.validate(composed("scheduler=multistep", "scheduler.milestones=[5,0]"))
