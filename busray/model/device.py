"""How a device computes the networks best: number format, memory layout, compiled or not.

Each choice can change an image's last bits, so a shard's record keeps it (records.Execution).
"""

import os
import shutil
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from busray.records import Computing

PROBE_SECONDS = 1.0  # that a probe of a CPU spends on each number format
PROBE_GAIN = 1.2  # least gain for which a CPU computes in bfloat16


def choose(dtype: str, compiled: bool | str, device: str) -> Computing:
    """The settings base.dtype and sampling.compile on this machine; device: `cpu` or `cuda`.

    On a GPU, tensor cores want the channels last, and one large matrix in place of three. A CPU is
    left as it is: its images stay as they were, and torch.compile takes minutes of each worker for
    a gain of a sixth (benchmarks/sampling.md).
    """
    on_gpu = device != "cpu"
    if isinstance(compiled, str):
        compiled = on_gpu and has_compiler()
    return Computing(number_format(dtype, device), channels_last=on_gpu, fused_qkv=on_gpu, compiled=compiled)


def number_format(dtype: str, device: str) -> str:
    """A torch dtype's name; of `auto` the fastest that this device computes well."""
    import torch

    if dtype != "auto":
        return dtype
    if device != "cpu":
        # Emulated bfloat16, as on a V100 or T4, is slower than float32.
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if bfloat16_pays(has_matrix_units(), _product_seconds) else "float32"


def bfloat16_pays(matrix_units: bool, seconds: Callable[[str], float]) -> bool:
    """Whether a CPU should compute in bfloat16. seconds: of a piece of work in a number format; it
    is only measured on a CPU with matrix units (AMX)."""
    return matrix_units and seconds("float32") > PROBE_GAIN * seconds("bfloat16")


def has_matrix_units() -> bool:
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_tile", False))


def has_compiler() -> bool:
    """Whether torch.compile finds what it needs for a GPU: triton, and a C compiler."""
    from importlib.util import find_spec

    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return find_spec("triton") is not None and any(name and shutil.which(name) for name in compilers)


@cache
def _product_seconds(dtype: str) -> float:
    """Least seconds of a convolution and a matrix product of the size that a UNet has."""
    import torch

    kind = getattr(torch, dtype)
    images = torch.ones(16, 128, 32, 32, dtype=kind)
    kernel = torch.ones(128, 128, 3, 3, dtype=kind)
    rows, matrix = torch.ones(16 * 256, 640, dtype=kind), torch.ones(640, 640, dtype=kind)
    least, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < PROBE_SECONDS:
        started = time.perf_counter()
        torch.nn.functional.conv2d(images, kernel, padding=1)
        torch.mm(rows, matrix)
        least = min(least, time.perf_counter() - started)
    return least


def prepare(pipe: Any, computing: Computing) -> None:
    """Lay a pipeline's networks out as `computing` says. Its LoRA is fused already; its weights
    have their number format."""
    import torch

    if computing.fused_qkv:
        pipe.fuse_qkv_projections()
    if computing.channels_last:
        for network in (pipe.unet, pipe.vae):
            network.to(memory_format=torch.channels_last)
    if computing.compiled:
        # Shapes are fixed: each batch is padded. One graph without a break, or an error.
        pipe.unet.compile(fullgraph=True, dynamic=False)
        pipe.vae.decoder.compile(fullgraph=True, dynamic=False)
