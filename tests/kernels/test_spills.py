"""Sums and factors of the convolutions stay in registers, as `benchmarks/spills.py` sees it."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import cross
import pytest

from bantam.kernels import compiler

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from spills import VECTORS, Loop, disassembled, loops

pytestmark = pytest.mark.slow

SPILLED = """
0000000000000000 <row>:
       0:	vbroadcastss (%rdi),%ymm0
       4:	vmovups 0x20(%rsp),%ymm1
       8:	vfmadd231ps (%rsi),%ymm0,%ymm1
       c:	vmovups %ymm1,0x20(%rsp)
      10:	vmovups %ymm0,0x40(%rsp)
      14:	add    $0x4,%rdi
      18:	cmp    %rdi,%rdx
      1c:	jne    0 <row>
      1e:	jmp    0 <row>

0000000000000020 <copy>:
      20:	vmovups %ymm1,0x20(%rsp)
      24:	jne    20 <copy>
"""


NEON = """
0000000000000000 <row>:
   0:	ldr	q1, [sp, #32]
   4:	fmla	v1.4s, v2.4s, v3.s[0]
   8:	stp	q0, q1, [sp, #16]
   c:	subs	x2, x2, #0x1
  10:	b.ne	0 <row>  // b.any
"""


def test_a_sum_on_the_stack_is_seen() -> None:
    assert list(loops(SPILLED)) == [Loop("row", 1, 1)]
    assert list(loops(NEON)) == [Loop("row", 1, 1)]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of a processor with other instructions")
@pytest.mark.parametrize("kind", VECTORS)
def test_products_store_nothing_on_the_stack(kind: str) -> None:
    if not shutil.which("gcc") or not shutil.which("objdump"):
        pytest.skip("there is no gcc or no objdump")
    architecture, own = VECTORS[kind]
    sizes = {"SIDE": 26, "CI": 16, "CO": 16, "KERNEL": 3, "RELU_FIRST": 1, "POOL": 2, "MATRIX_UNIT": 0}
    cases = [("block.c", 0)] if own.get("BFLOAT16") else [("block.c", 0), ("block.c", 1)]
    # A depthwise convolution has nine factors: of sixteen registers too few are left where products take one too.
    cases += [] if kind in ("SSE", "AVX") else [("separable.c", 1)]
    for source, depthwise in cases:
        sizes |= {"BFLOAT16": 0, "HALVES": 0, "DEPTHWISE": depthwise, **own}
        text = disassembled("gcc", architecture, sizes, source)
        found = [loop for loop in loops(text) if loop.multiplications >= 8]
        assert found
        few = source == "separable.c" and kind == "AVX2"
        assert not [loop for loop in found if loop.stores > (loop.multiplications / 16 if few else 0)]


@pytest.mark.parametrize("source", ["block.c", "separable.c"])
def test_products_of_neon_store_nothing_on_the_stack(source: str, tmp_path: Path) -> None:
    command = cross.command("gcc", "aarch64")
    objdump = "objdump" if platform.machine() == "aarch64" else "aarch64-linux-gnu-objdump"
    if not shutil.which(objdump):
        pytest.skip(f"there is no {objdump}")
    sizes = {"SIDE": 24, "CI": 12, "CO": 24, "KERNEL": 3, "POOL": 2, "BFLOAT16": 0}
    sizes |= {"RELU_FIRST": 1, "MATRIX_UNIT": 0} if source == "block.c" else {"DEPTHWISE": 1}
    constants = [f"-D{size}={value}" for size, value in sizes.items()]
    file = str(Path(compiler.__file__).with_name(source))
    flags = [*cross.flags(command, "aarch64", "generic"), *constants]
    subprocess.run([*command, *flags, "-c", file, "-o", str(tmp_path / "block.o")], check=True)
    shown = [objdump, "-d", "--no-show-raw-insn", str(tmp_path / "block.o")]
    text = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    found = [loop for loop in loops(text) if loop.multiplications >= 8]
    assert found
    assert not [loop for loop in found if loop.stores]
