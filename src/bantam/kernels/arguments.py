"""What C gets: the structures of `arguments.h`, which says what their fields are."""

import ctypes

import torch
from torch import Tensor


class BlockArguments(ctypes.Structure):
    """Of `block.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "weight", "bias", "gamma", "beta")),
        *(
            (name, ctypes.c_void_p)
            for name in ("running_mean", "running_variance", "batches", "factor", "offset", "other")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in ("convolved", "output", "statistics", "argmax", "dropped", "grad_output")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in ("grad_input", "grad_other", "grad_weight", "grad_bias", "grad_gamma", "grad_beta")
        ),
        ("dropout_seed", ctypes.c_uint64),
        ("dropout_limit", ctypes.c_uint32),
        *((name, ctypes.c_float) for name in ("dropout_scale", "momentum", "epsilon")),
        *((name, ctypes.c_int) for name in ("images", "threads")),
    )


class DepthwiseArguments(ctypes.Structure):
    """Of `depthwise.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "weight", "bias", "output")),
        *((name, ctypes.c_void_p) for name in ("grad_output", "grad_input", "grad_weight", "grad_bias")),
        *((name, ctypes.c_int) for name in ("images", "threads")),
    )


class SeparableArguments(ctypes.Structure):
    """Of `separable.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "in_factor", "in_offset", "in_statistics")),
        *((name, ctypes.c_void_p) for name in ("depthwise", "weight", "gamma", "beta")),
        *((name, ctypes.c_void_p) for name in ("running_mean", "running_variance", "convolved", "pooled")),
        *((name, ctypes.c_void_p) for name in ("statistics", "factor", "offset", "output", "grad_output")),
        *((name, ctypes.c_void_p) for name in ("gradient", "sums", "in_gradient", "in_sums")),
        *((name, ctypes.c_void_p) for name in ("grad_depthwise", "grad_weight", "grad_gamma", "grad_beta")),
        ("batches", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("momentum", "epsilon")),
        *((name, ctypes.c_int) for name in ("images", "threads")),
    )


class TailArguments(ctypes.Structure):
    """Of `tail.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "weight", "bias", "labels")),
        *((name, ctypes.c_void_p) for name in ("grad_input", "grad_weight", "grad_bias")),
        *((name, ctypes.c_float) for name in ("smoothing", "loss")),
        *((name, ctypes.c_int) for name in ("images", "correct")),
    )


class Call(ctypes.Structure):
    """Of `tail.c`: a function, and the address of what it gets."""

    _fields_ = (("function", ctypes.c_void_p), ("argument", ctypes.c_void_p))


class AugmentArguments(ctypes.Structure):
    """Of `augment.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "light", "mapping", "output")),
        ("step", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("images", "nearest")),
    )


class MuonTensor(ctypes.Structure):
    """Of `muon.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "gradient", "momentum")),
        *((name, ctypes.c_int) for name in ("rows", "columns")),
    )


class MuonArguments(ctypes.Structure):
    """Of `muon.c`."""

    _fields_ = (
        ("tensors", ctypes.POINTER(MuonTensor)),
        *((name, ctypes.c_float) for name in ("lr", "momentum", "decay")),
        *((name, ctypes.c_int) for name in ("count", "nesterov", "steps")),
    )


class SgdTensor(ctypes.Structure):
    """Of `sgd.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "gradient", "momentum")),
        ("count", ctypes.c_int),
    )


class SgdArguments(ctypes.Structure):
    """Of `sgd.c`."""

    _fields_ = (
        ("tensors", ctypes.POINTER(SgdTensor)),
        *((name, ctypes.c_float) for name in ("lr", "momentum", "weight_decay")),
        *((name, ctypes.c_int) for name in ("count", "nesterov")),
    )


def lie_alike(p: Tensor, *others: Tensor) -> bool:
    """Whether C may read tensors number by number: floats of one shape, alike in memory and without a gap."""
    layout = torch.channels_last if p.ndim == 4 and not p.is_contiguous() else torch.contiguous_format
    return all(
        t.is_cpu and t.dtype == torch.float32 and t.shape == p.shape and t.is_contiguous(memory_format=layout)
        for t in (p, *others)
    )
