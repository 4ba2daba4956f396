"""Which variants of its kernels Triton would compile in a training, counted without a GPU.

The launchers run on the CPU's tensors, with Triton's own look-up of what it compiles apart, up to the compiler itself:
so nothing is computed. In a process of its own, because one that has chosen the interpreter has no look-up.
"""

import json
import os
import random
import subprocess
import sys
import warnings
from collections import Counter
from typing import Any

STEPS = 40


def variants(training: str) -> dict[str, int]:
    """How many variants each kernel has after some steps of a training: "yolox", "gfl" or "centernet"."""
    process = subprocess.run(
        [sys.executable, __file__, training], env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    found: dict[str, int] = json.loads(process.stdout)
    return found


def pretend() -> Counter[str]:
    """Let the CPU run the GPU's launchers, and count what Triton would compile from now on, by kernel."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    import detops

    class Driver:
        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    triton.runtime.driver.set_active(Driver())
    seen: set[Any] = set()
    counted: Counter[str] = Counter()

    def compile_nothing(self: Any, key: Any, *args: Any, **kwargs: Any) -> None:
        name = f"{self.__module__.rpartition('.')[2]}.{self.__name__}"
        counted[name] += (name, key) not in seen
        seen.add((name, key))

    JITFunction._do_compile = compile_nothing
    library = torch.library.Library("detops", "IMPL")
    for op in detops.env()["ops"]:
        library.impl(op, detops.ops._lazily("kernels", op), "CPU", allow_override=True)
    counted.library = library  # type: ignore[attr-defined]  # kept: what it registers goes with it
    return counted


def train(training: str) -> None:
    """Take the steps: sizes, boxes and padding change as in multi-scale training of batches as they come."""
    import torch

    import detops

    random.seed(0)
    criterion: Any = {
        "yolox": lambda: detops.YOLOXLoss(6),
        "gfl": lambda: detops.GFLLoss(6),
        "centernet": lambda: detops.CenterNetLoss(6),
    }[training]()
    for _ in range(STEPS):
        side = 32 * random.randint(15, 25)
        height, width = (side, side) if training == "yolox" else (side, 32 * random.randint(15, 42))
        n = random.randint(1, 40)
        corner = torch.rand(2, n, 2) * 300
        targets = torch.cat([corner, corner + 20 + torch.rand(2, n, 2) * 100], 2), torch.randint(0, 6, (2, n))
        if training == "yolox":
            sizes = [(height // s, width // s) for s in (8, 16, 32)]
            outputs: Any = [torch.zeros(2, 1, h, w, 11, requires_grad=True) for h, w in sizes]
            losses = criterion((None, outputs), targets)
        elif training == "gfl":
            sizes = [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128)]
            scores = [torch.zeros(2, 6, h, w, requires_grad=True) for h, w in sizes]
            boxes = [torch.zeros(2, 68, h, w, requires_grad=True) for h, w in sizes]
            losses = criterion(scores, boxes, targets)
        else:
            maps = [torch.zeros(2, c, height // 4, width // 4, requires_grad=True) for c in (6, 2, 2)]
            losses = criterion(*maps, targets, (height, width))
        (3 * sum(losses.values())).backward()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    found = pretend()
    train(sys.argv[1])
    print(json.dumps(found))
