"""The C code is compiled without a warning, for each kind of vector."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from bantam.kernels import compiler

FOLDER = Path(compiler.__file__).parent
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
BLOCK = {"SIDE": 26, "CI": 15, "CO": 17, "KERNEL": 3, "MATRIX_UNIT": 0}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of a processor with other instructions")
@pytest.mark.parametrize("command", ["gcc", "clang"])
@pytest.mark.parametrize(
    ("architecture", "bfloat16"), [("x86-64", 0), ("haswell", 0), ("skylake-avx512", 0), ("cooperlake", 1)]
)
def test_a_block_is_compiled_without_a_warning(command: str, architecture: str, bfloat16: int) -> None:
    if not shutil.which(command):
        pytest.skip(f"there is no {command}")
    if command == "clang" and bfloat16:
        pytest.skip("clang has no __builtin_shuffle, with which `pairs.h` transposes")
    flags = [flag.replace("native", architecture) for flag in compiler.FLAGS if flag != "-O3"]
    for relu_first, pool in ((1, 1), (0, 2)):
        sizes = BLOCK | {"RELU_FIRST": relu_first, "POOL": pool, "BFLOAT16": bfloat16}
        sizes |= {"PADDING": pool - 1, "BIAS": relu_first, "AVERAGE": pool - 1, "STRIDE": 1 if bfloat16 else pool}
        constants = [f"-D{name}={value}" for name, value in sizes.items()]
        source = [str(FOLDER / "block.c"), "-o", "/dev/null"]
        done = subprocess.run(
            [command, *flags, "-O1", "-fopenmp", *WARNINGS, *constants, "-c", *source],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
