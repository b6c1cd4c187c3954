"""Runs the project's commands: as forks of what has imported everything, or in interpreters of their own."""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import fork_server
import held
import pytest

PROJECT = Path(__file__).parent.parent

NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


class Forked:
    """A command that a fork runs, with those methods of `subprocess.Popen` that tests use; it writes to files."""

    def __init__(self, args: list[str], pipe: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.args, self.stdout, self.stderr = args, stdout, stderr
        self.returncode: int | None = None
        self._pipe = os.fdopen(pipe, "rb", buffering=0)
        self.pid = int(self._pipe.readline())

    def poll(self) -> int | None:
        """The exit code, -N where signal N ended it; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, when it has ended. Raises subprocess.TimeoutExpired after so many seconds."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._pipe], [], [], timeout)[0]:
            self.returncode = int(self._pipe.readline())
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it and its children have written, "" for errors that went where the rest went."""
        self.wait(timeout)
        return self.written(self.stdout), "" if self.stderr is self.stdout else self.written(self.stderr)

    @staticmethod
    def written(stream: IO[str]) -> str:
        """What has been written so far."""
        stream.seek(0)
        return stream.read()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, wherever it is."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill it if it still runs, and forget what it wrote."""
        self.kill()
        self.wait()
        for stream in (self._pipe, self.stdout, self.stderr):
            stream.close()


class Forks:
    """A fork server, which begins to import when the first command is asked for."""

    def __init__(self, encoding: str = "utf-8", **environment: str) -> None:
        """`encoding` is that of what commands write, `environment` that of the server beside this process's."""
        self.encoding, self.environment = encoding, environment
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Begin to import, in the environment of now."""
        self._connection()

    def _connection(self) -> socket.socket:
        if self._process is None:
            self._ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, fork_server.__file__, str(theirs.fileno())],
                    # OpenBLAS and Arrow start threads when they are loaded, and threads do not survive a fork.
                    env={**os.environ, **NO_THREADS, **self.environment},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
        return self._ours

    def start(
        self, args: list[str], folder: Path, environment: dict[str, str], joined: bool, before: str = ""
    ) -> Forked:
        """Run a script in a folder after the code in `before`; `joined` puts its errors where its output goes."""
        encoding = environment.get("PYTHONIOENCODING", self.encoding)
        # They are the command's, which closes them.
        stdout = tempfile.TemporaryFile("w+", encoding=encoding)  # noqa: SIM115
        stderr = stdout if joined else tempfile.TemporaryFile("w+", encoding=encoding)  # noqa: SIM115
        ours, theirs = os.pipe()
        with open(os.devnull) as nothing:
            outputs = [stream.fileno() for stream in (nothing, stdout, stderr)]
            where = {"folder": str(folder), "environment": environment}
            request = fork_server.request_for(args, [0, 1, 2], before=before, **where)
            fork_server.send(self._connection(), request, [theirs, *outputs])
        os.close(theirs)
        return Forked(args, ours, stdout, stderr)

    def close(self) -> None:
        """End the server."""
        if self._process is not None:
            self._ours.close()
            self._process.wait(60)


class Bantam:
    """Runs commands in one folder: `bantam("train.py", "seed=2")`; what was started ends with the test."""

    def __init__(self, folder: Path, forks: Forks, before: str = "", **environment: str) -> None:
        """`before` is code that each command begins with, and each interpreter that it starts."""
        self.folder, self._forks, self._before, self._environment = folder, forks, before, environment
        self._started: list[Forked] = []
        self._signs = Path(tempfile.mkdtemp())

    def __call__(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in a fork of what has imported everything."""
        if sys.platform != "linux":
            return self.interpreter(script, *arguments, **environment)
        process = self._start(script, arguments, environment, joined=False)
        output, errors = process.communicate(300)
        return subprocess.CompletedProcess(process.args, process.wait(), output, errors)

    def start(self, script: str, *arguments: str, hold: int | None = None, **environment: str) -> Forked:
        """Start a command in a fork; its output and its errors go to one file, `stdout`.

        With `hold` its trainings wait after so many epochs: `wait_until_held`, and then `let_go`.
        """
        if sys.platform != "linux":
            pytest.skip("what is watched is a fork, and only Linux forks what has imported everything")
        before = "" if hold is None else f"\nimport held; held.hold({hold}, {str(self._signs)!r})"
        return self._start(script, arguments, environment, joined=True, before=self._before + before)

    def _start(self, script: str, arguments: tuple[str, ...], environment: dict[str, str], **how: Any) -> Forked:
        args = [str(PROJECT / script), *arguments]
        variables = {**os.environ, **self._forks.environment, **self._environment, **environment}
        self._started.append(self._forks.start(args, self.folder, variables, **{"before": self._before, **how}))
        return self._started[-1]

    def wait_until_held(self, *runs: str) -> None:
        """Wait until the runs with these folder names have all reached their epoch; a search's are numbers."""
        until = time.monotonic() + 120
        while missing := [run for run in runs if not (self._signs / f"{run}.waits").exists()]:
            said = [process.written(process.stdout) for process in self._started]
            assert any(process.poll() is None for process in self._started), (missing, said)
            assert time.monotonic() < until, (missing, said)
            time.sleep(0.02)

    def let_go(self, *runs: str) -> None:
        """Let the runs with these folder names go on; without a name all of them, and those that come."""
        for run in runs or (held.ALL,):
            (self._signs / run).touch()

    def interpreter(
        self, script: str, *arguments: str, options: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in an interpreter of its own, for tests of how it starts."""
        return subprocess.run(
            [sys.executable, *options, str(PROJECT / script), *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def close(self) -> None:
        """End what still runs, and let whatever it left behind go."""
        self.let_go()
        for process in self._started:
            process.close()
        shutil.rmtree(self._signs)
