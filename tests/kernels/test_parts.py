"""The parts of every kind of block can be measured, as `benchmarks/parts.py` does: its code compiles."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bantam.kernels import compiler

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import spills

pytestmark = pytest.mark.slow

V2 = {"SIDE": 26, "CI": 16, "CO": 16, "KERNEL": 3, "RELU_FIRST": 1, "POOL": 2}
KINDS = {
    "3×3": {},
    "one channel": {"CI": 1},
    "5×5, bias, no pool": {"KERNEL": 5, "BIAS": 1, "POOL": 1},
    "stride": {"STRIDE": 2, "POOL": 1},
    "padding, sum": {"PADDING": 1, "POOL": 1, "SUM": 1},
    "depthwise": {"DEPTHWISE": 1},
}
OF_VECTORS = {**spills.VECTORS, "AMX": ("sapphirerapids", {"BFLOAT16": 1, "MATRIX_UNIT": 1})}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of a processor with other instructions")
@pytest.mark.parametrize("vectors", OF_VECTORS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_block_compile(kind: str, vectors: str, tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc")
    architecture, own = OF_VECTORS[vectors]
    if own.get("BFLOAT16") and not {"STRIDE", "SUM"}.isdisjoint(KINDS[kind]):
        pytest.skip("PyTorch computes those in bfloat16")
    sizes = {"BFLOAT16": 0, "MATRIX_UNIT": 0, "HALVES": 0, **V2, **KINDS[kind], **own}
    for file, text in compiler.SOURCES.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    constants = "".join(f"#define {size} {value}\n" for size, value in sizes.items())
    parts = Path(spills.__file__).with_name("parts.c").read_text(encoding="utf-8")
    (tmp_path / "parts.c").write_text(constants + compiler.SOURCES["block.c"] + parts, encoding="utf-8")
    flags = [flag.replace("native", architecture).replace("-O3", "-O1") for flag in compiler.FLAGS]
    flags += compiler.flags_of_its_own(("gcc",), "x86_64")
    command = ["gcc", *flags, "-fPIC", "-c", "parts.c", "-o", "parts.o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
