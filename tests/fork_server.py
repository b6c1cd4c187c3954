"""A process that imports everything once and is forked for every command that a test runs; Linux only.

A fork leaves `serve` and goes on as Python would with the command: exit codes, tracebacks, signals and what runs
at exit are Python's own.
"""

import _posixsubprocess
import atexit
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

SPARES = {"launcher=joblib": 5, "launcher=ray": 5, "confirm.py": 5, "hparams_search": 1, "sweeper=bantam": 1}
"""How many interpreters that a command starts are forks too, where a word of its line contains this."""

LATE = (
    "torchvision.datasets",
    "sklearn.model_selection",
    "plotly.subplots",
    "rich._emoji_codes",
    "torch.utils.serialization",
    "importlib.resources.readers",
)
"""What is imported when it is first used."""

Request = tuple[dict[str, Any], list[int]]
"""What a fork is to do, and the file descriptors that it is to have."""


def send(connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
    """Ask for a fork; it will have the descriptors under the numbers in `request["descriptors"]`."""
    text = json.dumps(request).encode()
    socket.send_fds(connection, [len(text).to_bytes(8, "big")], descriptors)
    connection.sendall(text)


def receive(connection: socket.socket) -> Request:
    """Wait for the next request; ends the process where nobody asks any more."""
    size, descriptors, _, _ = socket.recv_fds(connection, 8, 16)
    if not size:
        os._exit(0)
    text = b""
    while len(text) < int.from_bytes(size, "big"):
        text += connection.recv(int.from_bytes(size, "big") - len(text))
    return json.loads(text), descriptors


def import_everything() -> None:
    """Import all of Bantam and of Hydra's plugins, and what they import late, without starting a thread.

    What Bantam registers with Hydra, and the plugins that Hydra finds, are there too.
    """
    import hydra_plugins
    import plotly.io

    import bantam

    for package in (bantam, hydra_plugins):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "ray_launcher._" not in module.name:  # these import Ray, which starts a thread
                importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    plotly.io.templates["plotly"]  # imports a module for every kind of figure
    gc.freeze()  # a fork that collects garbage would copy every page


def serve(connection: socket.socket) -> Request:
    """Fork for each request and say how the forks end; returns in a fork, with what it is to do.

    The first descriptor of a request is a pipe for the fork's process number and, later, its exit code.
    """
    running: dict[int, tuple[int, int]] = {}  # descriptor of a process: its number, its pipe
    selector = selectors.DefaultSelector()
    selector.register(connection, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fd in running:
                pid, pipe = running.pop(key.fd)
                selector.unregister(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.write(pipe, b"%d\n" % code)
                os.close(pipe)
                os.close(key.fd)
                continue
            request, (pipe, *descriptors) = receive(connection)
            assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose the threads of this process"
            pid = os.fork()
            if pid == 0:
                selector.close()
                connection.close()
                for number in (pipe, *running, *(theirs for _, theirs in running.values())):
                    os.close(number)
                return request, descriptors
            os.write(pipe, b"%d\n" % pid)
            for number in descriptors:
                os.close(number)
            process = os.pidfd_open(pid)
            running[process] = pid, pipe
            selector.register(process, selectors.EVENT_READ)


def keep_spares(script: str, *arguments: str) -> Request | None:
    """Keep forks aside that become the next interpreters that this process starts: workers and other commands.

    Returns None in this process, and in a spare, once it is wanted, what it is to do.
    """
    spares: list[tuple[int, socket.socket]] = []
    wanted = [count for name, count in SPARES.items() if any(name in word for word in (script, *arguments))]
    for _ in range(max(wanted, default=0)):
        ours, theirs = socket.socketpair()
        spare = os.fork()
        if spare == 0:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            for connection in (ours, *(other for _, other in spares)):
                connection.close()
            request = receive(theirs)
            theirs.close()
            return request
        theirs.close()
        spares.append((spare, ours))

    def start(
        arguments: list[bytes], executables: list[bytes], close: bool, kept: tuple[int, ...], *others: Any
    ) -> int:
        folder, environment, stdin, _, _, stdout, _, stderr, _, failure = others[:10]
        program, *rest = map(os.fsdecode, arguments)
        own = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        rest = rest[len(own) :] if rest[: len(own)] == own else rest
        if not spares or program != sys.executable or "resource_tracker" in rest[-1]:
            return fork_exec(arguments, executables, close, kept, *others)
        kept = tuple(number for number in kept if number != failure)  # it tells that a program cannot be started
        outputs = [number if given == -1 else given for number, given in enumerate((stdin, stdout, stderr))]
        request = request_for(
            rest,
            [0, 1, 2, *kept],
            folder=os.fsdecode(folder or os.getcwd()),
            environment=dict(os.environ) if environment is None else dict(map(split, environment)),
            blocked=list(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        )
        spare, connection = spares.pop()
        with connection:
            send(connection, request, [*outputs, *kept])
        return spare

    def end() -> None:
        for spare, connection in spares:
            connection.close()
            os.waitpid(spare, 0)

    atexit.register(end)
    # What `multiprocessing`, joblib and `subprocess` start programs with.
    fork_exec = _posixsubprocess.fork_exec
    _posixsubprocess.fork_exec = subprocess._fork_exec = start  # type: ignore[attr-defined]
    return None


def split(variable: bytes) -> list[str]:
    return os.fsdecode(variable).split("=", 1)


def request_for(arguments: list[str], descriptors: list[int], **other: Any) -> dict[str, Any]:
    """What to run, as in a command line after the word python, by default in this folder and environment.

    `before` is code for the command and for the interpreters that it starts.
    """
    own = {"folder": os.getcwd(), "environment": dict(os.environ), "blocked": [], "before": ""}
    return {"arguments": arguments, "descriptors": descriptors, **own, **other}


def import_from(path: str) -> None:
    """Have Bantam imported again, from another copy in the folders of `path`, and Hydra forget its classes."""
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton

    for kept in (Plugins, SourcesRegistry):
        Singleton._instances.pop(kept, None)
    for name in [name for name in sys.modules if name.split(".")[0] == "bantam"]:
        del sys.modules[name]
    sys.path[1:1] = path.split(os.pathsep)


def become(request: dict[str, Any], descriptors: list[int], before: str) -> None:
    """Take on the descriptors, folder, environment, and signals of a request, and new random numbers."""
    import numpy
    import torch

    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in descriptors]
    for number in descriptors:
        os.close(number)
    for number, wanted in zip(high, request["descriptors"], strict=True):
        os.dup2(number, wanted)
        os.close(number)
    renew_outputs(request["environment"].get("PYTHONIOENCODING"))
    os.chdir(request["folder"])
    path = request["environment"].get("PYTHONPATH", "")
    if path != os.environ.get("PYTHONPATH", ""):
        import_from(path)
        exec(before)  # what it has changed was in the modules that are gone
    os.environ.clear()
    os.environ.update(request["environment"])
    numpy.random.seed()  # `random` does so itself
    torch.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])


def renew_outputs(encoding: str | None) -> None:
    """Open the outputs again, as an interpreter does: a stream keeps whether its descriptor was once a file."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        binary = open(number, "wb", 0 if old.write_through else -1, closefd=False)  # noqa: SIM115
        new = io.TextIOWrapper(
            binary,  # type: ignore[arg-type]
            encoding or old.encoding,
            old.errors,
            line_buffering=name == "stderr" or binary.isatty(),
            write_through=old.write_through,
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def run(arguments: list[str]) -> None:
    """Run a script, -m or -c and end as an interpreter does, but that nothing imported is taken apart."""
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(arguments[1], {"__name__": "__main__"})
        elif arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path[0] = os.path.dirname(arguments[0])
            runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise  # a message, which Python prints
        code = end.code or 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then ask no more
    import_everything()
    request, descriptors = serve(socket.socket(fileno=int(sys.argv[1])))
    before = request["before"]  # of the command that a test runs, for the interpreters that it starts too
    exec(before)
    while wanted := keep_spares(*request["arguments"]):
        request, descriptors = wanted
    become(request, descriptors, before)
    run(request["arguments"])
