"""Host time of each Triton launch, without a GPU: Triton's own launcher in C over a CUDA driver that does nothing.

python benchmarks/launch_cost.py

Prints microseconds per launch, through `detops.kernels._launch` and through Triton alone, and those of
`draw_heatmap_batched` as a whole. What the real driver takes (about 2 us) comes on top. Needs a C compiler.
"""

import ctypes
import os
import re
import subprocess
import tempfile
import warnings
from pathlib import Path
from timeit import repeat
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # read when Triton is imported

import torch

DRIVER = """
#include <stdint.h>
#include <string.h>
static int something;
int cuCtxGetCurrent(void** context) { *context = &something; return 0; }
int cuCtxGetDevice(int* device) { *device = 0; return 0; }
int cuDeviceGet(int* device, int i) { *device = 0; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = &something; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { *value = 232448; return 0; }
int cuFuncGetAttribute(int* value, int attribute, void* f) { *value = attribute == 0 ? 1024 : 0; return 0; }
int cuGetErrorString(int code, const char** text) { *text = "stub"; return 0; }
int cuModuleLoadData(void** module, const void* image) { *module = &something; return 0; }
int cuModuleGetFunction(void** f, void* module, const char* name) { *f = &something; return 0; }
"""


def stand_in_for_a_gpu() -> None:
    """Let Triton and detops take the CPU's tensors for those of an H100 whose driver returns at once."""
    folder = Path(tempfile.mkdtemp())
    import triton.backends.nvidia as backend

    sources = "".join((Path(backend.__path__[0]) / name).read_text() for name in ("driver.c", "driver.py"))
    written = set(re.findall(r"\bcu[A-Z]\w*", DRIVER))
    rest = sorted(set(re.findall(r"\b(cu(?:[A-Z][a-z]\w*))\b", sources)) - written)
    source = DRIVER + "".join(f"int {name}() {{ return 0; }}\n" for name in rest if not name.endswith(("_t", "Handle")))
    (folder / "stub.c").write_text(source)
    library = folder / "libcuda.so.1"
    command = [
        os.environ.get("CC", "cc"),
        "-w",
        "-shared",
        "-fPIC",
        "-Wl,-soname,libcuda.so.1",
        "stub.c",
        "-o",
        library,
    ]
    subprocess.run(command, cwd=folder, check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    torch._C._cuda_getDevice = torch.cuda.current_device = lambda: 0
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.Tensor.is_cuda = True
    torch.Tensor.get_device = lambda tensor: 0

    import detops

    for op in detops.env()["ops"]:
        detops.ops._library.impl(op, detops.ops._lazily("kernels", op), "CPU", allow_override=True)


def calls() -> dict[str, Any]:
    """Calls of the ops and of whole criteria, which launch every kernel."""
    import detops
    from detops import ops

    boxes = torch.tensor([[[20.0, 30, 120, 100], [40, 40, 90, 200]]]).repeat(4, 1, 1)
    targets = boxes, torch.tensor([[1, 2]]).repeat(4, 1)
    yolox = [torch.zeros(4, 1, s, s, 25, requires_grad=True) for s in (32, 16, 8)]
    gfl = [[torch.zeros(4, c, s, s, requires_grad=True) for s in (32, 16, 8, 4, 2)] for c in (20, 68)]
    center = [torch.zeros(4, c, 64, 64, requires_grad=True) for c in (20, 2, 2)]
    small = torch.rand(8, 28, 28)
    image = torch.zeros(3, 200, 300, dtype=torch.uint8)

    def trained(losses: dict[str, torch.Tensor]) -> None:
        (2 * sum(losses.values())).backward()

    criteria = detops.YOLOXLoss(20), detops.LDLoss(20), detops.CenterNetLoss(20)
    return {
        "draw": lambda: detops.draw_heatmap(*_scene()),
        "centernet": lambda: trained(criteria[2](*center, targets, (256, 256))),
        "yolox": lambda: trained(criteria[0]((None, yolox), targets)),
        "ld": lambda: trained(criteria[1](*gfl, targets, soft_targets=gfl[1])),
        "focal": lambda: detops.gaussian_focal_loss(center[0], torch.zeros(4, 20, 64, 64)),
        "nms": lambda: detops.nms_mask(boxes, torch.rand(4, 2), iou_threshold=0.5),
        "paste": lambda: ops.paste_masks(small, torch.rand(8, 4), 100, 100, 0.5),
        "rle": lambda: ops.masks_to_rle(small, torch.rand(8, 4), 100, 100, 0.5, False),
        "resize": lambda: ops.resize_normalize_pad([image], [100, 150], 128, 160, [0.0] * 3, [1.0] * 3, False, False,
                                                   torch.float32),
    }  # fmt: skip


def _scene() -> tuple[torch.Tensor, ...]:
    maps, centers = torch.zeros(8, 20, 50), torch.full((16, 2), 9)
    return maps, centers, torch.ones(16, dtype=torch.int64), torch.arange(16) % 8


def microseconds(call: Any) -> float:
    """The best of many runs."""
    return min(repeat(call, number=20, repeat=300)) / 20 * 1e6  # so short that it fits between two of others


def main() -> None:
    """Launch everything once, then time each launch."""
    warnings.simplefilter("ignore")
    stand_in_for_a_gpu()
    import detops
    from detops.kernels import _launch

    seen: dict[str, tuple[Any, ...]] = {}
    original = _launch.Kernel.__call__

    def remembered(kernel: Any, *args: Any) -> None:
        seen.setdefault(f"{kernel.jit.__module__.rpartition('.')[2]}.{kernel.jit.__name__}", (kernel, args))
        original(kernel, *args)

    _launch.Kernel.__call__ = remembered
    for name, call in calls().items():
        try:
            call()
        except Exception as error:  # what follows a kernel that computed nothing may fail
            print(f"{name}: {error}")
    _launch.Kernel.__call__ = original
    print(f"{'kernel':55}{'us':>6}{'Triton alone':>14}")
    for name, (kernel, (grid, tensors, *rest)) in sorted(seen.items()):
        numbers, constants = (*rest, (), ())[:2]
        if isinstance(numbers and numbers[0], tuple):
            encoded = [tuple(2 * n + 3 for n in v) if isinstance(v, tuple) else v for v in numbers]
        else:
            encoded = numbers
        ours = microseconds(lambda: kernel(grid, tensors, *rest))  # noqa: B023
        alone = microseconds(lambda: kernel.jit[grid](*tensors, *encoded, *constants, **kernel.options))  # noqa: B023
        print(f"{name:55}{ours:6.1f}{alone:14.1f}")
    maps = torch.zeros(6, 20, 50)
    centers = detops.RaggedBatch(torch.full((6, 16, 2), 9), sample_sizes=torch.full((6,), 16))
    radii = detops.RaggedBatch(torch.ones(6, 16, dtype=torch.int64), sample_sizes=torch.full((6,), 16))
    whole = microseconds(lambda: detops.draw_heatmap_batched(maps, centers, radii))
    print(f"{'draw_heatmap_batched, whole':55}{whole:6.1f}")


if __name__ == "__main__":
    main()
