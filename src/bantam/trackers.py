"""The trackers: what shows a run elsewhere, in TensorBoard, MLflow or Weights & Biases.

Each is told three things: what begins, what an epoch brought, and how it ended. Their packages are imported when a
run begins, so that nobody waits for them who does not use them.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NOTES = "trackers.json"
"""The file in a folder of a run, a multirun or a study that says what its entries are called in each tracker."""

Record = Mapping[str, float | None]
"""What one epoch brought: the columns of `history.csv`."""


@dataclass(frozen=True)
class Entry:
    """A run as a tracker shows it."""

    name: str
    group: str
    """What runs have in common that differ in their seed only."""
    settings: Mapping[str, Any]
    """The composed configuration under its dotted keys."""
    layers: Sequence[Mapping[str, Any]]
    """The rows of the layer table."""
    folder: Path
    parent: Path | None = None
    """Folder of the multirun or the study that it is a part of."""

    @property
    def table(self) -> str:
        """The layer table in Markdown."""
        rows = [("layer", "output", "sees", "parameters", "multiply-adds"), ("---",) * 5]
        for row in self.layers:
            shape = "×".join(map(str, row["shape"]))
            numbers = (f"{row[key]:,}" for key in ("parameters", "multiply_adds"))
            sees = row["receptive_field"]
            rows.append(
                (
                    row["name"],
                    shape,
                    "×".join(map(str, sees)) if isinstance(sees, list | tuple) else f"{sees or ''}",
                    *numbers,
                )
            )
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class Tracker(Protocol):
    """What a run is shown in."""

    address: str
    """What tells this place from others of its kind."""

    def begin(self, entry: Entry, known: str | None, done: int) -> str:
        """Open the entry of a run: a new one, or that which was called `known` and has `done` epochs.

        Returns what it is called.
        """

    def epoch(self, record: Record) -> None:
        """Add what an epoch brought."""

    def end(self, result: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        """Add how the run has ended, as in `result.json`, and its pictures; nothing follows."""


def need(package: str, option: str) -> None:
    """Raise ValueError where the package of a tracker is missing."""
    if find_spec(package) is None:
        raise ValueError(f"tracker={option} needs {package}: pip install -e '.[{option}]'")


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a result: objective, best accuracy, costs, durations."""
    return {
        key: value for key, value in result.items() if isinstance(value, int | float) and type(value) is not bool
    }


class TensorBoard:
    """Writes event files into the folder of a run, which `tensorboard --logdir` finds there."""

    address = ""

    def __init__(self) -> None:
        need("tensorboard", "tensorboard")

    def begin(self, entry: Entry, known: str | None, done: int) -> str:
        """Write the configuration and the layers."""
        from torch.utils.tensorboard import SummaryWriter

        self._entry = entry
        where = entry.folder / "tensorboard"
        if entry.parent is not None and not entry.folder.is_dir():  # a trial that was not trained
            where = entry.parent / "tensorboard" / entry.folder.name
        self._writer = SummaryWriter(where, purge_step=done + 1 if known else None)
        self._last = done
        if not known:
            rows = [f"| {key} | {value} |" for key, value in entry.settings.items()]
            self._writer.add_text("settings", "\n".join(["| key | value |", "| --- | --- |", *rows]))
            self._writer.add_text("layers", entry.table)
            self._writer.flush()
        return "tensorboard"

    def epoch(self, record: Record) -> None:
        """A scalar for each column."""
        self._last = int(record["epoch"] or 0)
        for key, value in record.items():
            if value is not None and key != "epoch":
                self._writer.add_scalar(key, value, self._last)
        self._writer.flush()

    def end(self, result: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        """The verdict, the pictures, and a row in the table of hyperparameters."""
        from matplotlib import image
        from torch.utils.tensorboard.summary import hparams

        kinds = (int, float, bool, str)
        settings = {
            key: value if isinstance(value, kinds) else str(value) for key, value in self._entry.settings.items()
        }
        reached = {key: numbers(result)[key] for key in ("objective", "parameters") if key in numbers(result)}
        for summary in hparams({**settings, "verdict": str(result["verdict"])}, reached):  # type: ignore[no-untyped-call]
            self._writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
        for key, value in numbers(result).items():
            if key not in ("seed", "epochs"):
                self._writer.add_scalar(key, value, self._last)
        self._writer.add_text("verdict", f"**{result['verdict']}**: {result.get('reason', '')}", self._last)
        for picture in pictures:
            self._writer.add_image(picture.stem, image.imread(picture)[..., :3], self._last, dataformats="HWC")
        self._writer.close()


SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
"""How the addresses of MLflow's servers and databases begin."""


@contextmanager
def alone(address: str) -> Iterator[None]:
    """Let one process of this machine in at a time: two that create a database at once leave it damaged."""
    name = hashlib.sha256(f"{Path.home()} {address}".encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"bantam-{name}.lock").open("a") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class MLflow:
    """Sends runs to an MLflow server, or into its database; those of a multirun or a study are nested."""

    def __init__(self, uri: str, experiment: str, timeout: float) -> None:
        """`timeout` in seconds: how long the server may take. Raises ValueError for what is no address."""
        need("mlflow", "mlflow")
        scheme = uri.partition("://")[0].partition("+")[0]
        if scheme not in SCHEMES or "://" not in uri:
            raise ValueError(
                f"tracker.mlflow.uri is {uri!r}: it must be the address of a server, http://127.0.0.1:5000, or of "
                "a database, as sqlite:///mlflow.db; MLflow keeps no more runs in plain folders"
            )
        self.uri, self.experiment, self.timeout = uri, experiment, timeout
        self.address = f"{uri} {experiment}"
        path = uri.partition("sqlite:///")[2].partition("?")[0]  # MLflow's place is where a job has changed to
        self._pictures = str(Path(path).absolute().parent / "mlruns") if Path(path).is_absolute() else None

    def begin(self, entry: Entry, known: str | None, done: int) -> str:
        """Create the run, or open it again; one of several is a child of their parent."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, round(self.timeout))))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # else minutes without a server
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        with alone(self.uri):
            self._client = MlflowClient(self.uri)
        if known:
            self._client.update_run(known, "RUNNING")
            self._run = known
            return known
        number = self._experiment_number()
        tags = {"group": entry.group, "folder": str(entry.folder)}
        if entry.parent is not None:
            tags["mlflow.parentRunId"] = noted(
                entry.parent, key_of("mlflow", self), lambda: self._parent(number, entry)
            )
        self._run = self._client.create_run(number, run_name=entry.name, tags=tags).info.run_id
        settings = [(key, str(value)[:6000]) for key, value in entry.settings.items()]
        for start in range(0, len(settings), 100):  # no more are taken at once
            self._log(params=dict(settings[start : start + 100]))
        self._client.log_text(self._run, entry.table + "\n", "layers.md")
        return self._run

    def _experiment_number(self) -> str:
        """The number of the experiment, which is created where it is not there."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return str(self._client.create_experiment(self.experiment, self._pictures))
            except MlflowException:  # another process was faster
                found = self._client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _parent(self, number: str, entry: Entry) -> str:
        """Create the run whose children those of a multirun or a study are; it has no numbers of its own."""
        assert entry.parent is not None
        tags = {"folder": str(entry.parent)}
        run = self._client.create_run(number, run_name=entry.parent.name, tags=tags).info.run_id
        self._client.set_terminated(run)
        return str(run)

    def _log(self, metrics: Mapping[str, float] | None = None, step: int = 0, **others: Mapping[str, str]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        params = [Param(key, value) for key, value in others.get("params", {}).items()]
        tags = [RunTag(key, value) for key, value in others.get("tags", {}).items()]
        values = [Metric(key, value, 0, step) for key, value in (metrics or {}).items()]
        self._client.log_batch(self._run, metrics=values, params=params, tags=tags)

    def epoch(self, record: Record) -> None:
        """A metric for each column."""
        self._log({k: v for k, v in record.items() if v is not None and k != "epoch"}, int(record["epoch"] or 0))

    def end(self, result: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        """The verdict as a tag, numbers, pictures; what was pruned is KILLED, and FAILED what came to no end."""
        reason = str(result.get("reason", ""))[:5000]
        self._log(
            numbers(result),
            int(result.get("epochs") or 0),
            tags={"verdict": str(result["verdict"]), "reason": reason},
        )
        for picture in pictures:
            self._client.log_artifact(self._run, str(picture))
        ends = dict.fromkeys(("pruned", "over budget"), "KILLED")
        ends |= dict.fromkeys(("refused", "failed", "diverged"), "FAILED")
        self._client.set_terminated(self._run, ends.get(str(result["verdict"]), "FINISHED"))


class WandB:
    """Sends runs to Weights & Biases, or writes them into files that `wandb sync` sends later."""

    def __init__(self, project: str, entity: str | None, mode: str, folder: str, timeout: float) -> None:
        """`mode` is online or offline; `timeout` in seconds."""
        need("wandb", "wandb")
        self.project, self.entity, self.mode, self.folder, self.timeout = project, entity, mode, folder, timeout
        self.address = "/".join(filter(None, (entity, project)))

    def begin(self, entry: Entry, known: str | None, done: int) -> str:
        """Start the run, or resume it; those of a multirun or a study are a group, else those of an experiment."""
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        if self.mode == "online" and not wandb.login(prompt=False):
            raise ConnectionError("there is no key for it: type wandb login, or set tracker.wandb.mode=offline")
        settings = wandb.Settings(
            init_timeout=self.timeout,
            finish_timeout=self.timeout,
            finish_timeout_raises=True,
            silent=True,
            console="off",
            reinit="create_new",
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
            disable_git=True,
        )
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=self.folder,
            mode=self.mode,  # type: ignore[arg-type]
            name=entry.name,
            group=entry.parent.name if entry.parent else entry.group,
            job_type=entry.group,
            config=dict(entry.settings),
            id=known,
            resume="allow" if known else None,
            settings=settings,
        )
        if not known:
            rows = [
                [str(row["name"]), "×".join(map(str, row["shape"])), row["parameters"]] for row in entry.layers
            ]
            self._run.log({"layers": wandb.Table(["layer", "output", "parameters"], rows)}, step=0)
        return str(self._run.id)

    def epoch(self, record: Record) -> None:
        """A metric for each column."""
        found = {key: value for key, value in record.items() if value is not None}
        self._run.log(found, step=int(record["epoch"] or 0))

    def end(self, result: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        """The verdict and the numbers in the summary, the verdict as a tag too, the pictures."""
        import wandb

        verdict = str(result["verdict"])
        self._run.summary.update({"verdict": verdict, "reason": str(result.get("reason", "")), **numbers(result)})
        self._run.tags = (*(self._run.tags or ()), verdict)
        if pictures:
            self._run.log({picture.stem: wandb.Image(str(picture)) for picture in pictures})
        self._run.finish(
            exit_code=0 if verdict in ("met", "not met", "not judged", "pruned", "over budget") else 1
        )


def key_of(option: str, tracker: Tracker) -> str:
    """Under which key the notes in a folder have what its entry is called in a tracker."""
    return f"{option} {tracker.address}".strip()


def notes_in(folder: Path) -> dict[str, Any]:
    """The notes in a folder; none where there are none, or where they are damaged: entries are then made anew."""
    try:
        found = json.loads((folder / NOTES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def noted(folder: Path, key: str, make: Callable[[], str]) -> str:
    """What is noted in a folder under a key; `make` is asked once for it, by one of the processes that want it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NOTES).open("a+", encoding="utf-8") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        notes = notes_in(folder)
        if not isinstance(notes.get(key), str):
            notes[key] = make()
            file.truncate(0)
            file.write(json.dumps(notes, indent=2) + "\n")
            file.flush()
        return str(notes[key])
