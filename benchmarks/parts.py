"""The parts of the blocks in C by themselves: what each takes, computes and moves. `limit.py` shows them.

`parts.c` is appended to `block.c` and compiled with the sizes of each block, so a part is the same code as in
training. It runs over a whole batch on one thread. Its limit is what takes longer: its operations at the rate of
a matrix product, or its bytes at the rate at which memory is copied. Where a 3×3 convolution takes four ninths
of the multiplications (see `winograd_products.h`), those are its operations.
"""

import ctypes
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bantam.kernels import compiler
from bantam.kernels.arguments import BlockArguments
from bantam.kernels.blocks import Block, bytes_of_dropped

FUNCTIONS = {
    "convolution: product": "products_forward",
    "convolution: sums of batch norm": "convolution_and_sums",
    "batch norm, ReLU, max-pool": "normalize_pool",
    "dropout": "normalize_drop_pool",
    "gradient: sums of batch norm": "sums_backward",
    "gradient before batch norm": "gradient_to_frame",
    "gradient of the weights: product": "products_weight_gradient",
    "gradient of the input: product": "products_input_gradient",
    "weights packed": "pack_weights",
}
"""What times each part."""

WITHIN = {"convolution: sums of batch norm": "convolution: product", "dropout": "batch norm, ReLU, max-pool"}
"""Parts that are not computed by themselves: their function computes another part too, whose time is taken off."""


@dataclass
class Part:
    """A part of all blocks, in a step."""

    seconds: float = 0.0
    operations: int = 0
    bytes: int = 0

    def limit(self, operations_a_second: float, bytes_a_second: float) -> float:
        """The seconds that it takes at least."""
        return max(self.operations / operations_a_second, self.bytes / bytes_a_second)


def copy_rate(mebibytes: int = 64) -> float:
    """Bytes a second that are read and written where memory is copied, the median of nine."""
    a, seconds = torch.zeros(mebibytes * 2**18), []
    b = a.clone()
    for _ in range(9):
        start = time.process_time()
        b.copy_(a)
        seconds.append(time.process_time() - start)
    return 2 * a.numel() * a.element_size() / statistics.median(seconds)


def measure(model: nn.Module, images: int, repeats: int = 9) -> dict[str, Part]:
    """The parts of all blocks of a network whose blocks are in C, for so many images."""
    parts = {name: Part() for name in FUNCTIONS}
    for block in (module for module in model.modules() if isinstance(module, Block)):
        for shape in block.libraries:
            for name, part in _of_block(block, shape, images, repeats):
                parts[name].seconds += part.seconds
                parts[name].operations += part.operations
                parts[name].bytes += part.bytes
    return parts


def _of_block(block: Block, shape: torch.Size, images: int, repeats: int) -> Iterator[tuple[str, Part]]:
    sizes = block.sizes(shape)
    assert sizes is not None
    library = _library(sizes)
    tensors = _tensors(sizes, images, block.dtype)
    arguments = BlockArguments(
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        dropout_seed=1,
        dropout_limit=2**12,
        dropout_scale=1.0,
        momentum=0.1,
        epsilon=1e-5,
        images=images,
        threads=1,
    )
    amounts, seconds = _amounts(sizes, images, tensors, library.multiplications() / 4), {}
    for name, function in FUNCTIONS.items():
        if "input" in name and sizes["CI"] == 1:  # nobody asks for the gradient of the images
            continue
        spent = []
        for _ in range(repeats):
            start = time.process_time()
            getattr(library, function)(ctypes.byref(arguments))
            spent.append(time.process_time() - start)
        seconds[name] = statistics.median(spent)
        own = seconds[name] - seconds.get(WITHIN.get(name, ""), 0.0)
        yield name, Part(max(own, 0.0), *amounts.get(name, (0, 0)))


def _library(sizes: dict[str, int]) -> ctypes.CDLL:
    text = Path(__file__).with_name("parts.c").read_text(encoding="utf-8")
    compiler.SOURCES["parts.c"] = compiler.SOURCES["block.c"] + text
    library = compiler.library("parts.c", lambda *_: None, **sizes)
    for function in FUNCTIONS.values():
        getattr(library, function).restype = None
    return library


def _tensors(sizes: dict[str, int], images: int, dtype: torch.dtype) -> dict[str, Any]:
    """What the fields of a block's arguments point to."""
    outputs, inputs = sizes["CO"], sizes["CI"]
    out = (sizes["SIDE"] - sizes["KERNEL"]) // sizes["STRIDE"] + 1
    pooled = images * (out // sizes["POOL"]) ** 2 * outputs
    pixels = images * sizes["SIDE"] ** 2 * inputs
    images_of = {"input": pixels, "grad_input": pixels, "convolved": images * out**2 * outputs}
    images_of |= {"output": pooled, "grad_output": pooled}
    weights = dict.fromkeys(("weight", "grad_weight"), sizes["KERNEL"] ** 2 * inputs * outputs)
    norm = ("gamma", "beta", "running_mean", "running_variance", "factor", "offset", "grad_gamma", "grad_beta")
    floats = weights | dict.fromkeys(norm, outputs) | {"statistics": 2 * outputs}
    return {
        **{name: torch.randn(count).to(dtype) for name, count in images_of.items()},
        **{name: torch.ones(count) for name, count in floats.items()},
        "argmax": torch.zeros(pooled if sizes["POOL"] > 1 else 1, dtype=torch.uint8),
        "dropped": torch.zeros(images * bytes_of_dropped(out, outputs), dtype=torch.uint8),
    }


def _amounts(
    sizes: dict[str, int], images: int, tensors: dict[str, Any], multiplications: float
) -> dict[str, tuple[int, int]]:
    """Operations and bytes of each part: of the whole images that it reads and writes, once each.

    For an output and two channels there are so many multiplications, each with a sum: the kernel's, or fewer.
    """
    size = {name: tensor.nbytes for name, tensor in tensors.items()}
    out = (sizes["SIDE"] - sizes["KERNEL"]) // sizes["STRIDE"] + 1
    product = round(2 * images * out**2 * multiplications * sizes["CI"] * sizes["CO"])
    after = size["output"] + size["argmax"]
    return {
        "convolution: product": (product, size["input"]),
        "convolution: sums of batch norm": (0, size["convolved"]),
        "batch norm, ReLU, max-pool": (0, size["convolved"] + after),
        "gradient: sums of batch norm": (0, size["convolved"] + after),
        "gradient before batch norm": (0, size["convolved"] + after),
        "gradient of the weights: product": (product, size["input"]),
        "gradient of the input: product": (product, size["input"]),
    }
