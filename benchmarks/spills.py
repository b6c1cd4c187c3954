"""Which innermost loops of the blocks in C put numbers on the stack between their multiplications?

    python benchmarks/spills.py
    python benchmarks/spills.py model=v2 model.width=15

Sums and factors of a convolution must stay in the processor's registers: a compiler that runs out of them stores
and loads some in every turn of a loop, and the block takes up to twice as long. Which compiler does that for which
tile is only seen in what it makes: so the blocks of a network (by default of V2, champion and the flexible one)
are compiled by gcc and by clang, where they are installed, for each kind of vector, without being run, and their
disassembly is read (objdump).
"""

import argparse
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from bantam import config
from bantam.kernels import compiler
from bantam.kernels.blocks import Block
from bantam.kernels.chain import Chain
from bantam.training.setup import RunInfo, prepare

NETWORKS = (["model=v2"], ["experiment=champion"], ["model=flexible"])
VECTORS: dict[str, tuple[str, dict[str, int]]] = {
    "SSE": ("x86-64", {}),
    "AVX": ("sandybridge", {}),
    "AVX2": ("haswell", {}),
    "AVX-512": ("skylake-avx512", {}),
    "AVX-512 in halves": ("skylake-avx512", {"HALVES": 1}),
    "AVX-512, bfloat16": ("cooperlake", {"BFLOAT16": 1}),
}
"""Kinds of vectors: a processor that has them, and sizes of their own. Other processors have one kind."""

INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
MULTIPLY = re.compile(r"^v?(fn?m(add|sub)\d*ps|mulps)$|^fml[as]$|^vdpbf16ps$")
BRANCH = re.compile(r"^(j|b\.|cbn?z|tbn?z)")
TARGET = re.compile(r"(?:^|, )([0-9a-f]+) <")
STORE = re.compile(r"^%[xyz]mm\d+,([-0-9a-fx]*\(%r[sb]p\))$")
"""To a place that is the same in every turn."""
NEON = re.compile(r"^q\d+, .*(\[(?:sp|x29)\b.*\])$")
"""Likewise on AArch64, also to read from there: two registers may be stored and one of them loaded."""


@dataclass
class Loop:
    """An innermost loop that multiplies."""

    function: str
    multiplications: int
    stores: int
    """Of vectors to the stack, that the loop loads again."""


def loops(disassembly: str) -> Iterator[Loop]:
    """The innermost loops with multiplications, in what `objdump -d --no-show-raw-insn` writes."""
    for function in disassembly.split("\n\n"):
        name = re.search(r"<(\S+)>:", function)
        found = [match for match in map(INSTRUCTION.match, function.splitlines()) if match]
        places = {int(match[1], 16): i for i, match in enumerate(found)}
        back = []
        for i, match in enumerate(found):
            target = TARGET.search(match[3]) if BRANCH.match(match[2]) else None
            start = places.get(int(target[1], 16)) if target else None
            if start is not None and start <= i:
                back.append((start, i))
        for start, end in back:
            if any((start, end) != (s, e) and start <= s and e <= end for s, e in back):
                continue
            inside = found[start : end + 1]
            count = sum(bool(MULTIPLY.match(match[2])) for match in inside)
            if count and name:
                stores = [store[1] for match in inside if "mov" in match[2] and (store := STORE.match(match[3]))]
                # A row of an image on the stack is stored at such places too, where a loop is short: not loaded.
                loaded = [place for place in stores if any(f"{place}," in match[3] for match in inside)]
                neon = [match[2] for match in inside if NEON.match(re.sub(r"^(q\d+), q\d+,", r"\1,", match[3]))]
                kept = sum(operation.startswith("st") for operation in neon)
                yield Loop(name[1], count, len(loaded) + (kept if kept < len(neon) else 0))


def disassembled(command: str, architecture: str, sizes: dict[str, int], source: str = "block.c") -> str:
    """A block, or one of a chain, compiled but not linked, as instructions."""
    constants = "".join(f"#define {size} {value}\n" for size, value in sizes.items())
    flags = [flag.replace("native", architecture) for flag in compiler.FLAGS]
    flags += compiler.flags_of_its_own((command,), platform.machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in compiler.SOURCES.items():
            (folder / file).write_text(text, encoding="utf-8")
        (folder / "block.c").write_text(constants + compiler.SOURCES[source], encoding="utf-8")
        for step in (
            [command, *flags, "-fPIC", "-c", "block.c", "-o", "block.o"],
            ["objdump", "-d", "--no-show-raw-insn", "block.o"],
        ):
            done = subprocess.run(step, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(step)}: {done.stderr.strip()}")
    return done.stdout


def shapes(overrides: list[str]) -> list[tuple[str, dict[str, int]]]:
    """The files and sizes of the blocks, and of those of chains, of a configuration's network."""
    with initialize_config_dir(str(Path(__file__).resolve().parent.parent / "conf")):
        cfg = compose("config", ["threads=1", "precision=float32", "kernels=native", *overrides])
    groups = ("model", "optimizer", "scheduler", "augmentation", "data")
    prepared = prepare(cfg, RunInfo(Path("none"), dict.fromkeys(groups, "that"), 1, None))
    found: list[tuple[str, dict[str, int]]] = []
    for module in (each for each in prepared.training_model.modules() if isinstance(each, Block | Chain)):
        for shape in module.libraries:
            sizes = module.sizes(shape)
            parts = sizes if isinstance(sizes, list) else [sizes] if sizes else []
            found += [("block.c" if isinstance(module, Block) else "separable.c", part) for part in parts]
    return [one for i, one in enumerate(found) if one not in found[:i]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also the loops that store nothing")
    parser.add_argument("overrides", nargs="*", help="of the configuration; without any, three networks")
    arguments = parser.parse_args()
    commands = [command for command in ("gcc", "clang") if shutil.which(command)]
    if not commands or not shutil.which("objdump"):
        raise SystemExit("this needs gcc or clang, and objdump (binutils)")
    config.register()
    kinds = VECTORS if platform.machine() == "x86_64" else {"its own": ("native", {})}
    table = Table(box=None)
    for column in ("network", "block", "compiler", "vectors", "loop in", "multiplications", "stores to the stack"):
        table.add_column(
            column, justify="right" if column in ("multiplications", "stores to the stack") else "left"
        )
    seen, stored = 0, 0
    console = Console(width=160)
    for overrides in [arguments.overrides] if arguments.overrides else NETWORKS:
        for source, sizes in shapes(overrides):
            block = f"{sizes['SIDE']}×{sizes['SIDE']}, {sizes['CI']} → {sizes['CO']}, kernel {sizes['KERNEL']}"
            for command in commands:
                for kind, (architecture, own) in kinds.items():
                    for loop in loops(disassembled(command, architecture, sizes | own, source)):
                        seen, stored = seen + 1, stored + bool(loop.stores)
                        if loop.stores or arguments.all:
                            counts = (str(loop.multiplications), str(loop.stores))
                            table.add_row(" ".join(overrides), block, command, kind, loop.function, *counts)
    if table.rows:
        console.print(table)
    console.print(f"{seen} innermost loops that multiply, {stored} that put vectors on the stack")


if __name__ == "__main__":
    main()
