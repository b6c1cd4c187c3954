"""Searches and multiruns on a Ray cluster of two nodes, which are processes of this machine."""

import os
import re
import signal
import socket
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import PROJECT, Bantam, Forked, Forks
from omegaconf import OmegaConf
from optuna.trial import TrialState
from searches import LINE, hydra, stored, wait_for

from bantam import cluster
from bantam.search import checks, faults, trials
from bantam.search.space import Search
from bantam.training import folder as record

pytestmark = pytest.mark.slow

HOOK = "+hydra.launcher.ray.init.runtime_env={worker_process_setup_hook: held_on_ray.begin}"
"""Has the trainings wait, see `held_on_ray`."""


@pytest.fixture(scope="module")
def nodes(forks: Forks) -> Iterator[Any]:
    """A cluster whose head has no cores; jobs run on two nodes with one core each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="pip install -e '.[ray]'")
    forks.begin()  # commands of later tests are not to have this environment
    before = dict(os.environ)
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "500",  # when the head takes a node for dead
        "RAY_health_check_failure_threshold": "3",
        "PYTHONPATH": os.pathsep.join([str(PROJECT / "tests"), str(PROJECT / "src")]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of this process
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        made.workers = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made
    made.shutdown()
    os.environ.clear()
    os.environ.update(before)


class Held:
    """Trainings on the cluster, which wait after their first epoch until they are let go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def wait_for(self, *names: str) -> None:
        wait_for(lambda: all((self.folder / f"{name}.waits").exists() for name in names), 400)

    def process(self, name: str) -> int:
        """The number of the process that trains."""
        return int((self.folder / f"{name}.process").read_text().split()[0])

    def node(self, name: str) -> str:
        """The node on which it runs."""
        return (self.folder / f"{name}.process").read_text().split()[1]

    def let_go(self) -> None:
        (self.folder / "all").touch()


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    folder = tmp_path / "held"
    folder.mkdir()
    monkeypatch.setenv("BANTAM_HELD", str(folder))
    yield Held(folder)
    (folder / "all").touch()


def test_trials_whose_process_or_node_dies_run_again(
    nodes: Any, held: Held, started: Callable[..., Forked], tmp_path: Path
) -> None:
    journal = f"journal://{tmp_path}/study.log"
    process = started(
        "hydra/launcher=ray",
        f"hydra.launcher.ray.init.address={nodes.address}",
        HOOK,
        f"hydra.sweeper.storage={journal}",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=2",
    )
    held.wait_for("0", "1")
    assert held.node("0") != held.node("1")
    os.kill(held.process("0"), signal.SIGKILL)
    held.wait_for("2")
    (node,) = (node for node in nodes.workers if node.node_id == held.node("1"))
    nodes.remove_node(node, allow_graceful=False)
    wait_for(lambda: trials.states(stored(tmp_path, journal).trials)[1] == "stopped", 400)
    held.let_go()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    listed = stored(tmp_path, journal).trials
    assert trials.states(listed)[:2] == ["stopped", "stopped"]
    assert trials.count(listed)["complete"] == 3
    assert [listed[2].params, listed[3].params] == [listed[0].params, listed[1].params]
    for trial in listed[2:]:
        assert trial.state == TrialState.COMPLETE
        assert list(trial.intermediate_values) == [1, 2]  # reported from the node
        assert record.read_result(tmp_path / "multirun" / "optuna" / str(trial.number))["objective"] == trial.value


def test_a_job_whose_process_dies_goes_on_from_its_checkpoint(
    nodes: Any, held: Held, bantam: Bantam, few: tuple[str, ...], tmp_path: Path
) -> None:
    process = bantam.start(
        "train.py",
        "-m",
        "hydra/launcher=ray",
        "hydra.launcher.ray.init.address=auto",
        HOOK,
        *(item for item in few if not item.startswith("threads=")),
        "seed=1,2",
        "epochs=2",
        "report=false",
        "hydra.sweep.dir=two",
        RAY_ADDRESS=nodes.address,
    )
    held.wait_for("0")
    os.kill(held.process("0"), signal.SIGKILL)
    held.let_go()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert len(re.findall(r"job 0, v2 epoch +1/2", output)) == 1
    assert len(re.findall(r"job 0, v2 epoch +2/2", output)) == 1
    assert "cpu, 1 thread," in output  # as Ray gives it one core
    assert [len(record.read_history(tmp_path / "two" / name)) for name in ("0", "1")] == [2, 2]


def test_a_cluster_of_this_machine_ends_with_its_search(nodes: Any, bantam: Bantam, tmp_path: Path) -> None:
    """Its one trial is pruned after the first of two epochs."""
    process = bantam.start(
        "train.py",
        *LINE,
        "hydra/launcher=ray",
        "hydra.launcher.ray.init.address=local",
        "hydra.launcher.ray.init.num_cpus=1",
        "hydra/sweeper/pruner=none",
        "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner",
        "+hydra.sweeper.pruner.lower=101",
        "hydra.sweeper.n_trials=1",
        "hydra.sweeper.n_jobs=1",
    )
    servers: list[int] = []

    def starts() -> bool:
        command = ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)]
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        servers[:] = [int(line.split()[0]) for line in lines if "gcs_server" in line or "raylet" in line]
        return bool(servers) or process.poll() is not None

    wait_for(starts, 400)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 1, output
    assert "no trial of the study optuna was trained to its end" in " ".join(output.split())
    (trial,) = stored(tmp_path).trials
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [1]
    assert servers
    wait_for(lambda: not any(Path(f"/proc/{server}").exists() for server in servers), 120)


def test_what_no_cluster_can_do_is_one_sentence(nodes: Any, bantam: Bantam, few: tuple[str, ...]) -> None:
    line = ("-m", "hydra/launcher=ray", *few, "seed=1,2", f"hydra.launcher.ray.init.address={nodes.address}")
    refused = bantam("train.py", *line, "hydra.launcher.ray.remote.num_cpus=64")
    assert refused.returncode == 1
    assert refused.stderr == (
        "Error: hydra.launcher.ray.remote.num_cpus=64 asks for more cores than a machine of the cluster has (1): "
        "lower it\n"
    )
    refused = bantam("train.py", *line, "+hydra.launcher.ray.init.nonsense=1")
    assert refused.returncode == 1
    assert "nonsense" in refused.stderr
    assert "Traceback" not in refused.stderr + refused.stdout


def test_an_address_at_which_nobody_answers_is_one_sentence(nodes: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for found in ({}, {"RAY_ADDRESS": address}):  # as typed, and in a worker whose cluster is gone
        with pytest.raises(cluster.NoCluster, match=f"address={address} gives no cluster .*refused"):
            cluster.connect(OmegaConf.create({"address": address}), found)


def test_sqlite_is_refused_on_several_machines(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster.RayLauncher, "begin", lambda self, threads: {"one", "other"})
    wanted = searching()
    several = cluster.RayLauncher(hydra().launcher)
    object.__setattr__(wanted, "launcher", several)
    with pytest.raises(ValueError, match="a cluster of 2 machines, and hydra.sweeper.storage is SQLite") as error:
        checks.check(wanted)
    assert f"hydra.sweeper.storage=journal://{tmp_path}/study/study.log" in str(error.value)
    wanted = searching(f"hydra.sweeper.storage=journal://{tmp_path}/study.log")
    object.__setattr__(wanted, "launcher", several)
    checks.check(wanted)


def test_a_cluster_that_is_away_is_no_fault_of_the_trial() -> None:
    assert faults.killed(cluster.JobDied("the process of a job died"))
    with pytest.raises(faults.MachineFault, match="no cluster"):
        faults.raise_machine_fault(cluster.NoCluster("no cluster"))


def test_a_job_has_as_many_cores_as_threads() -> None:
    for remote, threads, cores in (
        ({}, None, 1),
        ({}, 4, 4),
        ({"num_cpus": 2}, 4, 2),
        ({"num_cpus": 0.5}, None, 0.5),
    ):
        assert cluster.cores(SimpleNamespace(remote=remote), threads) == cores  # type: ignore[arg-type]


def test_a_folder_that_only_the_node_sees_is_said(tmp_path: Path) -> None:
    cluster.check_folders([tmp_path])
    with pytest.raises(cluster.NoCluster, match=f"{tmp_path} is another folder on this machine"):
        cluster.check_folders([tmp_path, tmp_path / "3"])


@pytest.mark.parametrize(
    ("typed", "shown"), [((), "1 thread"), (("hydra.launcher.ray.remote.num_cpus=3",), "3 threads")]
)
def test_a_dry_run_shows_the_threads_that_a_job_has_in_the_cluster(
    bantam: Bantam, few: tuple[str, ...], typed: tuple[str, ...], shown: str
) -> None:
    line = (*(item for item in few if not item.startswith("threads=")), "seed=1,2", "dry_run=true")
    done = bantam("train.py", "-m", "hydra/launcher=ray", *typed, *line)
    assert done.returncode == 0, done.stderr
    assert f"cpu, {shown}," in done.stdout
