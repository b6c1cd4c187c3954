"""What several test modules need: configurations, commands, a few images and the real MNIST."""

import os
import signal

# Tests run side by side: threads of OpenMP that wait must not keep the others from their cores, and where nothing
# is said of threads there is one.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import PROJECT, Bantam, Forks
from finished import once
from hydra import compose, initialize_config_dir
from joblib import cpu_count
from omegaconf import DictConfig
from small_data import few_images

from bantam import cluster, config
from bantam.search import sweeper
from bantam.training.setup import RunInfo

SMALL = ("data=mnist5k", "model.width=4", "epochs=1", "pictures=false", "threads=1")
"""Overrides that make a run a matter of seconds, on a busy machine too: one thread waits for no other."""

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell that runs the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

config.register()
sweeper.register()
cluster.register()


def pytest_xdist_auto_num_workers() -> int:
    """For -n auto: two processes a core, since much of what tests do is to wait for what they have started."""
    return 2 * cpu_count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with those of Ray and for AArch64, which take minutes: at the end nothing could run beside them."""
    items.sort(key=lambda item: item.path.name not in ("test_ray.py", "test_neon.py"))


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Have no test change the environment of those after it, as libraries do: their commands would get it too."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    """Compose `conf/` with overrides, as the command line does."""

    def compose_with(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(PROJECT / "conf")):
            return compose("config", list(overrides))

    return compose_with


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    """A single run's empty folder."""
    return RunInfo(tmp_path, {"model": "v2", "optimizer": "sgd", "scheduler": "step"}, 1, None)


@pytest.fixture(scope="session")
def few_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with 300 training images of a made-up Fashion-MNIST."""
    return once(tmp_path_factory, "few-images", few_images)


@pytest.fixture(scope="session")
def few(few_root: Path) -> tuple[str, ...]:
    """Overrides that make a run a matter of a second: `SMALL` with few images."""
    return (*SMALL, "data=fashion_mnist", f"data.root={few_root}")


@pytest.fixture
def mnist_root() -> str:
    """The folder that holds the real MNIST; the test is skipped where it is absent."""
    root = os.environ.get("BANTAM_DATA", str(PROJECT / "data"))
    if not (Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip("the real MNIST is not on this machine: set BANTAM_DATA")
    return str(Path(root).absolute())


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """What the commands of all tests are forked from."""
    server = Forks()
    yield server
    server.close()


@pytest.fixture
def bantam(tmp_path: Path, forks: Forks) -> Iterator[Bantam]:
    """Run the project's commands, such as `bantam("train.py", "seed=2")`, in an empty folder."""
    commands = Bantam(tmp_path, forks)
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """The folder of a run of `SMALL`: copy it."""

    def train(folder: Path) -> None:
        trained(forks, folder, *SMALL, "hydra.run.dir=.")

    return once(tmp_path_factory, "finished-run", train)


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory, forks: Forks, few: tuple[str, ...]) -> Path:
    """The folder of a study of one trial: copy it to multirun/optuna, from where it was searched."""

    def search(folder: Path) -> None:
        one = ("hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1", "data.validation=100", "report=false")
        trained(forks, folder, "-m", "hparams_search=optuna", *few, *one)

    return once(tmp_path_factory, "finished-study", search) / "multirun" / "optuna"


def trained(forks: Forks, folder: Path, *arguments: str) -> None:
    """Train or search in a folder."""
    bantam = Bantam(folder, forks)
    done = bantam("train.py", *arguments)
    bantam.close()
    assert done.returncode == 0, done.stdout + done.stderr
