"""Each file of a run, damaged in each way, before each command: one sentence with the file and what helps."""

import json
import runpy
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import PROJECT, Bantam, Forks
from finished import once
from PIL import Image
from single_runs import history

from bantam import trackers, tracking
from bantam.report import folders
from bantam.training import folder as files

Damage = Callable[[Path], object]


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def changed(key: str, value: object) -> Damage:
    """Damage to a JSON file: one of its values is another, or of another kind."""
    return lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))


def replaced(old: str, new: str) -> Damage:
    """Damage to a text: a part of it is another."""

    def damage(file: Path) -> None:
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return damage


def without(*keys: str) -> Damage:
    def damage(file: Path) -> None:
        kept = {key: value for key, value in json.loads(file.read_text()).items() if key not in keys}
        file.write_text(json.dumps(kept))

    return damage


def rows(change: Callable[[list[str]], list[str]]) -> Damage:
    """Damage to the lines of a text."""
    return lambda file: file.write_text("".join(change(file.read_text().splitlines(keepends=True))))


ANY: dict[str, Damage] = {
    "gone": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "halved": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "binary": lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00"),
    "text": lambda file: file.write_text('Once upon a time: [there was, a "file\n'),
    "number": lambda file: file.write_text("7"),
    "list": lambda file: file.write_text("[1, 2]"),
    "folder": folder_instead,
    "link": link_to_itself,
}
"""What may become of any file."""

OWN: dict[str, dict[str, Damage]] = {
    "history.csv": {
        "last row gone": rows(lambda lines: lines[:-1]),
        "first row gone": rows(lambda lines: [lines[0], *lines[2:]]),
        "all rows gone": rows(lambda lines: lines[:1]),
        "row twice": rows(lambda lines: [*lines, lines[-1]]),
        "header gone": rows(lambda lines: lines[1:]),
        "words": rows(lambda lines: [lines[0], *(line.replace(".", "point") for line in lines[1:])]),
        "nan": rows(lambda lines: [lines[0], *(",".join(["1", *["nan"] * 9]) + "\n" for _ in lines[1:])]),
        "over 100": rows(lambda lines: [lines[0], *(f"{i},1,1,500,,,1,500,1,1\n" for i in (1, 2))]),
        "column more": rows(lambda lines: [f"{line.strip()},x\n" for line in lines]),
        "cell more": rows(lambda lines: [lines[0], *(f"{line.strip()},1\n" for line in lines[1:])]),
        "no scores": rows(lambda lines: [lines[0], *(f"{i},1,1,50,,,,,1,1\n" for i in (1, 2))]),
    },
    "result.json": {
        "empty mapping": lambda file: file.write_text("{}"),
        "nan": lambda file: file.write_text('{"verdict": "met", "objective": NaN}'),
        **{f"without {key}": without(key) for key in ("threads", "precision", "epochs", "verdict")},
        "without data_checksum": without("data_checksum"),
        **{
            f"{key} {value}": changed(key, value)
            for key, value in (  # type: tuple[str, object]
                ("objective", "high"), ("objective", True), ("objective", 1e9), ("objective", [1]),
                ("epochs", 7), ("epochs", "two"), ("threads", 0), ("threads", -3), ("threads", 10**12),
                ("threads", 1.5), ("precision", "float8"), ("precision", 3), ("kernels", "cuda"),
                ("split", "moon"),
                ("scored_images", -1), ("scored_images", "many"), ("data_checksum", None), ("verdict", 5),
                ("verdict", None), ("reason", {"a": 1}), ("layers", 3), ("layers", [{}]), ("layers", "x"),
                ("confusion", "x"), ("confusion", [[1, 2]]), ("classes", 3), ("last_accuracies", 5),
                ("last_accuracies", ["a"]), ("seed", "one"), ("seed", [1]), ("parameters", {}), ("model", [1]),
                ("experiment", {"a": 1}), ("data", ["MNIST"]), ("device", 5), ("training_seconds", "long"),
                ("versions", 3), ("processor", {}), ("target", 3), ("budget", None), ("best_epoch", "x"),
                ("best_accuracy", -5), ("at_chance", "perhaps"), ("images_per_second", "x"), ("started", 3),
                ("commit", 3), ("train_images", None), ("multiply_adds", "x"),
            )
        },
    },
    ".hydra/config.yaml": {
        "nothing": lambda file: file.write_text("null"),
        "foreign": lambda file: file.write_text("version: 2\nservices: {}\n"),
        "no model": lambda file: file.write_text(file.read_text().replace("model:", "mode1:", 1)),
        **{
            f"{old} {new}": replaced(old, new)
            for old, new in (
                ("epochs: 2\n", "epochs: two\n"), ("epochs: 2\n", ""), ("seed: 1\n", "seed: []\n"),
                ("seed: 1\n", ""), ("threads: 1\n", "threads: many\n"), ("device: auto", "device: moon"),
                ("kernels: auto", "kernels: 5"), ("kernels: auto\n", ""),
                ("channels_last: true", "channels_last: perhaps"),
                ("batch_size: 128", "batch_size: 0"), ("batch_size: 128", "batch_size: nan"),
                ("batch_size: 128", "batch_size: ${nothing}"),
                ("batch_size: 128", "batch_size: ${oc.env:NOWHERE}"),
                ("batch_size: 128", "batch_size: ${batch_size}"),
                ("bantam.models.V2", "bantam.models.Gone"), ("bantam.models.V2", "os.system"),
                ("bantam.models.V2", "5"), ("width: 4", "width: four"), ("width: 4", "width: 0"),
                ("width: 4", "width: 4\n  colour: red"), ("torch.optim.SGD", "torch.optim.SDG"),
                ("torch.optim.SGD", "torch.optim.Adam"), ("lr: 0.025", "lr: fast"), ("lr: 0.025", "lr: -1"),
                ("_partial_: true", "_partial_: false"), ("bantam.data.torchvision_dataset", "bantam.data.Data"),
                ("FashionMNIST", "CIFAR100"), ("validation: 0", "validation: -4"), ("ema: 0.0", "ema: x"),
                ("ema: 0.0\n", ""), ("target:", "tarjet:"), ("budget:", "badget:"),
            )
        },
        "tag": lambda file: file.write_text("model: !!python/object/apply:os.system ['touch proof']\n"),
    },
    ".hydra/overrides.yaml": {
        "mapping": lambda file: file.write_text("a: 1\n"),
        "numbers": lambda file: file.write_text("- 1\n- [2]\n- null\n"),
    },
    ".hydra/hydra.yaml": {
        "foreign": lambda file: file.write_text("version: 2\n"),
        "no choices": lambda file: file.write_text("hydra:\n  runtime: {}\n"),
        "choices 5": lambda file: file.write_text("hydra:\n  runtime:\n    choices: 5\n"),
        "hydra 5": lambda file: file.write_text("hydra: 5\n"),
    },
}  # fmt: skip

SHOWN = ("history.csv", "result.json", ".hydra/config.yaml", ".hydra/overrides.yaml")
"""The files of a run that reports and tables read."""

READ = {"evaluate.py": (*SHOWN, "weights.safetensors", ".hydra/hydra.yaml"), "table.py": SHOWN, "report.py": SHOWN}
"""The files of a run that a command reads."""

NONE = (
    *(".hydra/overrides.yaml: list", ".hydra/overrides.yaml: numbers", ".hydra/overrides.yaml: empty"),
    ".hydra/overrides.yaml: halved",
    *("result.json: budget None", "result.json: train_images None", "result.json: without epochs"),
)
"""What is damage to nobody: a list is a list, and what is not there says nothing wrong."""

OTHERS = {
    "result.json": ("without threads", "without precision", "without data_checksum", "data_checksum None"),
    ".hydra/config.yaml": (
        *("epochs: 2\n ", "seed: 1\n ", "kernels: auto\n ", "ema: 0.0\n ", "target: tarjet:", "lr: 0.025 lr: -1"),
        *("batch_size: 128 batch_size: 0", "validation: 0 validation: -4", "width: 4 width: 0"),
        "width: 4 width: 4\n  colour: red",
        *(f"batch_size: 128 batch_size: ${{{text}}}" for text in ("nothing", "oc.env:NOWHERE")),
        *("batch_size: 128 batch_size: ${batch_size}", "FashionMNIST bantam.data.Data"),
        *(f"bantam.models.V2 {name}" for name in ("bantam.models.Gone", "os.system")),
        *(f"torch.optim.SGD torch.optim.{name}" for name in ("SDG", "Adam")),
        *("_partial_: true _partial_: false", "bantam.data.torchvision_dataset bantam.data.Data"),
    ),
}
"""What only they notice who build and train a network: reports and tables show what is there."""


def damaged(run: Path, to: Path, name: str, fit: Callable[[str], bool] = lambda what: True) -> dict[str, Path]:
    """Copies of a run, in each of which a file is damaged in one way."""
    found = {}
    for what, damage in {**ANY, **OWN.get(name, {})}.items():
        if fit(what) and f"{name}: {what}" not in NONE:
            found[what] = shutil.copytree(run, to / "runs" / str(len(found)))
            damage(found[what] / name)
    assert found
    return found


@pytest.fixture(scope="session")
def few_run(tmp_path_factory: pytest.TempPathFactory, forks: Forks, few: tuple[str, ...]) -> Path:
    """A finished run of two epochs on few images: copy it."""

    def train(folder: Path) -> None:
        bantam = Bantam(folder, forks)
        done = bantam("train.py", *few, "epochs=2", "hydra.run.dir=.")
        bantam.close()
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "few-run", train)


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory: pytest.TempPathFactory, forks: Forks, few: tuple[str, ...]) -> Path:
    """A run that was killed after one epoch of two: copy it."""

    def train(folder: Path) -> None:
        bantam = Bantam(folder, forks)
        process = bantam.start("train.py", *few, "epochs=2", "hydra.run.dir=run", hold=1)
        bantam.wait_until_held("run")
        process.kill()
        process.wait()
        bantam.close()

    return once(tmp_path_factory, "stopped-run", train) / "run"


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; returns its exit code, its output and its errors."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", [script, *arguments])
        code = 0
        try:
            runpy.run_path(str(PROJECT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        output, errors = capsys.readouterr()
        return code, output, errors

    return run


def is_one_sentence(errors: str, name: str) -> bool:
    """Whether errors are one line that names a file and says what helps."""
    lines = [line for line in errors.splitlines() if line]
    helps = any(word in errors for word in ("restore it", "delete it", "leave its folder out"))
    return len(lines) == 1 and lines[0].startswith("Error: ") and Path(name).name in errors and helps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "name"),
    [
        *((script, name) for script in ("evaluate.py", "table.py") for name in READ[script]),
        ("export.py", "weights.safetensors"),
        *(("predict.py", name) for name in ("weights.safetensors", "result.json", ".hydra/hydra.yaml")),
    ],
)
def test_a_damaged_file_is_one_sentence(
    call: Callable[..., tuple[int, str, str]], few_run: Path, tmp_path: Path, script: str, name: str
) -> None:
    if script == "export.py":
        pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
    seen = (lambda what: True) if script != "table.py" else (lambda what: what not in OTHERS.get(name, ()))
    more = ()
    if script == "predict.py":
        seen, more = (lambda what: what in ANY), ("picture.png",)
        Image.new("L", (28, 28)).save(tmp_path / "picture.png")
    bad = {}
    for what, run in damaged(few_run, tmp_path, name, seen).items():
        code, _, errors = call(script, str(run.relative_to(tmp_path)), *more)
        if code != 1 or not is_one_sentence(errors, name):
            bad[what] = (code, errors)
    assert not bad


@pytest.mark.slow
@pytest.mark.parametrize("name", READ["report.py"])
def test_a_report_says_it_of_that_run_and_shows_the_others(
    call: Callable[..., tuple[int, str, str]], few_run: Path, tmp_path: Path, name: str
) -> None:
    copies = damaged(few_run, tmp_path, name, lambda what: what not in OTHERS.get(name, ()))
    good = shutil.copytree(few_run, tmp_path / "runs" / "good")
    code, output, errors = call("report.py", "runs")
    assert (code, errors) == (0, "")
    found = folders.gather([tmp_path / "runs"])
    reasons = {run.folder: " ".join(run.problems) for run in found.runs}
    assert reasons.pop(good) == ""
    assert {what for what, run in copies.items() if Path(name).name not in reasons[run]} == set()
    table = output[output.index("Without a result, or damaged") :]
    assert {what for what, run in copies.items() if f"runs/{run.name} " not in table} == set()


class Recording:
    """A tracker that notes what it is told of."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def begin(self, entry: trackers.Entry, known: str | None, epochs: int) -> str:
        self.names.append(entry.folder.name)
        return entry.name

    def epoch(self, record: trackers.Record) -> None:
        pass

    def end(self, result: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        pass


@pytest.mark.parametrize("name", [*SHOWN, ".hydra/hydra.yaml"])
def test_trackers_are_told_of_sound_runs_only(
    few_run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "key_of", lambda option, tracker: option)
    monkeypatch.setattr("bantam.training.tracked.key_of", lambda option, tracker: option)
    copies = damaged(few_run, tmp_path, name, lambda what: what in ANY and (name, what) not in UNFINISHED)
    good = shutil.copytree(few_run, tmp_path / "runs" / "good")
    tracker = Recording()
    assert tracking.send([tmp_path / "runs"], {"recording": tracker}) == (1, len(copies))
    assert tracker.names == [good.name]
    said = " ".join(capsys.readouterr().out.split()).split("Warning: ")[1:]
    assert len(said) == len(copies)
    assert all(Path(name).name in what and "restore it" in what for what in said), said


UNFINISHED = (("result.json", "gone"), ("result.json", "link"))
"""Damage after which a run counts as one that goes on."""


def test_only_who_needs_a_file_misses_it(
    call: Callable[..., tuple[int, str, str]], few_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(few_run, tmp_path / "run")
    (run / "weights.safetensors").write_bytes(b"")
    (run / ".hydra" / "hydra.yaml").unlink()
    for script in ("table.py", "report.py"):
        assert call(script, "run")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint.pt", ".hydra/config.yaml", ".hydra/hydra.yaml", "result.json"])
def test_a_run_is_not_resumed_with_a_damaged_file(
    bantam: Bantam, stopped_run: Path, tmp_path: Path, name: str
) -> None:
    chosen = (
        "empty",
        "halved",
        "list",
        "folder",
        "link",
        "binary",
        "epochs: 2\n epochs: two\n",
        "seed: 1\n ",
        "no choices",
    )
    whats = ("gone", *chosen) if name not in ("result.json", "checkpoint.pt") else chosen
    whole = shutil.copytree(stopped_run, tmp_path / "whole")
    (whole / "result.json").touch()
    for what, run in damaged(whole, tmp_path, name, lambda what: what in whats).items():
        if name != "result.json":
            (run / "result.json").unlink()
        (run / "checkpoint.before.pt").unlink(missing_ok=True)
        done = bantam("train.py", f"resume={run.relative_to(tmp_path)}")
        assert done.returncode == 1, what
        assert is_one_sentence(done.stderr, name), (what, done.stderr)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("damage", ["gone", "halved"])
def test_a_history_is_written_again_from_the_checkpoint(
    bantam: Bantam, stopped_run: Path, few_run: Path, tmp_path: Path, damage: str
) -> None:
    run = shutil.copytree(stopped_run, tmp_path / "run")
    ANY[damage](run / "history.csv")
    done = bantam("train.py", "resume=run")
    assert done.returncode == 0, done.stderr
    assert history(run) == history(few_run)


def test_a_run_without_its_checkpoint_says_that_it_starts_anew(
    bantam: Bantam, stopped_run: Path, few_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(stopped_run, tmp_path / "run")
    (run / "checkpoint.pt").unlink()
    done = bantam("train.py", "resume=run")
    assert done.returncode == 0, done.stderr
    assert "Warning: run was begun, but its checkpoint.pt is gone: it starts anew with epoch 1" in done.stdout
    assert history(run) == history(few_run)


@pytest.mark.whole
def test_a_run_that_has_lost_its_result_is_not_trained_anew(
    bantam: Bantam, few: tuple[str, ...], few_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(few_run, tmp_path / "run")
    (run / "result.json").unlink()
    for gone in (None, "history.csv"):
        if gone:
            (run / gone).unlink()
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        done = bantam("train.py", "resume=run")
        assert done.returncode == 1
        assert is_one_sentence(done.stderr, "result.json"), done.stderr
        again = bantam("train.py", *few, "hydra.run.dir=run")
        assert "run already holds a run" in again.stderr
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.whole
def test_a_job_that_has_lost_its_result_says_that_it_starts_anew(
    bantam: Bantam, few: tuple[str, ...], tmp_path: Path
) -> None:
    line = ("-m", *few, "seed=1", "report=false", "hydra.sweep.dir=runs")
    assert bantam("train.py", *line).returncode == 0
    (tmp_path / "runs" / "0" / "result.json").unlink()
    (tmp_path / "runs" / "0" / "history.csv").unlink()
    done = bantam("train.py", *line)
    assert done.returncode == 0, done.stderr
    assert "Warning: runs/0 was begun, but its result.json is gone: it starts anew" in done.stdout


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"history": [{"epoch": 1}]},
        lambda state: state | {"history": 5},
        lambda state: state | {"model": {}},
        lambda state: state | {"optimizer": None},
        lambda state: state | {"threads": "two"},
    ],
)
def test_a_checkpoint_of_something_else_is_one_sentence(
    bantam: Bantam, stopped_run: Path, tmp_path: Path, change: Callable[[dict[str, object]], dict[str, object]]
) -> None:
    run = shutil.copytree(stopped_run, tmp_path / "run")
    state = files.read_checkpoint(run, torch.device("cpu"))
    assert state is not None
    files.write_checkpoint(run, change(state))
    (run / "checkpoint.before.pt").unlink()
    done = bantam("train.py", "resume=run")
    assert done.returncode == 1
    assert is_one_sentence(done.stderr, "checkpoint.pt"), done.stderr


TYPED: dict[str, Damage] = {
    "another value": replaced("width: 4", "width: four"),
    "unknown key": lambda file: file.write_text(file.read_text() + "nonsense: 3\n"),
    "without package": replaced("# @package _global_\n", ""),
    "defaults": replaced("defaults:\n", "defaults: 5\n5:\n"),
}
"""Damage to an experiment."""


@pytest.mark.slow
@pytest.mark.parametrize("line", [(), ("-m",), ("-m", "hydra/sweeper=bantam", "optimizer.lr=interval(0.01,0.1)")])
def test_a_damaged_experiment_is_one_sentence(bantam: Bantam, tmp_path: Path, line: tuple[str, ...]) -> None:
    whole = tmp_path / "whole.yaml"
    whole.write_text("# @package _global_\ndefaults:\n- override /model: v2\nmodel:\n  width: 4\n")
    file = tmp_path / "mine" / "experiment" / "best.yaml"
    file.parent.mkdir(parents=True)
    bad = {}
    chosen = ("empty", "zeros", "binary", "text", "number", "list")
    for what, damage in {**{key: ANY[key] for key in chosen}, **TYPED}.items():
        shutil.copy(whole, file)
        damage(file)
        done = bantam("train.py", *line, "--config-dir", "mine", "experiment=best", "dry_run=true")
        if done.returncode != 1 or not is_one_sentence(done.stderr, file.name):
            bad[what] = (done.returncode, done.stderr)
    assert not bad
    assert (
        "Traceback" in bantam("train.py", "--config-dir", "mine", "experiment=best", HYDRA_FULL_ERROR="1").stderr
    )
    assert not {"outputs", "multirun"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("summary", "what", "said"),
    [
        (
            '{"best": {"number": 3}}',
            Path.unlink,
            "best.yaml is gone, and so is study/3, the trial that it repeats",
        ),
        ('{"best": {"number": 4}}', Path.unlink, "best.yaml is gone: restore it, or type the command line"),
        ("{", folder_instead, "best.yaml is no file: move it away, and type the command line of the search again"),
        ("{", lambda file: shutil.rmtree(file.parent), "best.yaml is gone: restore it"),
    ],
)
def test_an_experiment_of_a_search_that_is_gone_is_one_sentence(
    bantam: Bantam, tmp_path: Path, summary: str, what: Damage, said: str
) -> None:
    file = tmp_path / "study" / "experiment" / "best.yaml"
    for folder in (file.parent, tmp_path / "study" / "4"):
        folder.mkdir(parents=True)
    file.touch()
    (tmp_path / "study" / "summary.json").write_text(summary)
    what(file)
    done = bantam("train.py", "--config-dir", "study", "experiment=best", "dry_run=true")
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: study/experiment/{said}"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_typed_wrongly_is_no_damaged_file(bantam: Bantam) -> None:
    for word in ("model=nothing", "experiment=nothing", "model.widht=3", "model.width=four"):
        done = bantam("train.py", word, "dry_run=true")
        assert done.returncode == 1
        assert word.split("=")[0] in done.stderr or "nothing" in done.stderr
        assert "restore it" not in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.whole
def test_who_reads_a_report_or_confirms_needs_no_storage(
    call: Callable[..., tuple[int, str, str]], finished_study: Path, tmp_path: Path
) -> None:
    study = shutil.copytree(finished_study, tmp_path / "study")
    (study / "study.db").write_bytes(b"no database")
    assert call("report.py", "study")[0] == 0


def test_what_a_killed_report_left_half_written_is_removed(
    call: Callable[..., tuple[int, str, str]], few_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(few_run, tmp_path / "run")
    (run / f".report.html.0123456789abcdef{files.ASIDE}").write_bytes(b"<html>")
    assert call("report.py", "run")[0] == 0
    assert not list(run.glob(f".*{files.ASIDE}"))
