"""The smallest kernel, which shows whether Triton works on this machine at all."""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._launch import kernel


@kernel(tensors=1, num_warps=1)
def probe_kernel(out, value):
    """Write a number."""
    tl.store(out, value)


def launch(out: Tensor, value: int = 1) -> None:
    """Start the kernel, compiled where it has not been.

    Args:
        out: (1,) int32, on the device that is to run it.
        value: What it writes.
    """
    probe_kernel((1,), (out,), (value,))


def check() -> None:
    """Launch on the current device twice, as Triton does and as it is kept, and read what was written.

    Raises:
        Exception: Triton found no compiler, does not know the device, or wrote something else.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")  # this one wait is meant
    try:
        for value in (3, 5):
            out = torch.zeros(1, dtype=torch.int32, device="cuda")
            launch(out, value)
            if out.item() != value:
                raise RuntimeError("a kernel was launched and wrote nothing")
    finally:
        torch.cuda.set_sync_debug_mode(before)
