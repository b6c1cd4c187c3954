"""The C code where PyTorch brings no OpenMP of its compiler: it has threads of its own, and computes the same."""

import ctypes
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bantam.kernels import compiler
from bantam.kernels.fuse import fuse
from bantam.models import Flexible

IMAGE = (1, 20, 20)
LOOPS = """
#include <pthread.h>
void shared(int threads, int count, int part, unsigned long *who)
{
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static, part) nowait
        for (int i = 0; i < count; i++)
            who[i] = (unsigned long)pthread_self();
    }
}
void equal(int threads, int count, int part, unsigned long *who)
{
    (void)part;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < count; i++)
        who[i] = (unsigned long)pthread_self();
}
"""


def without_openmp(patch: pytest.MonkeyPatch) -> None:
    """From now on nothing in this process has the functions of OpenMP."""
    load = compiler._load

    def own(path: Path) -> ctypes.CDLL:
        if path.name == "block.so":
            raise OSError(f"{path}: undefined symbol: GOMP_parallel")
        return load(path)

    patch.setattr(compiler, "_load", own)


@pytest.fixture(params=["gcc", "clang"])
def command(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if not shutil.which(request.param):
        pytest.skip(f"there is no {request.param}")
    monkeypatch.setenv("CC", request.param)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler.library.cache_clear()
    yield request.param
    compiler.library.cache_clear()


Shares = Callable[[str, int, int, int], list[list[int]]]


def shares(command: str, folder: Path, patch: pytest.MonkeyPatch, change: tuple[str, str] = ("", "")) -> Shares:
    """A function that says how loops are shared: which numbers each thread had, one after another."""
    without_openmp(patch)
    folder.mkdir()
    (folder / "block.c").write_text(LOOPS)
    text = compiler.SOURCES["threads.c"]
    assert change[0] in text
    (folder / "threads.c").write_text(text.replace(*change) if change[0] else text)
    words = (shutil.which(command) or command,)
    compiler._compile(words, folder)
    path, library = compiler._with_threads(words, folder / "block.so")
    assert path.name == "threads.so"

    def of(function: str, threads: int, count: int, part: int) -> list[list[int]]:
        who = (ctypes.c_ulong * count)()
        getattr(library, function)(threads, count, part, who)
        parts: list[list[int]] = []
        for i in range(count):
            if i and who[i] == who[i - 1]:
                parts[-1].append(i)
            else:
                parts.append([i])
        assert all(who)
        return parts

    return of


def test_loops_are_shared_as_openmp_shares_them(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = shares(command, tmp_path / "built", monkeypatch)
    assert of("shared", 3, 8, 3) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert of("shared", 4, 2, 1) == [[0], [1]]
    assert of("shared", 2, 8, 2) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert of("equal", 3, 8, 0) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert of("equal", 3, 2, 0) == [[0], [1]]
    assert of("equal", 1, 3, 0) == of("shared", 1, 3, 3) == [[0, 1, 2]]


def test_what_refused_threads_would_have_computed_is_computed_too(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = "!pthread_create(&others[t].id, &attributes, begin, &others[t])"
    of = shares(command, tmp_path / "built", monkeypatch, (begun, "((void)begin, 0)"))
    assert of("shared", 3, 8, 3) == of("equal", 3, 8, 0) == [[*range(8)]]


@pytest.mark.slow
@pytest.mark.parametrize("separable", [False, True])
def test_results_are_those_of_openmp_to_the_bit(
    separable: bool, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gcc; with clang, whose OpenMP PyTorch may not have, of one thread to rounding."""

    def step(threads: int, own: bool) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        model = Flexible(early1=12, early2=12, late1=8, early_separable=separable, late2=0, late3=0)
        model.to(memory_format=torch.channels_last).train()
        with monkeypatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path / str(own)))
            if own:
                without_openmp(patch)
            compiler.library.cache_clear()
            fused = fuse(model, IMAGE).model
        assert fused is not None
        logits = fused(torch.randn(7, *IMAGE))
        F.cross_entropy(logits, torch.randint(10, (7,))).backward()
        return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]

    for threads in (1, 3):
        for ours, theirs in zip(step(threads, True), step(threads, command != "gcc"), strict=True):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(step(3, True), step(1, True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
