"""The C code under AddressSanitizer and UndefinedBehaviorSanitizer, which an interpreter loads before all else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulation import FLAGS

from bantam.kernels import compiler

pytestmark = pytest.mark.slow

SANITIZERS = ("-g", "-fsanitize=address,undefined,bounds-strict", "-fno-sanitize-recover=all")

SCRIPT = """
import sys
import torch
from bantam.kernels import compiler, selfcheck
from bantam.kernels.blocks import Block
from bantam.models import Dropout
compiler.FLAGS = sys.argv[2].split()
compiler.in_halves = lambda: True  # then no vector of floats has a mask, behind which sanitizers see nothing
change = sys.argv[3].split(" → ")
compiled = compiler._compile
def changed(command, folder):
    text = (folder / "block.c").read_text(encoding="utf-8")
    assert change[0] in text
    (folder / "block.c").write_text(text.replace(*change), encoding="utf-8")
    compiled(command, folder)
if change != [""]:
    compiler._compile = changed
for case in sys.argv[1].split(", "):
    name, *sizes = case.split()
    sizes = {size.split("=")[0]: int(size.split("=")[1]) for size in sizes}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        compiler.library.cache_clear()
        library = compiler.library(name, selfcheck.compare, **sizes)
        selfcheck.compare(library, name, sizes)
    if name == "block.c" and not sizes.get("SUM"):
        layers = list(selfcheck._block(name, sizes).layers)
        dtype = torch.bfloat16 if sizes["BFLOAT16"] else torch.float32
        block = Block([*layers[:3], Dropout(0.5), *layers[3:]], dtype)
        side = sizes["SIDE"] - 2 * sizes.get("PADDING", 0)
        x = torch.randn(5, sizes["CI"], side, side, requires_grad=True)
        block.use(library, x.shape[1:])
        block(x).float().sum().backward()
        assert x.grad.isfinite().all()
"""

BLOCKS = [
    "block.c SIDE=28 CI=1 CO=9 KERNEL=3 RELU_FIRST=1 POOL=1",
    "block.c SIDE=13 CI=17 CO=5 KERNEL=3 RELU_FIRST=0 POOL=2",
    "block.c SIDE=9 CI=16 CO=20 KERNEL=3 RELU_FIRST=1 POOL=2",
    "block.c SIDE=8 CI=19 CO=16 KERNEL=3 RELU_FIRST=0 POOL=1 PADDING=1 BIAS=1",
    "block.c SIDE=3 CI=2 CO=33 KERNEL=3 RELU_FIRST=0 POOL=1",
    "block.c SIDE=7 CI=16 CO=16 KERNEL=1 RELU_FIRST=1 POOL=3",
    "block.c SIDE=9 CI=3 CO=7 KERNEL=3 RELU_FIRST=0 POOL=2 PADDING=1 BIAS=1",
    "block.c SIDE=10 CI=2 CO=9 KERNEL=3 RELU_FIRST=1 POOL=2 PADDING=1 STRIDE=2",
    "block.c SIDE=8 CI=5 CO=17 KERNEL=2 RELU_FIRST=1 POOL=2 PADDING=3 BIAS=1 AVERAGE=1",
    "block.c SIDE=9 CI=12 CO=12 KERNEL=3 RELU_FIRST=0 POOL=2 PADDING=1 STRIDE=2 DEPTHWISE=1",
    "block.c SIDE=9 CI=3 CO=17 KERNEL=3 RELU_FIRST=0 POOL=1 PADDING=1 SUM=1",
    "block.c SIDE=7 CI=4 CO=5 KERNEL=3 RELU_FIRST=0 RELU=0 POOL=1 PADDING=1 SUM=1",
]
TILES = [
    "block.c SIDE=10 CI=16 CO=20 KERNEL=3 RELU_FIRST=1 POOL=2 PADDING=1",
    "block.c SIDE=34 CI=2 CO=3 KERNEL=3 RELU_FIRST=1 POOL=1",
    "block.c SIDE=6 CI=20 CO=16 KERNEL=3 RELU_FIRST=0 POOL=1",
]
SEPARABLE = [
    "separable.c SIDE=10 CI=12 CO=20 KERNEL=3 POOL=2 DEPTHWISE=1",
    "separable.c SIDE=7 CI=8 CO=13 KERNEL=3 POOL=2 DEPTHWISE=1",
    "separable.c SIDE=20 CI=40 CO=70 KERNEL=3 POOL=1 DEPTHWISE=1",
    "separable.c SIDE=10 CI=12 CO=20 KERNEL=3 POOL=1 DEPTHWISE=1 PADDING=1",
    "separable.c SIDE=18 CI=3 CO=5 KERNEL=3 POOL=3 DEPTHWISE=0 PADDING=2",
]
EACH = [
    "depthwise.c SIDE=9 CHANNELS=17 KERNEL=5",
    "depthwise.c SIDE=1 CHANNELS=2 KERNEL=1",
    "depthwise.c SIDE=10 CHANNELS=9 KERNEL=3 PADDING=1 STRIDE=2 BIAS=1",
]


def sanitized(tmp_path: Path, cases: list[str], change: str = "") -> subprocess.CompletedProcess[str]:
    """Compile and check blocks; `change` is what of the source to replace, and by what."""
    command = compiler.compiler()
    assert command is not None
    names = ("libasan.so", "libubsan.so")
    libraries = [
        subprocess.run([*command, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in names
    ]
    if not all(os.path.isabs(library) for library in libraries):
        pytest.skip("the compiler has no sanitizers that an interpreter can load")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has
        "XDG_CACHE_HOME": str(tmp_path),
    }
    arguments = [", ".join(cases), " ".join([*FLAGS, *SANITIZERS]), change]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(("bfloat16", "matrix_unit"), [(0, 0), (1, 0), (1, 1)])
def test_nothing_is_read_or_written_out_of_bounds(bfloat16: int, matrix_unit: int, tmp_path: Path) -> None:
    blocks = BLOCKS[bfloat16::2] if bfloat16 else BLOCKS  # emulated vectors compile slowly
    blocks = [block for block in blocks if not bfloat16 or not ("STRIDE" in block or "SUM" in block)]
    blocks += TILES if matrix_unit else []
    cases = [f"{block} BFLOAT16={bfloat16} MATRIX_UNIT={matrix_unit}" for block in blocks]
    cases += [f"{each} BFLOAT16={bfloat16}" for each in EACH if not matrix_unit]
    separable = [each for each in SEPARABLE if "DEPTHWISE=1" in each or not matrix_unit]
    cases += [f"{each} BFLOAT16={bfloat16} MATRIX_UNIT={matrix_unit}" for each in separable]
    done = sanitized(tmp_path, cases)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("bfloat16", "change", "message"),
    [
        (1, "READ > SIDE * SIDE * CI ? READ → 0 ? READ", "heap-buffer-overflow"),
        (0, "result[RESULT] LINES; → result[RESULT / 4] LINES;", "ERROR: AddressSanitizer|out of bounds"),
    ],
)
def test_the_sanitizers_see_what_is_wrong(bfloat16: int, change: str, message: str, tmp_path: Path) -> None:
    done = sanitized(tmp_path, [f"{BLOCKS[4]} BFLOAT16={bfloat16} MATRIX_UNIT={bfloat16}"], change)
    assert done.returncode != 0
    assert any(text in done.stderr for text in message.split("|"))
