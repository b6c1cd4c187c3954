import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from bantam.search import processes


@pytest.fixture
def started_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[BaseProcess, Path]]:
    """Start a worker whose command line is a script of those lines, and an argument."""

    def start(lines: str) -> tuple[BaseProcess, Path]:
        script, log = tmp_path / "script.py", tmp_path / "worker.log"
        script.write_text(f"import os, signal, sys, time\n{lines}\n")
        monkeypatch.setattr(sys, "argv", [str(script), "seed=3"])
        return processes.start_worker(log, print, 12.5), log

    return start


def wait_for(log: Path, text: str) -> None:
    until = time.monotonic() + 120
    while text not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.whole
def test_a_worker_is_the_same_command_line_in_a_session_of_its_own(
    started_worker: Callable[[str], tuple[BaseProcess, Path]],
) -> None:
    worker, log = started_worker(
        "own = os.getsid(0) == os.getpid()\n"
        "from bantam import errors\n"
        "if __name__ == '__main__': errors.run_hydra(task_function=(sys.argv[1:], own), config_name='config')\n"
        "print('torch' in sys.modules, file=sys.stderr)\n"
        "sys.exit(3)"
    )
    worker.join(120)
    assert worker.exitcode == 3
    assert log.read_text().split("\n")[-3:-1] == ["12.5 (['seed=3'], True)", str(sys.platform == "linux")]


def test_a_stopped_worker_requeues_its_trial_first(
    started_worker: Callable[[str], tuple[BaseProcess, Path]],
) -> None:
    worker, log = started_worker(
        "try:\n    print('trains', flush=True)\n    time.sleep(120)\nexcept KeyboardInterrupt:\n    print('back')"
    )
    wait_for(log, "trains")
    processes.stop_workers([worker])
    assert worker.exitcode == 0
    assert "back" in log.read_text()


def test_one_that_does_not_listen_is_killed(
    started_worker: Callable[[str], tuple[BaseProcess, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.3)
    worker, log = started_worker(
        "signal.signal(signal.SIGINT, signal.SIG_IGN); print('trains', flush=True); time.sleep(120)"
    )
    wait_for(log, "trains")
    processes.stop_workers([worker])
    assert worker.exitcode == -signal.SIGKILL


def watcher(folder: Path, works: str, watches: str) -> subprocess.Popen[bytes]:
    """A process, in a group of its own, that starts `worker` and then watches; the lines are what either does."""
    script, log = folder / "script.py", folder / "worker.log"
    script.write_text(
        "import multiprocessing, os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from bantam.search import processes\n"
        "if __name__ == '__main__' and multiprocessing.parent_process():\n"
        f"{textwrap.indent(works, '    ')}\n"
        "elif __name__ == '__main__':\n"
        "    signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "    worker = processes.start_worker(Path('worker.log'), print, 'a task')\n"
        f"{textwrap.indent(watches, '    ')}\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], cwd=folder, start_new_session=True)
    wait_for(log, "works")
    return process


@pytest.mark.whole
def test_a_worker_learns_that_nobody_watches_any_more(tmp_path: Path) -> None:
    works = (
        "print('works', flush=True)\n"
        "while not processes.abandoned(): time.sleep(0.05)\n"
        "print('abandoned', flush=True)"
    )
    process = watcher(tmp_path, works, "time.sleep(120)")
    process.kill()
    process.wait()
    wait_for(tmp_path / "worker.log", "abandoned")


@pytest.mark.whole
def test_a_signal_to_the_group_leaves_the_workers_to_who_watches(tmp_path: Path) -> None:
    process = watcher(
        tmp_path,
        "try:\n"
        "    print('works', flush=True)\n"
        "    time.sleep(120)\n"
        "except KeyboardInterrupt:\n"
        "    print('back', flush=True)",
        "try:\n"
        "    time.sleep(120)\n"
        "except KeyboardInterrupt:\n"
        "    processes.stop_workers([worker])\n"
        "    sys.exit(worker.exitcode)",
    )
    os.killpg(process.pid, signal.SIGTERM)  # the process that forks workers is in its group too
    assert process.wait(60) == 0
    assert "back" in (tmp_path / "worker.log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_what_workers_are_forked_from_ends_without_taking_apart_what_it_has_imported() -> None:
    lines = "import atexit; atexit.register(print, 'taken apart', flush=True); import bantam.search.preloaded"
    for server, output in (("", "taken apart\n"), ("import multiprocessing.forkserver; ", "")):
        done = subprocess.run([sys.executable, "-c", server + lines], capture_output=True, text=True, check=True)
        assert done.stdout == output


def test_imports_are_not_looked_at_for_unused_objects() -> None:
    before = gc.get_freeze_count()
    try:
        with processes.imports():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
        with pytest.raises(ImportError), processes.imports():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_workers_are_forked_without_the_compiler_which_takes_long_to_import() -> None:
    shown = "print('torch._dynamo' in sys.modules, 'alembic.script' in sys.modules)"
    asked = f"import sys, bantam.search.preloaded; {shown}"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
