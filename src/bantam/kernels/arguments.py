"""What C gets: the structures of `arguments.h`, which says what their fields are."""

import ctypes


class BlockArguments(ctypes.Structure):
    """Of `block.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "weight", "gamma", "beta")),
        *((name, ctypes.c_void_p) for name in ("running_mean", "running_variance", "factor", "offset")),
        *((name, ctypes.c_void_p) for name in ("convolved", "output", "statistics", "argmax", "grad_output")),
        *((name, ctypes.c_void_p) for name in ("grad_input", "grad_weight", "grad_gamma", "grad_beta")),
        ("dropout_seed", ctypes.c_uint64),
        ("dropout_limit", ctypes.c_uint32),
        *((name, ctypes.c_float) for name in ("dropout_scale", "momentum", "epsilon")),
        *((name, ctypes.c_int) for name in ("images", "threads")),
    )


class DepthwiseArguments(ctypes.Structure):
    """Of `depthwise.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "weight", "output")),
        *((name, ctypes.c_void_p) for name in ("grad_output", "grad_input", "grad_weight")),
        *((name, ctypes.c_int) for name in ("images", "threads")),
    )
