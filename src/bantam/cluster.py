"""`hydra/launcher=ray`: jobs on a Ray cluster, or on one of this machine that ends with the command."""

import functools
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from bantam.overrides import override

TARGET = "bantam.cluster.RayLauncher"
"""The `_target_` of our launcher."""

KEY = "hydra.launcher.ray"
"""Where its keys are."""

QUIET = {"RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Variables for Ray, where nobody has set them: every line of a job is shown as it is, and nothing is reported."""


PASSED = ("BANTAM_", "HYDRA_FULL_ERROR")
"""How variables begin that jobs have from the command that launches them."""


@dataclass
class Ray:
    init: dict[str, Any] = field(default_factory=lambda: {"address": None, "num_cpus": None})
    """Arguments of `ray.init`; without an address a cluster that runs here, else one that is started."""
    remote: dict[str, Any] = field(default_factory=lambda: {"num_cpus": None})
    """Arguments of `ray.remote` for every job, such as num_cpus."""


@dataclass
class RayConf:
    """The keys of hydra-ray-launcher."""

    _target_: str = TARGET
    ray: Ray = field(default_factory=Ray)


class JobDied(ValueError):
    """The process of a job or its machine died, so that nothing is known of the job itself."""


class NoCluster(ValueError):
    """There is no cluster at the address, or none that can run the jobs."""


@functools.cache
def register() -> None:
    """Make `hydra/launcher=ray` ours, once a process, where hydra-ray-launcher is installed."""
    plugins = Plugins.instance()  # finds Hydra's own, which ours replaces
    if find_spec("hydra_plugins.hydra_ray_launcher") is None:
        return
    ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayConf, replace=True)
    plugins.register(RayLauncher)


def is_used(hydra: DictConfig) -> bool:
    """Whether jobs go to Ray."""
    return bool(hydra.launcher._target_ == TARGET)


class RayLauncher(Launcher):
    """Hydra's launcher for Ray, whose jobs have their folders where the command was typed.

    A job gets `num_cpus` cores, which is `threads` where that is set, else one, and trains with as many threads.
    """

    def __init__(self, ray: DictConfig) -> None:
        """`ray` has the arguments of `ray.init` and `ray.remote`."""
        self.ray = ray
        self.found: dict[str, str] = {}
        """Variables with which Ray finds the cluster that a search has found or started for all its workers."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what jobs need; Ray starts them in a folder of its own, so theirs are made absolute."""
        self.context, self.task_function, self.config = hydra_context, task_function, deepcopy(config)
        folder = str(Path(config.hydra.runtime.cwd, config.hydra.sweep.dir).absolute())
        with read_write(self.config.hydra), open_dict(self.config.hydra):
            self.config.hydra.sweep.dir = folder
            self.config.hydra.overrides.hydra.append(override("hydra.sweep.dir", folder))

    def begin(self, threads: int | None) -> set[str]:
        """For a search: find or start the cluster of all its workers; returns the names of its machines.

        Raises NoCluster.
        """
        connect(self.ray.init)
        import ray

        check_size(self.ray, threads)
        self.found = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        if "RAY_AUTH_MODE" in os.environ:  # Ray sets it where it starts a cluster
            self.found["RAY_AUTH_MODE"] = os.environ["RAY_AUTH_MODE"]
        machines = {str(node["NodeManagerHostname"]) for node in ray.nodes() if node["Alive"]}
        if not ray._private.worker._global_node.is_head():
            ray.shutdown()  # it would end this process when the cluster is away
        return machines

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs, and wait for them. Raises NoCluster, and JobDied where Ray could not end one of them."""
        connect(self.ray.init, self.found)
        import ray
        from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher as Plain

        first = self.context.config_loader.load_sweep_config(self.config, list(job_overrides[0]))
        if not self.found:  # a search has done so when it began, and waits for nodes that come back
            check_size(self.ray, first.get("threads"))
        remote = OmegaConf.create({"init": {}, "remote": self._remote(first)})
        plain = Plain(remote)
        plain.setup(hydra_context=self.context, task_function=self.task_function, config=self.config)
        try:
            jobs: Sequence[JobReturn] = plain.launch(job_overrides, initial_job_idx)
        except ray.exceptions.RayError as error:
            raise JobDied(
                f"the process of a job or its machine died ({type(error).__name__}: {_first_line(error)})"
            ) from error
        check_folders([Path(job.hydra_cfg.hydra.runtime.output_dir) for job in jobs if job.hydra_cfg])
        return jobs

    def _remote(self, first: DictConfig) -> dict[str, Any]:
        """The arguments of `ray.remote` for jobs like the first of them."""
        typed: dict[str, Any] = OmegaConf.to_container(self.ray.remote, resolve=True)  # type: ignore[assignment]
        cpus = cores(self.ray, first.get("threads"))
        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
        variables |= {"LOKY_MAX_CPU_COUNT": str(max(1, int(cpus)))}  # what joblib takes for the number of cores
        environment = dict(typed.pop("runtime_env", {}))
        environment["env_vars"] = variables | dict(environment.get("env_vars", {}))
        # A trial whose process died is queued again by the search, which counts how often.
        retries = {"max_retries": 0} if self.found else {}
        return {**retries, **typed, "num_cpus": cpus, "runtime_env": environment}


def cores(ray: DictConfig, threads: int | None) -> float:
    """How many cores a job gets: what `num_cpus` says, else as many as it has threads, else one."""
    typed = ray.remote.get("num_cpus")
    return float(threads or 1) if typed is None else float(typed)


def threads_of(ray: DictConfig, typed: int | None) -> int:
    """With how many threads a job trains: those that are `typed`, or one a core that it gets."""
    return typed or max(1, int(cores(ray, None)))


SHARED = ("namespace", "runtime_env", "logging_level", "log_to_driver")
"""Arguments of `ray.init` that are about what connects; others start a cluster."""


def connect(init: DictConfig, found: Mapping[str, str] | None = None) -> None:
    """Connect this process to the cluster that was found, or to that of `init`. Raises NoCluster.

    Without an address it is the one in RAY_ADDRESS, else one that `ray start` has started on this machine, else a
    new one, which ends with this process.
    """
    os.environ.update({**QUIET, **os.environ, **(found or {})})
    import ray

    if ray.is_initialized():
        return
    typed: dict[str, Any] = OmegaConf.to_container(init, resolve=True)  # type: ignore[assignment]
    if found:
        typed = {key: value for key, value in typed.items() if key in SHARED}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _call(os.environ["RAY_ADDRESS"] if found else str(typed.get("address")))
        ray.init(**{"logging_level": "error", "include_dashboard": False, **typed})
    except (OSError, ValueError, RuntimeError, TypeError, ray.exceptions.RayError) as error:
        address = (found or {}).get("RAY_ADDRESS") or typed.get("address") or "null"
        raise NoCluster(
            f"{KEY}.init.address={address} gives no cluster ({_first_line(error)}): start one with "
            "ray start --head, or correct what is typed"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has one of its own, which ends the process


def _call(address: str) -> None:
    """Raise OSError where nobody answers at an address: Ray would wait for minutes, and may end the process."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def check_size(ray_conf: DictConfig, threads: int | None) -> None:
    """Raise NoCluster where no machine has the cores of a job, which would wait for ever."""
    import ray

    wanted = cores(ray_conf, threads)
    largest = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if wanted > largest:
        key = "threads" if ray_conf.remote.get("num_cpus") is None else f"{KEY}.remote.num_cpus"
        raise NoCluster(
            f"{key}={wanted:g} asks for more cores than a machine of the cluster has ({largest:g}): lower it"
        )


def check_folders(folders: Sequence[Path]) -> None:
    """Raise NoCluster where the folders of jobs that have ended are not to be seen from here."""
    for folder in folders:
        if not folder.is_dir():
            raise NoCluster(
                f"{folder.parent} is another folder on this machine than on the one that ran job {folder.name}: "
                "choose a hydra.sweep.dir that all machines of the cluster share"
            )


def _first_line(error: Exception) -> str:
    return "".join(str(error).strip().splitlines()[:1]).rstrip(".") or type(error).__name__
