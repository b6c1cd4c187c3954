"""The C code compiled for AArch64 and run by qemu, one call a process, in place of a loaded library."""

import ctypes
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cross
import numpy as np
import pytest

from bantam.kernels import compiler
from bantam.kernels.arguments import MuonArguments
from bantam.kernels.blocks import bytes_of_dropped

FOLDER = Path(compiler.__file__).parent
HARNESS = Path(__file__).parent / "kernels" / "harness.c"

GRADIENTS = ("grad_weight", "grad_gamma", "grad_beta")
NORM = ("gamma", "beta", "running_mean", "running_variance", "batches")
READ = ("input", "in_factor", "in_offset", "in_statistics", "depthwise", "weight")
LEFT = ("convolved", "pooled", "statistics", "factor", "offset")
BACKWARD = ("input", "weight", "gamma", "beta", "convolved", "statistics", "argmax", "dropped", "grad_output")
SUMS = ("gradient", "sums", "in_gradient", "in_sums")
USED: dict[str, dict[str, tuple[str, ...]]] = {
    "block.c": {
        "forward": ("input", "weight", *NORM, "other", "convolved", "output", "statistics", "argmax", "dropped"),
        "score": ("input", "weight", "factor", "offset", "other", "output"),
        "backward": (*BACKWARD, "output", "grad_input", "grad_other", *GRADIENTS),
    },
    "depthwise.c": {
        "forward": ("input", "weight", "output"),
        "backward": ("input", "weight", "grad_output", "grad_input", "grad_weight"),
    },
    "separable.c": {
        "forward": (*READ, *NORM, *LEFT),
        "finish": ("factor", "offset", "pooled", "output"),
        "begin_backward": ("statistics", "factor", "offset", "grad_output", "pooled", "gradient", "sums"),
        "backward": (*READ, "gamma", *LEFT, *SUMS, "grad_depthwise", *GRADIENTS),
    },
    "muon.c": {"step": ()},
}
"""What each function reads or writes: other pointers may be those of an earlier step."""


def lengths(source: str, sizes: dict[str, int], images: int) -> dict[str, int]:
    """How many bytes the pointers of a structure point to, as `arguments.h` says."""
    inputs, outputs = (sizes.get(name, sizes.get("CHANNELS", 0)) for name in ("CI", "CO"))
    side, taps, pool = sizes["SIDE"], sizes["KERNEL"] ** 2, sizes.get("POOL", 1)
    out = side - sizes["KERNEL"] + 1
    image_side = side - 2 * sizes.get("PADDING", 0)
    image, pooled = images * image_side**2 * inputs, images * (out // pool) ** 2 * outputs
    dense = source == "block.c" or (source == "separable.c" and not sizes["DEPTHWISE"])
    weight = outputs * taps * inputs if dense else outputs * inputs if source == "separable.c" else taps * inputs
    numbers = dict.fromkeys(("input", "grad_input", "in_gradient"), image)
    numbers |= dict.fromkeys(("output", "other", "pooled", "grad_output", "grad_other", "gradient"), pooled)
    numbers |= dict.fromkeys((*NORM, "factor", "offset", "grad_gamma", "grad_beta"), outputs) | {"batches": 2}
    numbers |= dict.fromkeys(("weight", "grad_weight"), weight)
    numbers |= dict.fromkeys(("depthwise", "grad_depthwise"), inputs * taps)
    numbers |= dict.fromkeys(("in_factor", "in_offset"), inputs)
    numbers |= {"convolved": images * out**2 * outputs}
    numbers |= {"statistics": 2 * outputs, "in_statistics": 2 * inputs}
    numbers |= {"sums": 2 * 2 * outputs, "in_sums": 2 * 2 * inputs}  # of double precision
    return {name: 4 * count for name, count in numbers.items()} | {
        "argmax": pooled if pool > 1 else 0,
        "dropped": images * bytes_of_dropped(out, outputs),
    }


class Memory:
    """What goes to the harness: structures and what they point to, each once, with room to read beyond its end."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.places: dict[int, tuple[int, int]] = {}
        """By address here: where something is in the file, and how long it is."""
        self.pointers: list[int] = []

    def put(self, address: int, length: int) -> int:
        """Copy what is at an address here; returns where it is."""
        if address not in self.places:
            self.places[address] = len(self.content), length
            self.content += ctypes.string_at(address, length) + bytes(64 + -length % 64)
        return self.places[address][0]

    def point(self, at: int, address: int, length: int) -> None:
        """Let the pointer that is `at` some place point to a copy of what it points to here."""
        to = self.put(address, length)
        self.content[at : at + 8] = to.to_bytes(8, "little")
        self.pointers.append(at)

    def take_back(self, content: bytes, but: int) -> None:
        """Copy what a function has left to where it came from, all `but` the structures."""
        for address, (place, length) in itertools.islice(self.places.items(), but, None):
            ctypes.memmove(address, content[place : place + length], length)


class Emulated:
    """A C file compiled for AArch64, whose functions are called as those of a loaded library are."""

    def __init__(self, folder: Path, source: str, sizes: dict[str, int], command: list[str]) -> None:
        self.source, self.sizes = source, sizes
        self.program = folder / "harness"
        self.files = [folder / "memory", folder / "pointers"]
        flags = [flag.replace("-O3", "-O2") for flag in cross.flags(command, "aarch64", "generic")]
        constants = [f"-D{name}={value}" for name, value in sizes.items()]
        constants += [f'-DSOURCE="{source}"', "-DFUNCTIONS=" + "".join(f"DO({name})" for name in USED[source])]
        compiled = [str(folder / "harness.o"), str(folder / "threads.o")]
        code = [*flags, "-Wall", "-Werror", *constants, f"-I{FOLDER}", "-c", str(HARNESS)]
        for arguments in (
            [*code, "-o", compiled[0]],
            [*flags, "-c", str(FOLDER / "threads.c"), "-o", compiled[1]],
            ["-static", *compiled, "-lm", "-o", str(self.program)],
        ):
            subprocess.run([*command, *arguments], check=True)
        for name in USED[source]:
            setattr(self, name, self.function(name))

    def function(self, name: str) -> Callable[[Any], None]:
        """One of its functions, which takes its arguments as a structure."""

        def call(arguments: ctypes.Structure) -> None:
            memory, structures = Memory(), 1
            memory.put(ctypes.addressof(arguments), ctypes.sizeof(arguments))
            if isinstance(arguments, MuonArguments):
                structures += bool(arguments.count)
                self.put_tensors(memory, arguments)
            else:
                known = lengths(self.source, self.sizes, arguments.images)  # type: ignore[attr-defined]
                for field in USED[self.source][name]:
                    if address := getattr(arguments, field):
                        memory.point(getattr(type(arguments), field).offset, address, known[field])
            self.files[0].write_bytes(memory.content)
            self.files[1].write_bytes(np.array(memory.pointers, dtype="<u8").tobytes())
            subprocess.run([*EMULATOR, str(self.program), name, *map(str, self.files)], check=True)
            memory.take_back(self.files[0].read_bytes(), structures)

        return call

    def put_tensors(self, memory: Memory, arguments: MuonArguments) -> None:
        """The tensors of a step, whose structure points to structures."""
        tensors = arguments.tensors
        if not arguments.count:
            return
        size = ctypes.sizeof(tensors[0])
        address = ctypes.addressof(tensors[0])
        memory.point(MuonArguments.tensors.offset, address, arguments.count * size)
        start = memory.places[address][0]
        for i in range(arguments.count):
            for field in ("weight", "gradient", "momentum"):
                at = start + i * size + getattr(type(tensors[i]), field).offset
                memory.point(at, getattr(tensors[i], field), 4 * tensors[i].rows * tensors[i].columns)


EMULATOR = ("qemu-aarch64",)


def libraries(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From now on gcc or clang compiles for AArch64. Skips the test where that or qemu is missing."""
    command = cross.command(name, "aarch64")
    if not shutil.which(EMULATOR[0]):
        pytest.skip(f"there is no {EMULATOR[0]}")
    known: dict[Any, Emulated] = {}

    def library(source: str, check: Callable[..., None], **sizes: int) -> Emulated:
        key = source, *sizes.items()
        if key not in known:
            place = folder / str(len(known))
            place.mkdir()
            emulated = Emulated(place, source, sizes, command)
            check(emulated, source, sizes)
            known[key] = emulated
        return known[key]

    monkeypatch.setattr(compiler, "library", library)
    yield
