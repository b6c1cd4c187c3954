import contextlib
import ctypes
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bantam import models
from bantam.kernels import compiler, selfcheck
from bantam.kernels.fuse import fuse

IMAGE = (1, 28, 28)
SIZES = {"SIDE": 5, "CHANNELS": 2, "KERNEL": 3, "BFLOAT16": 0}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache, new and empty, and a temporary folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    compiler.library.cache_clear()
    yield tmp_path / "home" / "bantam"
    compiler.library.cache_clear()


def library(check: Any = selfcheck.compare) -> ctypes.CDLL:
    """Load or compile something small."""
    compiler.library.cache_clear()
    return compiler.library("depthwise.c", check, **SIZES)


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing can be compiled."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "_compile", refuse)


def test_compiled_blocks_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library()
    (kept,) = folder.iterdir()
    compiler.library.cache_clear()
    no_compiler(monkeypatch)
    library()
    assert list(folder.iterdir()) == [kept]


def test_a_dry_run_takes_what_is_kept_and_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "keep_compiled", False)
    library()
    assert not folder.exists()
    assert not any((folder.parents[1] / "tmp").iterdir())
    compiler.forget()
    compiler.library("depthwise.c", selfcheck.compare, **SIZES)  # compiled again, and kept
    (kept,) = folder.iterdir()
    kept.write_bytes(b"damaged")
    monkeypatch.setattr(compiler, "keep_compiled", False)
    library()
    assert kept.read_bytes() == b"damaged"
    compiler.forget()
    library()
    (kept,) = folder.iterdir()
    monkeypatch.setattr(compiler, "keep_compiled", False)
    no_compiler(monkeypatch)
    library()
    assert list(folder.iterdir()) == [kept]


@pytest.mark.parametrize(
    ("cc", "reason"),
    [("no-such-compiler", "there is no C compiler"), ("false", "cannot compile the blocks: exit code 1")],
)
def test_a_machine_that_cannot_compile_says_so(cc: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", cc)
    with pytest.raises(compiler.Unavailable, match=reason):
        fuse(models.V2(), IMAGE)


@pytest.mark.parametrize("damage", ["halved", "empty", "foreign", "one byte", "writable", "link"])
def test_what_was_damaged_is_built_anew(damage: str, folder: Path) -> None:
    library()
    (kept,) = folder.iterdir()
    whole = kept.read_bytes()
    other = folder.parent / "other.so"
    other.write_bytes(b"#!/bin/sh\n")
    kept.unlink()  # it is loaded: writing into it would be the end of this process
    if damage == "link":
        kept.symlink_to(other)
    else:
        middle = len(whole) // 2
        kept.write_bytes(
            {
                "halved": whole[:middle],
                "empty": b"",
                "foreign": other.read_bytes(),
                "one byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
                "writable": whole,
            }[damage]
        )
    if damage == "writable":
        kept.chmod(0o666)
    library()
    (again,) = folder.iterdir()
    assert again.read_bytes() == whole
    assert not again.stat().st_mode & 0o022
    assert other.read_bytes() == b"#!/bin/sh\n"


def test_nobody_else_can_write_to_the_cache(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    library()
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="only root gives folders away")
@pytest.mark.parametrize("which", ["folder", "file"])
def test_what_another_user_put_there_is_not_loaded(
    which: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library()
    (kept,) = folder.iterdir()
    os.chown(kept if which == "file" else folder, 12345, 12345)
    library()
    if which == "file":
        (again,) = folder.iterdir()
        assert again.stat().st_uid == 0
    else:
        second = tmp_path / "tmp" / f"bantam-{os.getuid()}"
        assert len(list(second.iterdir())) == 1
        os.chown(second, 12345, 12345)
        with pytest.raises(compiler.Unavailable, match="belongs to another user: remove it or set XDG_CACHE_HOME"):
            library()


def test_another_version_of_the_compiler_compiles_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cc = tmp_path / "cc"
    monkeypatch.setenv("CC", str(cc))
    real = os.environ.get("CC_OF_THE_TESTS", "cc")
    for version in ("1", "2"):
        cc.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo {version}; else exec {real} "$@"; fi\n')
        cc.chmod(0o755)
        compiler._version.cache_clear()
        library()
        assert len(list(folder.iterdir())) == int(version)
    compiler._version.cache_clear()


def test_a_compiler_may_have_arguments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -DUNUSED=1")
    library()
    assert len(list(folder.iterdir())) == 1


def test_what_is_compiled_is_of_the_version_that_was_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is forked from a process that may have started before an update."""
    monkeypatch.setattr(compiler, "__file__", str(tmp_path / "compiler.py"))
    for name in compiler.SOURCES:
        (tmp_path / name).write_text("#error another version\n")
    library()
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("reason", ["a file", "read-only", "full", "no home"])
def test_where_the_cache_cannot_be_written_another_folder_serves(
    reason: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "a file":
        folder.parent.mkdir()
        folder.write_text("")
    if reason == "read-only":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/1")  # not even root writes there
    if reason == "full":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))
        compiled = compiler._compile

        def compile_where_there_is_room(command: tuple[str, ...], building: Path) -> None:
            if tmp_path / "full" in building.parents:
                raise compiler.Unavailable("cc: fatal error: error writing to block.s: No space left on device")
            compiled(command, building)

        monkeypatch.setattr(compiler, "_compile", compile_where_there_is_room)
    if reason == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")

        def home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", home)
    library()
    second = tmp_path / "tmp" / f"bantam-{os.getuid()}"
    assert [path.suffix for path in second.iterdir()] == [".so"]
    assert second.stat().st_mode & 0o777 == 0o700
    with monkeypatch.context() as patch:
        no_compiler(patch)
        library()
    monkeypatch.setattr(tempfile, "tempdir", "/proc/1")
    message = {"full": "No space left on device", "no home": "cannot be kept in /proc/1"}
    with pytest.raises(compiler.Unavailable, match=message.get(reason, "compiled blocks cannot be kept in")):
        library()


@pytest.mark.whole
def test_what_computes_something_else_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compiler._compile
    changes = [
        ("depthwise.h", "sum += given_channels(from - TAP_OFFSET", "sum -= given_channels(from - TAP_OFFSET"),
        ("block.c", "sums[k] += weights[k]", "sums[k] += 2 * weights[k]"),
        ("block.c", "int row = 0; row < OUT", "int row = 1; row < OUT"),
    ]

    def compile_wrong(command: tuple[str, ...], building: Path) -> None:
        name, right, wrong = changes[-1]
        text = (building / name).read_text(encoding="utf-8")
        assert right in text
        (building / name).write_text(text.replace(right, wrong), encoding="utf-8")
        compiled(command, building)

    while changes:
        with monkeypatch.context() as patch:
            patch.setattr(compiler, "_compile", compile_wrong)
            with pytest.raises(compiler.Unavailable, match="what this compiler makes of depthwise.c is wrong"):
                library()
        changes.pop()
        assert not list(folder.iterdir())
    library()
    assert len(list(folder.iterdir())) == 1


SCRIPT = f"""
import sys, time
from pathlib import Path
from types import SimpleNamespace
from bantam.kernels import compiler, selfcheck
built = compiler._compile
def slow(command, building):
    Path(sys.argv[1]).write_text("building")
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    built(command, building)
compiler._compile = slow
compiler.library("depthwise.c", selfcheck.compare, **{SIZES})
"""


@pytest.mark.whole
def test_two_processes_may_compile_at_once_and_what_a_killed_one_left_is_removed(
    folder: Path, tmp_path: Path
) -> None:
    names = ("other", "killed")
    arguments = ([sys.executable, "-c", SCRIPT, str(tmp_path / name), str(tmp_path / "go")] for name in names)
    with contextlib.ExitStack() as stack:
        other, killed = [stack.enter_context(subprocess.Popen(argument)) for argument in arguments]
        while not all((tmp_path / name).exists() for name in names):
            assert other.poll() is killed.poll() is None
            time.sleep(0.05)
        assert [path.name.startswith("building-") for path in folder.iterdir()] == [True] * 2
        killed.kill()
        killed.wait()
        library()  # compiles while the other does, and removes what the killed one left
        assert sorted(path.suffix for path in folder.iterdir()) == ["", ".so"]
        (tmp_path / "go").write_text("")
        assert other.wait(timeout=120) == 0
    assert [path.suffix for path in folder.iterdir()] == [".so"]


def test_what_cannot_be_loaded_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, **options: Any) -> None:
        raise OSError(f"{path}: undefined symbol: __kmpc_for_static_init_4")

    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(compiler.Unavailable, match=r"or loaded: .*threads.so: undefined symbol: __kmpc"):
        library()
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("machine", "flag"), [("x86_64", "-march"), ("aarch64", "-mcpu"), ("arm64", "-mcpu"), ("riscv64", "-march")]
)
def test_the_flags_are_those_of_the_machine(machine: str, flag: str) -> None:
    assert [one for one in compiler.flags(machine) if one.endswith("=native")] == [f"{flag}=native"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="PyTorch limits vectors of these processors")
@pytest.mark.parametrize(("limit", "without"), [("default", "__AVX__"), ("avx2", "__AVX512F__")])
def test_no_larger_vectors_are_used_than_pytorch_is_told_to_use(
    limit: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", limit)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": True})
    command = compiler.compiler()
    assert command is not None
    flags = [*compiler.flags("x86_64"), *compiler.limits("x86_64")]
    asked = [*command, *flags, "-dM", "-E", "-x", "c", os.devnull]
    known = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert "__SSE2__" in known
    assert without not in known
    assert not compiler.bfloat16()
    assert not compiler.matrix_unit.__wrapped__()
    assert compiler.limits("aarch64") == ()


@pytest.mark.parametrize(
    ("limit", "allowed"),
    [("", True), ("default", True), ("AVX512_CORE_AMX", True), ("AVX512_CORE_BF16", False), ("avx2", False)],
)
def test_the_matrix_unit_is_left_alone_where_pytorch_is_told_to(
    limit: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": True})
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(syscall=lambda *_: 0))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert compiler.matrix_unit.__wrapped__() == allowed


@pytest.mark.parametrize(
    ("version", "system", "machine", "wanted"),
    [
        ("gcc (Debian 12.2.0) 12.2.0", "linux", "x86_64", ("-fopenmp",)),
        ("gcc (Debian 12.2.0) 12.2.0", "linux", "aarch64", ("-fopenmp", "-fno-schedule-insns")),
        ("Debian clang version 14.0.6", "linux", "aarch64", ("-fopenmp",)),
        ("Apple clang version 15.0.0 (clang-1500.3.9.4)", "darwin", "arm64", ("-Xclang", "-fopenmp")),
    ],
)
def test_each_compiler_has_flags_of_its_own(
    version: str, system: str, machine: str, wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "_version", lambda command: version)
    monkeypatch.setattr(sys, "platform", system)
    assert compiler.flags_of_its_own(("cc",), machine) == wanted


@pytest.mark.parametrize(
    ("vendor", "family", "wanted"),
    [("AuthenticAMD", "25", True), ("AuthenticAMD", "26", False), ("GenuineIntel", "6", False)],
)
def test_only_zen_4_computes_in_halves(vendor: str, family: str, wanted: bool, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nflags\t\t: fpu\n\n")
    assert compiler.in_halves(cpuinfo) is wanted
    assert compiler.in_halves(tmp_path / "missing") is False


def test_what_another_openmp_was_linked_for_is_not_the_end_of_the_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home folder may be shared by environments whose PyTorch has another OpenMP."""
    library()
    (kept,) = folder.iterdir()
    load, refused = compiler._load, []

    def refuse(path: Path) -> ctypes.CDLL:
        if not refused:
            refused.append(path)
            raise OSError(f"{path}: undefined symbol: GOMP_parallel")
        return load(path)

    monkeypatch.setattr(compiler, "_load", refuse)
    library()
    assert refused == [kept]
    assert kept in folder.iterdir()
