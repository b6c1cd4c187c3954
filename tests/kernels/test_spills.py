"""Sums and factors of the convolutions stay in registers, as `benchmarks/spills.py` sees it."""

import platform
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from spills import VECTORS, Loop, disassembled, loops

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


def test_a_sum_on_the_stack_is_seen() -> None:
    assert list(loops(SPILLED)) == [Loop("row", 1, 1)]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of a processor with other instructions")
@pytest.mark.parametrize("kind", VECTORS)
def test_products_store_nothing_on_the_stack(kind: str) -> None:
    if not shutil.which("gcc") or not shutil.which("objdump"):
        pytest.skip("there is no gcc or no objdump")
    sizes = {"SIDE": 26, "CI": 16, "CO": 16, "KERNEL": 3, "RELU_FIRST": 1, "POOL": 2}
    text = disassembled("gcc", VECTORS[kind], sizes | {"BFLOAT16": 0, "MATRIX_UNIT": 0})
    found = [loop for loop in loops(text) if loop.multiplications >= 8]
    assert found
    assert not [loop for loop in found if loop.stores]
