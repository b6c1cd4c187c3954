"""model=mine.py:Net on the command line: trained, searched, evaluated, confirmed, refused in one sentence."""

import json
import signal
from pathlib import Path

import pytest
from commands import Bantam
from omegaconf import OmegaConf

from bantam.config import TARGETS

NET = '''
import torch.nn.functional as F
from torch import nn


class Excite(nn.Module):
    """Channels weighted by what all of the map says."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.layers(x)


class Net(nn.Module):
    def __init__(self, width: int = 8, classes: int = 10, rate: float = 0.1):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.GELU(), nn.GroupNorm(2, width))
        self.conv2 = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(), nn.Dropout(rate))
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.excite, self.fc = Excite(width), nn.Linear(width, classes)

    def forward(self, x):
        x = self.conv2(self.conv1(x))
        x = F.max_pool2d(x + self.excite(self.block(x)), 2)
        return F.log_softmax(self.fc(x.mean((2, 3))), dim=1)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(4))
        self.classifier = nn.Sequential(nn.Linear(144, 10))

    def forward(self, x):
        return self.classifier(self.features(x).view(x.size(0), -1))
'''

REST = ("epochs=1", "pictures=false", "threads=1", "report=false", "kernels=torch")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file with two networks."""
    file = tmp_path / "mine.py"
    file.write_text(NET)
    return file


@pytest.fixture
def images(few_root: Path) -> tuple[str, ...]:
    return (*REST, "data=fashion_mnist", f"data.root={few_root}")


def test_typed_in_a_folder_it_is_trained_and_evaluated_when_it_is_gone(
    bantam: Bantam, mine: Path, images: tuple[str, ...], tmp_path: Path
) -> None:
    result = bantam("train.py", "model=mine.py:Net", "model.width=4", *images, "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    assert "mine.py:Net: width 4, rate 0.1" in " ".join(result.stdout.split())
    assert "log_softmax, which the loss has too: cross-entropy of the result is the same" in result.stdout
    assert (tmp_path / "run" / "network.py").read_text() == NET
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert sum(row["parameters"] for row in found["layers"]) == found["parameters"]
    assert found["model"] == "mine.py:Net"
    mine.unlink()
    result = bantam("evaluate.py", "run")
    assert result.returncode == 0, result.stderr
    assert "exactly as recorded" in result.stdout
    (tmp_path / "run" / "network.py").write_text(NET.replace("GELU", "ReLU"))
    result = bantam("evaluate.py", "run")
    assert result.stderr == "Error: run/network.py is not the file that the run was trained with: restore it\n"


@pytest.mark.whole
def test_a_class_without_arguments_beside_one_of_bantams(
    bantam: Bantam, mine: Path, images: tuple[str, ...], tmp_path: Path
) -> None:
    line = ("-m", "model=mine.py:Plain,skeleton,mine.py:Net", *images, "hydra.sweep.dir=jobs")
    result = bantam("train.py", *line, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    assert result.returncode == 0, result.stderr
    kept = [(tmp_path / "jobs" / str(job) / "network.py").exists() for job in range(3)]
    assert kept == [True, False, True]
    mine.write_text(mine.read_text() + "\n")
    again = bantam("train.py", *line)
    assert again.returncode == 1
    said = (
        "Error: mine.py has changed since the run in jobs/0 was begun: choose another hydra.sweep.dir, or put the"
    )
    assert again.stderr.startswith(f"{said} file back as it was, which jobs/0/network.py has kept"), again.stderr
    assert "mine.py:Plain reshapes with view, which needs channels_last=false and has it now" in result.stdout


@pytest.mark.whole
def test_an_interrupted_run_goes_on_when_the_file_has_changed(
    bantam: Bantam, mine: Path, images: tuple[str, ...], tmp_path: Path
) -> None:
    line = ("model=mine.py:Net", *images, "epochs=2")
    process = bantam.start("train.py", *line, "hydra.run.dir=run", hold=1)
    bantam.wait_until_held("run")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    mine.write_text(mine.read_text() + "\n")
    result = bantam("train.py", "resume=run", "model=mine.py:Net")
    assert result.returncode == 1
    said = (
        "mine.py has changed since the run in run was begun, which is resumed with its own network, run/network.py"
    )
    assert f"{said}: leave model=mine.py:Net out" in result.stderr
    same = tmp_path / "same" / "mine.py"
    same.parent.mkdir()
    same.write_text(mine.read_text()[:-1])
    mine.write_text("raise SystemExit(3)\n")
    result = bantam("train.py", "resume=run", f"model={same}:Net")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.whole
def test_its_arguments_are_searched_and_the_best_is_confirmed(bantam: Bantam, mine: Path, tmp_path: Path) -> None:
    line = ("model=mine.py:Net", "model.width=4,6", *REST, "data=mnist5k", "data.validation=500")
    study = ("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", "hydra.sweep.dir=study")
    result = bantam("train.py", "-m", "hydra/sweeper=bantam", *line, *study)
    assert result.returncode == 0, result.stderr
    last = " ".join(result.stdout.split())
    assert "experiment=best model=" in last
    number = OmegaConf.load(tmp_path / "study" / "summary.json").best.number
    assert f"study/{number}/network.py:Net" in last
    experiment = (tmp_path / "study" / "experiment" / "best.yaml").read_text()
    assert "override /model" not in experiment
    add = f"which is imported only when it is typed: add model=study/{number}/network.py:Net\n"
    result = bantam("train.py", "--config-dir", "study", "experiment=best")
    assert result.stderr == f"Error: study/experiment/best.yaml has a network of your own, {add}"
    same = tmp_path / "same" / "mine.py"
    same.parent.mkdir()
    same.write_text(mine.read_text())
    result = bantam("train.py", "-m", "hydra/sweeper=bantam", f"model={same}:Net", *line[1:], *study)
    assert result.returncode == 0, result.stderr
    assert "2 complete" in result.stdout
    mine.write_text(mine.read_text() + "\n")
    result = bantam("train.py", "-m", "hydra/sweeper=bantam", *line, *study)
    assert result.returncode == 1
    said = (
        "mine.py has changed since the study study was begun: put it back as it was (study/0/network.py is a copy)"
    )
    assert said in result.stderr
    mine.write_text("raise SystemExit(3)\n")
    chosen = ("experiment=best", f"model=study/{number}/network.py:Net")
    result = bantam("train.py", "--config-dir", "study", *chosen, "dry_run=true")
    assert result.returncode == 0, result.stderr
    result = bantam("confirm.py", "study", "--top", "2", "--seeds", "2", "--validation-only")
    assert result.returncode == 0, result.stderr
    widths = {
        path.name: OmegaConf.load(path / ".hydra" / "config.yaml").model.width
        for path in (tmp_path / "study" / "confirm").glob("trial_*")
    }
    found = (tmp_path / "study").glob("[0-9]*/.hydra/config.yaml")
    searched = {int(path.parts[-3]): OmegaConf.load(path).model.width for path in found}
    assert widths == {f"trial_{i}-validation-{seed}": width for i, width in searched.items() for seed in (2, 3)}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("model=mine.py:Nett", "model=mine.py:Nett cannot be used: {file} has no class Nett: did you mean Net?"),
        ("model=there.py:Net", "there.py is no file of Python: it does not exist"),
        ("model.width=eight", "Value 'eight' of type 'str' could not be converted to Integer"),
        ("model.widht=4", "model.widht is no key: did you mean model.width=4?"),
        (
            "model.width=-2",
            "width=-2, classes=10, rate=0.1: RuntimeError in {file}, line 20: Trying to",
        ),
        ("model.width=5", "ValueError in {file}, line 20: num_channels (5) must be divisible by num_groups (2): "),
        (
            "model.classes=9",
            "returns 2×9 for two images, not 2×10: a logit for each class; its last layer",
        ),
        ("data.validation=eight", "data.validation"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    bantam: Bantam, mine: Path, images: tuple[str, ...], tmp_path: Path, typed: str, said: str
) -> None:
    words = [typed] if typed.startswith("model=") else ["model=mine.py:Net", typed]
    result = bantam("train.py", *words, *images)
    assert result.returncode == 1
    assert said.format(file=mine) in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class Net(:\n", "SyntaxError in {file}, line 1: invalid syntax"),
        ("import nowhere\n", "ModuleNotFoundError in {file}, line 1: No module named 'nowhere'"),
        ("x = 1\n\ny = x / 0\n", "ZeroDivisionError in {file}, line 3: division by zero"),
        ("", "{file} has no class Net"),
        ("import sys\nsys.exit(3)\n", "SystemExit in {file}, line 2: 3"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_sentence(bantam: Bantam, mine: Path, text: str, said: str) -> None:
    mine.write_text(text)
    result = bantam("train.py", "model=mine.py:Net")
    assert result.returncode == 1
    assert f"Error: model=mine.py:Net cannot be used: {said.format(file=mine)}" in result.stderr
    assert "Traceback" not in result.stderr


LEAVING = """
import sys

from torch import nn


class Net(nn.Sequential):
    calls = 0

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 10))
        {made}

    def forward(self, x):
        Net.calls += 1
        if {when}:
            sys.exit(3)
        return super().forward(x)
"""


@pytest.mark.parametrize(
    ("made", "when", "said"),
    [
        ("sys.exit(3)", "True", "line 12: 3"),
        ("", "True", "a 1×28×28 image does not fit through this network: SystemExit in {file}, line 17: 3"),
        ("", "Net.calls > 2", "cannot compute a batch of two images: SystemExit in {file}, line 17: 3"),
        ("", "len(x) > 2", "run was not trained (model=mine.py:Net fails: SystemExit in {file}, line 17: 3"),
    ],
)
def test_a_network_that_exits_is_one_sentence(
    bantam: Bantam, mine: Path, images: tuple[str, ...], made: str, when: str, said: str
) -> None:
    mine.write_text(LEAVING.format(made=made, when=when))
    result = bantam("train.py", "model=mine.py:Net", *images, "hydra.run.dir=run")
    assert result.returncode == 1, result.stdout
    assert said.format(file=mine) in result.stderr


SHAPES = """
from torch import nn


class Flat(nn.Sequential):
    def __init__(self, width: int = 4):
        super().__init__(nn.Conv2d(1, width, 3), nn.Flatten(), nn.Linear(width, 10))


class Unflat(nn.Sequential):
    def __init__(self, width: int = 4):
        super().__init__(nn.Conv2d(1, width, 3), nn.Linear(width, 10))


class Missing(nn.Module):
    def __init__(self, width, depth: int):
        super().__init__()


class Text(nn.Sequential):
    def __init__(self, width="8"):
        super().__init__(nn.Conv2d(1, width, 3))
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Flat", "a linear layer takes 4 numbers and gets 2704, so write nn.Linear(2704, 10)"),
        ("Unflat", "change model.* or its layers"),
        ("Missing", "model.depth, model.width have no value: set them, for example model.depth=… model.width=…"),
        ("Text", "cannot be built with width='8': TypeError in {file}, line 22: "),
    ],
)
def test_what_does_not_fit_is_said_with_what_helps(
    bantam: Bantam, mine: Path, images: tuple[str, ...], name: str, said: str
) -> None:
    mine.write_text(SHAPES)
    result = bantam("train.py", f"model=mine.py:{name}", *images)
    assert result.returncode == 1
    assert said.format(file=mine) in result.stderr


OUTPUTS = """
from torch import nn


class Map(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1))


class Large(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 10, 3))


class Soft(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 10), nn.Softmax(1))


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(10, 10)

    def forward(self, x):
        return self.fc(x.flatten(1))
"""


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        (
            "Map",
            1,
            "returns 2×10×1×1 for two images, not 2×10: a logit for each class; add nn.Flatten()",
        ),
        ("Large", 1, "add nn.AdaptiveAvgPool2d(1) and nn.Flatten() at its end"),
        ("Broken", 1, "RuntimeError in {file}, line 26: mat1 and mat2 shapes cannot be multiplied"),
        ("Soft", 0, "ends with softmax, but the loss expects logits: leave softmax out"),
    ],
)
def test_outputs_that_are_no_logits(
    bantam: Bantam, mine: Path, images: tuple[str, ...], name: str, code: int, said: str
) -> None:
    mine.write_text(OUTPUTS)
    result = bantam("train.py", f"model=mine.py:{name}", *images, "dry_run=true")
    assert result.returncode == code
    assert said.format(file=mine) in result.stderr + result.stdout


def test_a_file_of_options_names_no_code(bantam: Bantam, tmp_path: Path, images: tuple[str, ...]) -> None:
    mark = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n{NET}")
    for name, text in {
        "named": "defaults:\n  - override /model: evil.py:Net\n",
        "target": "model:\n  _target_: bantam.own.code.network\n  _file_: evil.py\n  _class_: Net\n",
        "code": "model:\n  _target_: evil.Net\n",
    }.items():
        file = tmp_path / "options" / "experiment" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# @package _global_\n{text}")
        result = bantam("train.py", "--config-dir", "options", f"experiment={name}", *images)
        assert result.returncode == 1, name
        assert not mark.exists(), name
    (tmp_path / "options" / "model").mkdir()
    (tmp_path / "options" / "model" / "own.yaml").write_text(
        f"_target_: bantam.own.code.network\n_file_: {tmp_path / 'evil.py'}\n_class_: Net\n_sha256_: '0'\n"
    )
    result = bantam("train.py", "--config-dir", "options", "model=own", *images)
    assert "was not typed: type model=" in result.stderr
    assert not mark.exists()
    assert not any("own" in target for targets in TARGETS.values() for target in targets)


def test_a_report_imports_nothing(bantam: Bantam, mine: Path, images: tuple[str, ...], tmp_path: Path) -> None:
    assert bantam("train.py", "model=mine.py:Plain", *images, "hydra.run.dir=runs/one").returncode == 0
    mark = tmp_path / "imported"
    (tmp_path / "runs" / "one" / "network.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    result = tmp_path / "runs" / "one" / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "layers": None}))
    assert bantam("report.py", "runs").returncode == 0
    assert not mark.exists()
