"""A process that imports everything once and is forked for every command that a test runs; Linux only.

A fork leaves `serve` and goes on as Python would with the command: exit codes, tracebacks, signals and what runs
at exit are Python's own.
"""

import atexit
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
import threading
from multiprocessing import util
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

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
    """Import all of Bantam and of Hydra's plugins, and what they import late, without starting a thread."""
    import hydra_plugins

    import bantam

    for package in (bantam, hydra_plugins):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for name in ("torch._dynamo", "torchvision.datasets", "sklearn.model_selection", "plotly.subplots"):
        importlib.import_module(name)
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


def keep_spare() -> Request | None:
    """Keep a fork aside which becomes the fork server that `multiprocessing` would start from nothing.

    Returns None in the command, and in the spare, once it is wanted, what it is to do.
    """
    ours, theirs = socket.socketpair()
    spare = os.fork()
    if spare == 0:
        ours.close()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        request = receive(theirs)
        theirs.close()
        return request
    theirs.close()
    start = util.spawnv_passfds

    def hand_over(path: str, arguments: list[str], descriptors: list[int]) -> int:
        if "multiprocessing.forkserver" not in str(arguments[-1]) or ours.fileno() < 0:
            return start(path, arguments, descriptors)
        numbers = [0, 1, 2, *descriptors]
        blocked = list(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        send(ours, request_for(["-c"], numbers, blocked=blocked, code=str(arguments[-1])), numbers)
        ours.close()
        return spare

    util.spawnv_passfds = hand_over
    return None


def request_for(arguments: list[str], descriptors: list[int], **other: Any) -> dict[str, Any]:
    """What to run, by default this script in this folder and environment, with no signal blocked.

    `before` is code for the command and for the workers of a search; `code` runs in place of a script.
    """
    own = {"folder": os.getcwd(), "environment": dict(os.environ), "blocked": [], "code": "", "before": ""}
    return {"arguments": arguments, "descriptors": descriptors, **own, **other}


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Take on the descriptors, folder, environment, arguments and signals of a request, and new random numbers."""
    import numpy
    import torch

    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in descriptors]
    for number in descriptors:
        os.close(number)
    for number, wanted in zip(high, request["descriptors"], strict=True):
        os.dup2(number, wanted)
        os.close(number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    numpy.random.seed()  # `random` does so itself
    torch.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])


def run(request: dict[str, Any]) -> None:
    """Run a request's script or code and end as an interpreter does, but that nothing imported is taken apart."""
    try:
        if request["code"]:
            exec(request["code"])
        else:
            runpy.run_path(request["arguments"][0], run_name="__main__")
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
    exec(request["before"])
    request, descriptors = keep_spare() or (request, descriptors)
    become(request, descriptors)
    run(request)
