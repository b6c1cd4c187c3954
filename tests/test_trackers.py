"""Real trackers: an MLflow server on this machine, the files of TensorBoard and of W&B, each read back."""

import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Bantam
from omegaconf import DictConfig
from single_runs import at

from bantam import trackers
from bantam.training.run import run
from bantam.training.setup import prepare

Compose = Callable[..., DictConfig]


def installed(package: str) -> None:
    pytest.importorskip(package, reason=f"pip install -e '.[{package}]'")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server with SQLite, started once."""
    installed("mlflow")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *(
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            str(folder / "files"),
        ),
    ]
    with (folder / "log").open("wb") as log:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 240
        while True:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            time.sleep(0.1)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def client(mlflow_server: str) -> Any:
    """What reads the server back."""
    from mlflow import MlflowClient

    return MlflowClient(mlflow_server)


def entries(client: Any, experiment: str) -> dict[str, Any]:
    """The runs of an experiment by name."""
    found = client.get_experiment_by_name(experiment)
    return {entry.info.run_name: entry for entry in client.search_runs([found.experiment_id])}


class Forward(socketserver.BaseRequestHandler):
    """Hands on what comes to a server, and what it answers."""

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as other:  # type: ignore[attr-defined]
            self.server.connections += [other, self.request]  # type: ignore[attr-defined]
            answers = threading.Thread(target=self.copy, args=(other, self.request))
            answers.start()
            self.copy(self.request, other)
            answers.join()

    @staticmethod
    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                target.sendall(content)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class Door(socketserver.ThreadingTCPServer):
    """A way to a server that can be shut: then nothing answers, as where the server is away."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, address: str, port: int = 0) -> None:
        host, _, number = address.removeprefix("http://").partition(":")
        self.target, self.connections = (host, int(number)), list[socket.socket]()
        super().__init__(("127.0.0.1", port), Forward)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def shut(self) -> None:
        self.shutdown()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


@pytest.mark.slow
def test_mlflow_gets_what_it_missed_while_its_server_was_away(
    mlflow_server: str,
    client: Any,
    composed: Compose,
    few: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    doors = [Door(mlflow_server)]
    address = f"http://127.0.0.1:{doors[0].port}"
    typed = ("tracker=mlflow", f"tracker.mlflow.uri={address}", "tracker.mlflow.experiment=away", "epochs=3")
    cfg = composed(*few, *typed, "pictures=true")

    def watch(epoch: int, accuracy: float) -> bool:
        if epoch == 1:
            doors[0].shut()
        if epoch == 3:
            doors.append(Door(mlflow_server, doors[0].port))
        return False

    # The second epoch is missed, and so is the third, for which nobody asks: the end sends both.
    objective = run(prepare(cfg, at(tmp_path / "run")), watch)
    doors[-1].shut()
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("tracker=mlflow cannot be told of v2, seed 1") == 1, said
    (entry,) = entries(client, "away").values()
    assert (entry.info.run_name, entry.info.status) == ("v2, seed 1", "FINISHED")
    assert entry.data.params["optimizer.lr"] == "0.025"
    assert entry.data.metrics["objective"] == objective
    history = client.get_metric_history(entry.info.run_id, "test_accuracy")
    assert sorted(metric.step for metric in history) == [1, 2, 3]
    files = {file.path for file in client.list_artifacts(entry.info.run_id)}
    assert files == {"curves.png", "confusion.png", "mistakes.png", "layers.md"}


def nested(client: Any, experiment: str, study: str) -> dict[str, tuple[str, str]]:
    """State and verdict by name of what is a child of a study in an experiment; nothing else is in it."""
    found = entries(client, experiment)
    parent = found.pop(study)
    assert {entry.data.tags["mlflow.parentRunId"] for entry in found.values()} == {parent.info.run_id}
    return {name: (entry.info.status, entry.data.tags["verdict"]) for name, entry in found.items()}


@pytest.mark.slow
def test_mlflow_nests_a_search_with_all_that_belongs_to_it(
    mlflow_server: str, client: Any, bantam: Bantam, few: tuple[str, ...], tmp_path: Path
) -> None:
    where = ("tracker=mlflow", f"tracker.mlflow.uri={mlflow_server}")
    search = (
        "-m",
        "hydra/sweeper=bantam",
        "hydra.sweep.dir=multirun/widths",
        "model.width=choice(3,40)",
        "epochs=2",
    )
    few_trials = ("hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1", "data.validation=100", "report=false")
    first = "hydra.sweeper.enqueue=[{model.width:40},{model.width:3}]"
    live = (*where, "tracker.mlflow.experiment=live")
    line = ("train.py", *few, *search, *few_trials, first, *live)
    typed = (*where, "tracker.mlflow.experiment=typed")
    confirm = ("confirm.py", "multirun/widths", *typed, "--top", "1", "--seeds", "2", "--validation-only")
    for command in (line, confirm):
        done = bantam(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    known = nested(client, "live", "widths") | nested(client, "typed", "widths")
    kinds = {name.split(": ")[-1]: how for name, how in known.items()}
    assert kinds["over budget"] == ("KILLED", "over budget")
    assert kinds["v2, seed 1"] == ("FINISHED", "not judged")
    assert sum(name.startswith("confirm/trial_") for name in known) == 2
    assert len(known) == 4
    for experiment, sent in (("live", 2), ("typed", 2), ("afterwards", 4)):  # what is known is not sent again
        done = bantam("track.py", "multirun/widths", *where, f"tracker.mlflow.experiment={experiment}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{sent} sent"
        assert {name.partition(":")[0]: how for name, how in nested(client, experiment, "widths").items()} == {
            name.partition(":")[0]: how for name, how in known.items()
        }


def test_mlflow_marks_a_pruned_trial(
    mlflow_server: str, client: Any, composed: Compose, few: tuple[str, ...], tmp_path: Path
) -> None:
    where = ("tracker=mlflow", f"tracker.mlflow.uri={mlflow_server}", "tracker.mlflow.experiment=pruned")
    trial = tmp_path / "widths" / "1"
    trial.mkdir(parents=True)
    run(prepare(composed(*few, *where, "epochs=2"), replace(at(trial), job=1)), lambda epoch, accuracy: True)
    assert nested(client, "pruned", "widths") == {"1: v2, seed 1": ("KILLED", "pruned")}
    entry = entries(client, "pruned")["1: v2, seed 1"]
    assert [metric.step for metric in client.get_metric_history(entry.info.run_id, "test_accuracy")] == [1]


@pytest.mark.whole
def test_tensorboard_reads_its_files(bantam: Bantam, few: tuple[str, ...], tmp_path: Path) -> None:
    installed("tensorboard")
    line = ("train.py", *few, "tracker=tensorboard", "epochs=2", "pictures=true", "hydra.run.dir=run")
    process = bantam.start(*line, hold=1)
    bantam.wait_until_held("run")
    process.kill()
    process.wait()
    resumed = bantam("train.py", "resume=run")
    assert resumed.returncode == 0, resumed.stderr
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("test_accuracy")] == [1, 2]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert events.Scalars("objective")[0].value == pytest.approx(result["objective"])
    assert {"settings/text_summary", "layers/text_summary", "verdict/text_summary"} <= {*events.Tags()["tensors"]}
    assert "optimizer.lr" in str(events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0])
    assert set(events.Tags()["images"]) == {"curves", "confusion", "mistakes"}
    assert events.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"


def records(file: Path) -> Iterator[bytes]:
    """The records of a file of W&B, which are laid out as in a log of LevelDB, behind a head of seven bytes."""
    content, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        end, kind = at + 7 + int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : end]
        at = end
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


@pytest.mark.slow
def test_wandb_reads_its_files(bantam: Bantam, few: tuple[str, ...], tmp_path: Path) -> None:
    installed("wandb")
    trackers_typed = ("tracker=[tensorboard,wandb]", "tracker.wandb.mode=offline", "tracker.wandb.project=mine")
    done = bantam(
        "train.py", "-m", *few, *trackers_typed, "epochs=2", "seed=1,2", "hydra.sweep.dir=runs", "report=false"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for file in (tmp_path / "outputs" / "wandb").glob("offline-run-*/*.wandb"):
        read = [Record.FromString(content) for content in records(file)]
        started = next(record.run for record in read if record.HasField("run"))
        items = [(item.key or item.nested_key[0], item.value_json) for r in read for item in r.history.item]
        keys = {key for key, _ in items}
        steps = [json.loads(value) for key, value in items if key == "epoch"]
        config = {item.key: json.loads(item.value_json) for item in started.config.update}
        found[started.display_name] = (started.run_group, started.project, config["optimizer.lr"], steps)
        assert {"test_accuracy", "layers"} <= keys
    assert found == {f"{i}: v2, seed {i + 1}": ("runs", "mine", 0.025, [1, 2]) for i in range(2)}
    notes = trackers.notes_in(tmp_path / "runs" / "0")
    assert set(notes) == {"tensorboard", "wandb mine"}


@pytest.mark.parametrize("option", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_one_sentence_before_anything_is_made(
    option: str, composed: Compose, few: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"tracker={option} needs {option}: pip install -e '.\[{option}\]'"):
        prepare(composed(*few, f"tracker={option}"), at(tmp_path))


@pytest.mark.whole
def test_a_run_continues_with_another_tracker(bantam: Bantam, few: tuple[str, ...], tmp_path: Path) -> None:
    installed("tensorboard")
    process = bantam.start("train.py", *few, "epochs=2", "hydra.run.dir=run", hold=1)
    bantam.wait_until_held("run")
    process.kill()
    process.wait()
    kept = tmp_path / "run" / ".hydra" / "config.yaml"
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join(line for line in lines if not line.startswith("tracker:")))  # an older run
    resumed = bantam("train.py", "resume=run", "tracker=tensorboard")
    assert resumed.returncode == 0, resumed.stderr
    assert trackers.notes_in(tmp_path / "run")["tensorboard"]["epochs"] == 2
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    (tmp_path / "run" / "trackers.json").unlink()
    assert bantam("evaluate.py", "run").returncode == 0
    refused = bantam("track.py", "run")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: no tracker is given: add tracker=tensorboard, tracker=mlflow or")
    sent = bantam("track.py", "run", "tracker=tensorboard")
    assert (sent.returncode, sent.stdout.splitlines()[-1]) == (0, "1 sent"), sent.stderr


@pytest.mark.whole
def test_a_server_that_is_not_there_costs_a_warning(bantam: Bantam, few: tuple[str, ...], tmp_path: Path) -> None:
    installed("mlflow")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"tracker.mlflow.uri=http://127.0.0.1:{nobody.getsockname()[1]}"
        done = bantam("train.py", *few, "tracker=mlflow", address, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()).count("Warning: tracker=mlflow cannot be told of v2, seed 1") == 2
    command = f"python track.py {tmp_path}/run tracker=mlflow {address} tracker.mlflow.experiment=bantam"
    assert command in " ".join(done.stdout.split())
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.whole
def test_a_refused_job_of_a_multirun_is_sent_when_it_ends(
    bantam: Bantam, few: tuple[str, ...], tmp_path: Path
) -> None:
    installed("tensorboard")
    line = ("-m", *few, "tracker=tensorboard", "model.width=3,17", "hydra.sweep.dir=runs", "report=false")
    done = bantam("train.py", *line)
    assert done.returncode == 1, done.stderr
    for name in "01":
        result = json.loads((tmp_path / "runs" / name / "result.json").read_text())
        assert trackers.notes_in(tmp_path / "runs" / name)["tensorboard"]["ended"] == result["verdict"]
    assert result["verdict"] == "refused"


@pytest.mark.parametrize(
    "uri", ["mlruns", "/tmp/mlruns", "file:///tmp/mlruns", "foo://bar", "sqlite", "", "127.0.0.1:5000"]
)
def test_what_is_no_address_of_mlflow_is_refused_before_a_run(bantam: Bantam, tmp_path: Path, uri: str) -> None:
    installed("mlflow")
    result = bantam("train.py", "tracker=mlflow", f"tracker.mlflow.uri='{uri}'")
    assert result.returncode == 1
    assert f"Error: tracker.mlflow.uri is {uri!r}: it must be the address of a server" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "uri", ["sqlite:///a.db", "postgresql+psycopg://u@h/d", "https://h", "mysql+pymysql://h/d"]
)
def test_addresses_of_mlflow(uri: str) -> None:
    installed("mlflow")
    assert trackers.MLflow(uri, "e", 1).uri == uri


def test_a_folder_without_runs_is_not_sent_in_silence(bantam: Bantam, finished_run: Path, tmp_path: Path) -> None:
    installed("tensorboard")
    (tmp_path / "empty").mkdir()
    result = bantam("track.py", "empty", "tracker=tensorboard")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: empty: it holds no run"), result.stderr
    shutil.copytree(finished_run, tmp_path / "run")
    result = bantam("track.py", "empty", "run", "tracker=tensorboard")
    assert result.returncode == 0, result.stderr
    assert "empty is left out: it holds no run" in result.stderr + result.stdout
    assert "1 sent" in result.stdout


def test_processes_open_a_database_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed("mlflow")
    fcntl = pytest.importorskip("fcntl", reason="not on Windows")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def opened(uri: str) -> None:
        (lock,) = tmp_path.glob("bantam-*.lock")
        with lock.open("a") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise ConnectionError("seen")

    monkeypatch.setattr("mlflow.MlflowClient", opened)
    entry = trackers.Entry("v2", "v2", {}, [], tmp_path)
    with pytest.raises(ConnectionError, match="seen"):
        trackers.MLflow("sqlite:///new.db", "e", 1).begin(entry, None, 0)
