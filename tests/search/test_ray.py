"""Searches and multiruns on a Ray cluster of two nodes, which are processes of this machine."""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import PROJECT, Forked
from optuna.trial import TrialState
from searches import stored, wait_for

from bantam.search import trials
from bantam.training import folder as record

HOOK = "+hydra.launcher.ray.init.runtime_env={worker_process_setup_hook: held_on_ray.begin}"
"""Has the trainings wait, see `held_on_ray`."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster whose head has no cores; jobs run on two nodes with one core each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="pip install -e '.[ray]'")
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
        wait_for(lambda: all((self.folder / f"{name}.waits").exists() for name in names), 120)

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
    wait_for(lambda: trials.states(stored(tmp_path, journal).trials)[1] == "stopped", 120)
    held.let_go()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    listed = stored(tmp_path, journal).trials
    assert trials.states(listed)[:2] == ["stopped", "stopped"]
    assert trials.count(listed)["complete"] == 3
    assert [listed[2].params, listed[3].params] == [listed[0].params, listed[1].params]
    for trial in listed[2:]:
        assert trial.state == TrialState.COMPLETE
        assert list(trial.intermediate_values) == [1, 2]  # reported from the node
        assert record.read_result(tmp_path / "multirun" / "optuna" / str(trial.number))["objective"] == trial.value
