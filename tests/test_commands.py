"""A command that runs in a fork cannot be told from one in an interpreter of its own, but by its speed."""

import signal
import time
from pathlib import Path

import pytest
from commands import Bantam


def script(folder: Path, lines: str, name: str = "script.py") -> str:
    """A script in a folder beside the one where it runs."""
    path = folder.with_name(f"{folder.name}-scripts") / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(lines)
    return str(path)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ("import sys; print(sys.argv, sys.path[0], __name__, __file__)", 0),
        ("import os; print(os.getcwd(), os.environ['GIVEN'], 'LEFT' in os.environ, sorted(os.environ))", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('sorry')", 1),
        ("raise SystemExit", 0),
        ("raise ValueError('mine')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os, sys; print('kept'); print('said', file=sys.stderr); os._exit(4)", 4),
        ("import sys; print(sys.stdin.read() == '', sys.stdout.isatty(), sys.stdout.encoding)", 0),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('end'))).start()", 0),
        ("import atexit; atexit.register(print, 'last'); print('first')", 0),
        ("import warnings; warnings.warn('careful')", 0),
        ("import signal; print([signal.getsignal(s) for s in (2, 13, 15)], signal.pthread_sigmask(0, ()))", 0),
        ("import torch, threading; print(torch.get_num_threads(), threading.active_count())", 0),
        ("from hydra.core.global_hydra import GlobalHydra; print(GlobalHydra.instance().is_initialized())", 0),
    ],
)
def test_a_fork_does_what_an_interpreter_does(bantam: Bantam, tmp_path: Path, lines: str, code: int) -> None:
    path = script(tmp_path, lines)
    fork, real = (run(path, "one", "--two=3", GIVEN="yes") for run in (bantam, bantam.interpreter))
    assert fork.returncode == real.returncode == code
    assert fork.stdout == real.stdout
    assert [line for line in fork.stderr.splitlines() if not line.startswith(" ")] == [
        line for line in real.stderr.splitlines() if not line.startswith(" ")
    ]


@pytest.mark.parametrize("script_name", ["confirm.py", "train.py -m"])
def test_what_a_command_starts_writes_into_a_pipe(bantam: Bantam, tmp_path: Path, script_name: str) -> None:
    inner = "import sys; sys.stdout.reconfigure(errors='replace'); print('said', sys.stdout.line_buffering)"
    lines = (
        f"import subprocess, sys; print(subprocess.run([sys.executable, '-c', {inner!r}], capture_output=True))"
    )
    name, *arguments = script_name.split()
    path = script(tmp_path, lines, name)
    fork, real = (run(path, *arguments) for run in (bantam, bantam.interpreter))
    assert "said False" in fork.stdout
    assert fork.stdout == real.stdout


def test_everything_is_imported_and_nothing_is_shared(bantam: Bantam, tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "import random, sys\n"
        "import numpy, torch\n"
        "print('bantam.launch' in sys.modules, 'torch._dynamo' in sys.modules, hasattr(torch, 'mine'))\n"
        "torch.mine = True\n"
        "print(random.random(), numpy.random.random(), float(torch.rand(())))",
    )
    (first, one), (second, other) = (bantam(path).stdout.splitlines() for _ in range(2))
    assert first == second == "True True False"
    assert not set(one.split()) & set(other.split())


def test_another_copy_of_the_package_is_imported_where_the_environment_says_so(
    bantam: Bantam, tmp_path: Path
) -> None:
    copy = tmp_path / "src" / "bantam"
    copy.mkdir(parents=True)
    (copy / "__init__.py").write_text("WHERE = 'in the copy'")
    path = script(tmp_path, "import bantam, sys; print(bantam.WHERE, 'bantam.launch' in sys.modules)")
    assert bantam(path, PYTHONPATH=str(tmp_path / "src")).stdout == "in the copy False\n"


def test_a_started_command_is_watched_and_signalled(bantam: Bantam, tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "import os, sys, time\n"
        "print(os.getpid(), flush=True)\n"
        "try:\n"
        "    time.sleep(100)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit('stopped')",
    )
    both = [bantam.start(path), bantam.start(path)]
    for process in both:
        until = time.monotonic() + 60
        while not process.written(process.stdout):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert process.poll() is None
        assert int(process.written(process.stdout)) == process.pid
    both[0].send_signal(signal.SIGINT)
    assert both[0].communicate(60) == (f"{both[0].pid}\nstopped\n", "")
    assert both[0].returncode == 1
    assert both[1].poll() is None
    both[1].kill()
    assert both[1].wait(60) == -signal.SIGKILL
    both[1].send_signal(signal.SIGINT)  # nobody's, by now


def test_interpreters_that_a_command_starts_are_forks_too(bantam: Bantam, tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "import joblib, multiprocessing, os, subprocess, sys\n"
        "from pathlib import Path\n"
        "def work(word):\n"
        "    imported = 'bantam.launch' in sys.modules\n"
        "    print(word, os.environ['ROUND'], imported, os.getcwd() == sys.argv[-1], flush=True)\n"
        "    sys.exit(5)\n"
        "def parent(number):\n"
        "    return int(Path(f'/proc/{number}/stat').read_text().split(')')[1].split()[1])\n"
        "def family():\n"
        "    return os.environ['ROUND'], 'bantam.launch' in sys.modules, parent(os.getpid())\n"
        "if __name__ == '__main__' and sys.argv[1] == 'child':\n"
        "    work(sys.stdin.read())\n"
        "elif __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('forkserver')\n"
        "    context.set_forkserver_preload([])\n"
        "    os.environ['ROUND'] = 'second'\n"
        "    worker = context.Process(target=work, args=('worker',))\n"
        "    worker.start()\n"
        "    worker.join()\n"
        "    server = multiprocessing.forkserver._forkserver._forkserver_pid\n"
        "    print(worker.exitcode, parent(server) == os.getpid())\n"
        "    both = joblib.Parallel(2)(joblib.delayed(family)() for _ in range(2))\n"
        "    print(both == [('second', True, os.getpid())] * 2)\n"
        "    command = [sys.executable, __file__, 'child', sys.argv[2]]\n"
        "    done = subprocess.run(command, input='child', capture_output=True, text=True)\n"
        "    print(done.stdout, done.stderr, done.returncode)",
    )
    done = bantam(path, "launcher=joblib", str(tmp_path))  # for whose word forks are kept aside
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == [
        "worker second True True",
        "5 True",
        "True",
        "child second True True",
        "  5",
        "",
    ]
    assert done.returncode == 0
