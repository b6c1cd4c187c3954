"""Blocks of a network in C, compiled for this processor, for a CPU.

A network is built of PyTorch's layers, and those remain what is counted and saved. Of it `fuse`
makes a second network with the same parameters, in which every run of convolution, batch norm,
ReLU, dropout and max-pool is one function of `native.c`, and every convolution of channels by themselves one
of `depthwise.c`: these small networks spend more time on moving their activations through memory than on
computing them. In float32 that goes for every processor, in bfloat16 for those that compute in it.
"""

import copy
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from bantam.models import Dropout

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-std=gnu11")

MOST_CHANNELS = 512
"""With more, an image's activations would not fit on the stack, where the C code keeps them."""

Shape = tuple[int, int, int, int, bool, int, bool]
"""Side and channels of the input, channels of the output, side of the kernel, whether ReLU comes first, side of
the max-pool's squares, whether images are bfloat16."""

SIZES = ("SIDE", "CI", "CO", "KERNEL", "RELU_FIRST", "POOL", "BFLOAT16")
"""What `native.c` calls them."""


ASK_FOR_UNIT = (158, 0x1023, 18)
"""The system call arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA): a Linux process asks for its tiles once."""


class Unavailable(ValueError):
    """This machine cannot compile the blocks."""


def cache() -> Path:
    """Where compiled blocks are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bantam"


def compiler() -> str | None:
    """Path of the C compiler; None where there is none, or none that this works with."""
    return None if os.name == "nt" else shutil.which(os.environ.get("CC", "cc"))


@functools.cache
def matrix_unit() -> bool:
    """Whether this processor multiplies matrices of bfloat16 (AMX), and the system lets this process do so."""
    if sys.platform != "linux" or not torch.cpu.get_capabilities().get("amx_bf16"):
        return False
    return ctypes.CDLL(None).syscall(*ASK_FOR_UNIT) == 0  # type: ignore[no-any-return]


def bfloat16() -> bool:
    """Whether this processor computes in bfloat16: in vectors, and those with a matrix unit in tiles too."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


@functools.cache
def functions(shape: Shape) -> tuple[Any, Any, Any]:
    """A shape's `forward`, `backward` and `score`, compiled or found compiled. Raises Unavailable."""
    sizes = [*zip(SIZES, shape, strict=True), ("MATRIX_UNIT", shape[-1] and matrix_unit())]
    library = _library("native.c", sizes)
    pointer, floats, whole = ctypes.c_void_p, ctypes.c_float, ctypes.c_int
    dropout = (ctypes.c_uint64, ctypes.c_uint32, floats)
    forward, backward, score = library.forward, library.backward, library.score
    forward.argtypes = [*[pointer] * 6, floats, floats, *[pointer] * 4, *dropout, whole, whole]
    backward.argtypes = [*[pointer] * 13, *dropout, whole, whole]
    score.argtypes = [*[pointer] * 5, whole, whole]
    forward.restype = backward.restype = score.restype = None
    return forward, backward, score


@functools.cache
def depthwise_functions(side: int, channels: int, kernel: int, bfloat16: bool) -> tuple[Any, Any]:
    """`forward` and `backward` of a convolution of every channel by itself. Raises Unavailable."""
    sizes = (("SIDE", side), ("CHANNELS", channels), ("KERNEL", kernel), ("BFLOAT16", bfloat16))
    library = _library("depthwise.c", sizes)
    forward, backward = library.forward, library.backward
    forward.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int, ctypes.c_int]
    backward.argtypes = [*[ctypes.c_void_p] * 5, ctypes.c_int, ctypes.c_int]
    forward.restype = backward.restype = None
    return forward, backward


def _library(name: str, sizes: Iterable[tuple[str, int]]) -> ctypes.CDLL:
    """A C file beside this one with its sizes as constants, compiled or found compiled. Raises Unavailable."""
    cc = compiler()
    if cc is None:
        raise Unavailable("there is no C compiler (cc): install one, for example gcc")
    constants = "".join(f"#define {size} {int(value)}\n" for size, value in sizes)
    here = Path(__file__).parent
    source = constants + (here / name).read_text()
    headers = [header.read_text() for header in sorted(here.glob("*.h"))]
    # The processor and the compiler belong to the key: a home folder may be shared by unlike machines.
    key = "".join((source, *headers, *FLAGS, cc, _processor()))
    path = cache() / f"block-{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                (Path(folder) / "block.c").write_text(source)
                _compile(cc, Path(folder))
                os.replace(Path(folder) / "block.so", path)
        # RTLD_NOW: what is missing shows here, not in the middle of a training.
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    except OSError as error:
        raise Unavailable(f"compiled blocks cannot be kept in {path.parent} or loaded: {error}") from error


def _compile(cc: str, folder: Path) -> None:
    # Linked without OpenMP: PyTorch's own, which is loaded already, serves. Two of them, each with
    # its threads spinning for work, would take the processor from one another.
    for command in (
        [cc, *FLAGS, f"-I{Path(__file__).parent}", "-fopenmp", "-fPIC", "-c", "block.c", "-o", "block.o"],
        [cc, "-shared", "block.o", "-o", "block.so", "-lm"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            reason = next((line for line in lines if "error" in line), [*lines, f"exit code {done.returncode}"][0])
            raise Unavailable(f"{cc} cannot compile the blocks: {reason}")


@functools.cache
def _processor() -> str:
    """What distinguishes this processor from others for the compiler."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"{sys.platform} {os.uname().machine}"


class _Compiled(nn.Module):
    """Layers whose place a function in C takes. In a step it is quick in Python too, where a small network waits.

    Memory that every step uses again is kept: what is fresh would have to be mapped first, page by page.
    """

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.convolution, self.dtype = convolution, dtype
        self.memory: dict[str, Tensor] = {}
        self.views: dict[tuple[str, int, int, int, int], Tensor] = {}
        self.functions: dict[int, tuple[Any, ...]] = {}
        """By side of the input."""
        self.busy = False
        """Between forward and backward, while that memory is in use."""

    def compiled(self, side: int) -> tuple[Any, ...]:
        """Its compiled functions for images of `side` × `side` pixels. Raises Unavailable."""
        raise NotImplementedError

    def function(self, side: int, which: int) -> Any:
        """One of them."""
        if side not in self.functions:
            self.functions[side] = self.compiled(side)
        return self.functions[side][which]

    def buffer(self, name: str, images: int, channels: int, side: int, fresh: bool = False) -> Tensor:
        """Memory for a B×C×H×W tensor, channels last, in its place of the last step unless it must be fresh."""
        size = images, side, side, channels
        if fresh:
            return torch.empty(size, dtype=self.dtype).permute(0, 3, 1, 2)
        view = self.views.get((name, *size))
        if view is None:
            count = images * side * side * channels
            if name not in self.memory or self.memory[name].numel() < count:
                self.memory[name] = torch.empty(count, dtype=self.dtype)
                self.views = {key: view for key, view in self.views.items() if key[0] != name}
            view = self.memory[name][:count].view(size).permute(0, 3, 1, 2)
            self.views[name, *size] = view
        # Detached, or the next layer might not change it in place, as ReLU does.
        return view.detach()


class Block(_Compiled):
    """A valid convolution, batch norm, ReLU, perhaps dropout and a max-pool, as one function."""

    def __init__(
        self,
        convolution: nn.Conv2d,
        norm: nn.BatchNorm2d,
        relu_first: bool,
        dropout: float,
        pool: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(convolution, dtype)
        self.norm = norm
        self.relu_first, self.dropout, self.pool = relu_first, dropout, pool
        self.outputs, self.kernel = convolution.out_channels, convolution.kernel_size[0]
        self.momentum, self.epsilon = norm.momentum, norm.eps
        # A module looks its tensors up slowly: these are asked for in every step.
        self.found = (convolution._parameters, norm._parameters, norm._buffers)

    def compiled(self, side: int) -> tuple[Any, ...]:
        bfloat16 = self.dtype == torch.bfloat16
        inputs = self.convolution.in_channels
        return functions((side, inputs, self.outputs, self.kernel, self.relu_first, self.pool, bfloat16))

    def tensors(self) -> list[Tensor]:
        """Weight, factors, offsets, running mean and running variance."""
        convolution, norm, buffers = self.found
        found = (
            convolution["weight"],
            norm["weight"],
            norm["bias"],
            buffers["running_mean"],
            buffers["running_var"],
        )
        return found  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W in, B×C×H×W out, channels last."""
        x = x.to(self.dtype)
        if not self.training:
            return self.score(x)
        self.found[2]["num_batches_tracked"].add_(1)  # type: ignore[union-attr]
        weight, gamma, beta, _, _ = self.tensors()
        return _Fused.apply(x, weight, gamma, beta, self)  # type: ignore[no-any-return]

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        """What `forward` returns outside training."""
        weight, gamma, beta, mean, variance = self.tensors()
        x = x.contiguous(memory_format=torch.channels_last)
        images, _, side, _ = x.shape
        y = self.buffer("y", images, self.outputs, (side - self.kernel + 1) // self.pool, fresh=True)
        factor = gamma / (variance + self.epsilon).sqrt()
        offset = beta - mean * factor
        weight = weight.contiguous(memory_format=torch.channels_last)
        pointers = (t.data_ptr() for t in (x, weight, factor, offset, y))
        self.function(side, 2)(*pointers, images, torch.get_num_threads())
        return y


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, block: Block) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        images, _, side, _ = x.shape
        out = side - block.kernel + 1
        # A block that runs twice before its backward pass must not overwrite its first results.
        ctx.fresh, block.busy = block.busy, True
        z = block.buffer("z", images, block.outputs, out, ctx.fresh)
        y = block.buffer("y", images, block.outputs, out // block.pool, ctx.fresh)
        at = torch.empty(y.numel() if block.pool > 1 else 0, dtype=torch.int32)
        saved = torch.empty(2, block.outputs)
        # The backward pass drops the same elements again; which ones follows from a number of PyTorch's generator.
        seed = int(torch.randint(2**63 - 1, ())) if block.dropout else 0
        ctx.dropout = (seed, min(round(block.dropout * 2**16), 2**16 - 1), 1 / (1 - block.dropout))
        weight = weight.contiguous(memory_format=torch.channels_last)
        block.function(side, 0)(
            *(t.data_ptr() for t in (x, weight, gamma, beta, *block.tensors()[3:])),
            *(block.momentum, block.epsilon),
            *(t.data_ptr() for t in (z, y, saved, at)),
            *(*ctx.dropout, images, torch.get_num_threads()),
        )
        ctx.save_for_backward(x, weight, gamma, beta, saved, at)
        ctx.block, ctx.z = block, z
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None]:
        x, weight, gamma, beta, saved, at = ctx.saved_tensors
        block, z = ctx.block, ctx.z
        images, inputs, side, _ = x.shape
        gy = gy.to(block.dtype).contiguous(memory_format=torch.channels_last)
        gx = block.buffer("gx", images, inputs, side, ctx.fresh) if ctx.needs_input_grad[0] else None
        g = block.buffer("g", images, block.outputs, z.shape[-1]) if block.pool == 1 else gy  # gy: any would do
        block.busy = block.busy and ctx.fresh
        ggamma, gbeta = torch.empty_like(gamma), torch.empty_like(beta)
        gweight = torch.empty_like(weight, memory_format=torch.channels_last)
        block.function(side, 1)(
            *(t.data_ptr() for t in (gy, x, z, gamma, beta, saved, weight)),
            None if gx is None else gx.data_ptr(),
            *(t.data_ptr() for t in (gweight, ggamma, gbeta, at, g)),
            *(*ctx.dropout, images, torch.get_num_threads()),
        )
        return gx, gweight, ggamma, gbeta, None


class Depthwise(_Compiled):
    """A valid convolution of every channel by itself."""

    def compiled(self, side: int) -> tuple[Any, ...]:
        kernel, bfloat16 = self.convolution.kernel_size[0], self.dtype == torch.bfloat16
        return depthwise_functions(side, self.convolution.in_channels, kernel, bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W in, B×C×H×W out, channels last."""
        return _Depthwise.apply(x.to(self.dtype), self.convolution.weight, self)  # type: ignore[no-any-return]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, block: Depthwise) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        images, channels, side, _ = x.shape
        ctx.fresh = block.busy or not block.training
        block.busy = block.busy or block.training
        y = block.buffer("y", images, channels, side - weight.shape[-1] + 1, ctx.fresh)
        rows = weight.permute(2, 3, 1, 0).contiguous()
        pointers = (t.data_ptr() for t in (x, rows, y))
        block.function(side, 0)(*pointers, images, torch.get_num_threads())
        ctx.save_for_backward(x, rows)
        ctx.block = block
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, rows = ctx.saved_tensors
        block = ctx.block
        images, channels, side, _ = x.shape
        gy = gy.to(block.dtype).contiguous(memory_format=torch.channels_last)
        gx = block.buffer("gx", images, channels, side, ctx.fresh) if ctx.needs_input_grad[0] else None
        block.busy = block.busy and ctx.fresh
        grows = torch.empty_like(rows)
        block.function(side, 1)(
            *(t.data_ptr() for t in (gy, x, rows)),
            *(None if gx is None else gx.data_ptr(), grows.data_ptr()),
            *(images, torch.get_num_threads()),
        )
        return gx, grows.permute(3, 2, 0, 1), None


def is_fused(model: nn.Module) -> bool:
    """Whether a network has blocks in C."""
    return any(isinstance(module, _Compiled) for module in model.modules())


def fuse(
    model: nn.Module, image: tuple[int, int, int], precision: torch.dtype = torch.float32
) -> nn.Module | None:
    """A network with the parameters and statistics of `model` and its blocks compiled; None where it has none.

    `image` is channels, height and width of the input. Raises Unavailable where nothing can be compiled, and for
    bfloat16 on a processor that does not compute in it.
    """
    if precision == torch.bfloat16 and not bfloat16():
        raise Unavailable("this processor does not compute in bfloat16: use precision=float32")
    fused = _replaced(model, precision)
    if not is_fused(fused):
        return None
    training = model.training
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        fused.eval()(torch.zeros(1, *image))  # compiles whatever is not compiled yet
    fused.train(training)
    return fused


def _replaced(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy that shares all parameters, its runs of fitting layers replaced by blocks."""
    children = {name: child and _replaced(child, dtype) for name, child in module._modules.items()}
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*_blocks([child for child in children.values() if child is not None], dtype))
    twin = copy.copy(module)
    twin._modules = children
    return twin


def _blocks(layers: Sequence[nn.Module], dtype: torch.dtype) -> Iterator[nn.Module]:
    """Layers that run one after another, with blocks for those that fit."""
    at = 0
    while at < len(layers):
        convolution, rest = layers[at], layers[at + 1 : at + 5]
        kinds = [type(layer) for layer in rest]
        at += 1
        if (
            _plain(convolution)
            and convolution.groups == 1
            and kinds[:2] in ([nn.ReLU, nn.BatchNorm2d], [nn.BatchNorm2d, nn.ReLU])
        ):
            norm = next(layer for layer in rest if isinstance(layer, nn.BatchNorm2d))
            if norm.affine and norm.track_running_stats and norm.momentum is not None:
                p, pool, last = 0.0, 1, 2
                if last < len(rest) and isinstance(dropout := rest[last], Dropout):
                    p, last = dropout.p, last + 1
                if last < len(rest) and (squares := _pool(rest[last])):
                    pool, last = squares, last + 1
                yield Block(convolution, norm, kinds[0] is nn.ReLU, p, pool, dtype)
                at += last
                continue
        if _plain(convolution) and convolution.groups == convolution.in_channels == convolution.out_channels > 1:
            yield Depthwise(convolution, dtype)
        else:
            yield convolution


def _plain(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution of a kind that there is C code for, groups aside."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size[0] == layer.kernel_size[1]
        and layer.stride == layer.dilation == (1, 1)
        and layer.padding == (0, 0)
        and layer.bias is None
        and max(layer.in_channels, layer.out_channels) <= MOST_CHANNELS
    )


def _pool(layer: nn.Module) -> int:
    """The side of a max-pool's squares, which lie side by side; 0 for any other layer."""
    if type(layer) is not nn.MaxPool2d or layer.return_indices or layer.ceil_mode:
        return 0
    pool = layer.kernel_size
    plain = isinstance(pool, int) and layer.stride == pool and layer.padding == 0 and layer.dilation == 1
    return pool if isinstance(pool, int) and plain and pool > 1 else 0
