"""gcc and clang compile the C code without a warning, for each kind of vector of x86-64 and for AArch64."""

import subprocess
from pathlib import Path

import cross
import pytest

from bantam.kernels import compiler

pytestmark = pytest.mark.slow

FOLDER = Path(compiler.__file__).parent
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
BLOCK = {"SIDE": 26, "CI": 15, "CO": 17, "KERNEL": 3}
FORMS = [
    {"RELU_FIRST": 1, "POOL": 1, "PADDING": 0, "BIAS": 1, "AVERAGE": 0},
    {"RELU_FIRST": 0, "POOL": 2, "PADDING": 1, "BIAS": 0, "AVERAGE": 1},
]
FLOATS = [
    *(("block.c", BLOCK | form | {"BFLOAT16": 0, "MATRIX_UNIT": 0}) for form in FORMS),
    ("block.c", BLOCK | FORMS[1] | {"STRIDE": 2, "RELU": 0, "BFLOAT16": 0, "MATRIX_UNIT": 0}),
    ("block.c", BLOCK | FORMS[1] | {"CI": 17, "STRIDE": 2, "DEPTHWISE": 1, "BFLOAT16": 0, "MATRIX_UNIT": 0}),
    ("block.c", BLOCK | FORMS[1] | {"POOL": 1, "AVERAGE": 0, "SUM": 1, "BFLOAT16": 0, "MATRIX_UNIT": 0}),
    ("block.c", BLOCK | FORMS[0] | {"SIDE": 9, "CI": 40, "CO": 33, "BFLOAT16": 0, "MATRIX_UNIT": 0}),
    ("block.c", BLOCK | FORMS[1] | {"CO": 13, "AVERAGE": 0, "BFLOAT16": 0, "MATRIX_UNIT": 0}),
    ("depthwise.c", {"SIDE": 9, "CHANNELS": 17, "KERNEL": 3, "BFLOAT16": 0}),
    ("depthwise.c", {"SIDE": 9, "CHANNELS": 11, "KERNEL": 3, "BFLOAT16": 0}),
    ("depthwise.c", {"SIDE": 9, "PADDING": 2, "CHANNELS": 4, "KERNEL": 5, "STRIDE": 2, "BIAS": 1, "BFLOAT16": 0}),
    ("separable.c", {"SIDE": 18, "CI": 3, "CO": 5, "KERNEL": 3, "POOL": 3, "DEPTHWISE": 0, "BFLOAT16": 0}),
    ("separable.c", {"SIDE": 10, "CI": 12, "CO": 20, "KERNEL": 3, "POOL": 2, "DEPTHWISE": 1, "BFLOAT16": 0}),
    (
        "separable.c",
        {"SIDE": 10, "PADDING": 1, "CI": 8, "CO": 20, "KERNEL": 3, "POOL": 1, "DEPTHWISE": 1, "BFLOAT16": 0},
    ),
    ("muon.c", {"BFLOAT16": 0}),
    ("sgd.c", {"BFLOAT16": 0}),
    ("tail.c", {"PIXELS": 9, "CI": 5, "CO": 10, "BFLOAT16": 0}),
    ("augment.c", {"CHANNELS": 3, "HIGH": 9, "WIDE": 13, "BFLOAT16": 0}),
    ("threads.c", dict[str, int]()),
]
BFLOAT16 = [
    ("tail.c", {"PIXELS": 9, "CI": 5, "CO": 10, "BFLOAT16": 1}),
    ("block.c", BLOCK | FORMS[0] | {"BFLOAT16": 1, "MATRIX_UNIT": 0}),
    ("block.c", BLOCK | FORMS[1] | {"BFLOAT16": 1, "MATRIX_UNIT": 1}),
    ("block.c", BLOCK | FORMS[1] | {"CO": 13, "AVERAGE": 0, "BFLOAT16": 1, "MATRIX_UNIT": 0}),
    ("depthwise.c", {"SIDE": 9, "PADDING": 1, "CHANNELS": 17, "KERNEL": 3, "BIAS": 1, "BFLOAT16": 1}),
    ("separable.c", {"SIDE": 18, "CI": 3, "CO": 5, "KERNEL": 3, "POOL": 3, "DEPTHWISE": 0, "BFLOAT16": 1}),
    ("separable.c", {"SIDE": 10, "CI": 12, "CO": 20, "KERNEL": 3, "POOL": 2, "DEPTHWISE": 1, "BFLOAT16": 1}),
    *(
        (
            "separable.c",
            {
                "SIDE": side,
                "CI": 40,
                "CO": outputs,
                "KERNEL": 3,
                "POOL": 1,
                "DEPTHWISE": 1,
                "BFLOAT16": 1,
                "MATRIX_UNIT": 1,
            },
        )
        for side, outputs in ((10, 13), (20, 70))
    ),
    (
        "separable.c",
        {"SIDE": 10, "PADDING": 1, "CI": 8, "CO": 13, "KERNEL": 3, "POOL": 1, "DEPTHWISE": 1, "BFLOAT16": 1},
    ),
]


@pytest.mark.parametrize("name", ["gcc", "clang"])
@pytest.mark.parametrize(
    ("machine", "processor", "cases"),
    [
        ("x86_64", "x86-64", FLOATS),
        ("x86_64", "haswell", FLOATS),
        ("x86_64", "skylake-avx512", FLOATS),
        ("x86_64", "skylake-avx512", [(source, sizes | {"HALVES": 1}) for source, sizes in FLOATS]),
        ("x86_64", "cooperlake", BFLOAT16),
        ("aarch64", "generic", FLOATS),
    ],
    ids=["SSE", "AVX2", "AVX-512", "AVX-512 in halves", "bfloat16", "NEON"],
)
def test_the_code_is_compiled_without_a_warning(
    name: str, machine: str, processor: str, cases: list[tuple[str, dict[str, int]]]
) -> None:
    command = cross.command(name, machine)
    # -O1 would leave clang with loops that it warns it cannot turn into vectors.
    level = "-O2" if name == "clang" else "-O1"
    flags = [flag.replace("-O3", level) for flag in cross.flags(command, machine, processor)]
    for source, sizes in cases:
        constants = [f"-D{size}={value}" for size, value in sizes.items()]
        done = subprocess.run(
            [*command, *flags, *WARNINGS, *constants, "-c", str(FOLDER / source), "-o", "/dev/null"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_a_warning_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.c").write_text("int f(void) { int unused; return 0; }\n")
    command = [*cross.command(name, "x86_64"), *WARNINGS, "-c", str(tmp_path / "wrong.c"), "-o", "/dev/null"]
    assert subprocess.run(command, capture_output=True).returncode != 0
