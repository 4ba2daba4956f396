"""Where Triton does not work, GPUs run the portable form: one warning says why, and so does env()."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# A GPU is simulated as far as Triton's own search for a compiler: its driver is taken for active, and then built.
CODE = """
import json, sys, warnings
import torch
hidden = sys.argv[1]
if hidden:
    import importlib.util
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: None if name == hidden else find(name, package)
import detops
torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
torch.cuda.is_current_stream_capturing = lambda: False
torch.cuda.get_sync_debug_mode = lambda: 0
torch.cuda.set_sync_debug_mode = lambda mode: None
torch.zeros, zeros = lambda *args, device=None, **kwargs: zeros(*args, **kwargs), torch.zeros
torch._C._cuda_getDevice = torch._C._cuda_getCurrentRawStream = lambda *args: 0
torch.Tensor.get_device = lambda tensor: 0
torch.cuda.current_device = lambda: 0
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    results = []
    boxes, scores = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 10, 10]]]), torch.tensor([[0.8, 0.9]])
    for _ in range(2):
        results.append(torch.ops.detops.nms_mask.default._op_dk(
            torch._C.DispatchKey.CUDA, boxes, scores, None, None, 0.5).tolist())
    gradient = torch.ones(3)
    torch.ops.detops.scale_gradient_.default._op_dk(torch._C.DispatchKey.CUDA, [gradient], torch.tensor(2.0), None)
    results.append(gradient.tolist())
    torch.cuda.device_count = lambda: 0
    found = detops.env()
print(json.dumps({
    "results": results, "problem": found["triton_problem"], "backend": found["ops"]["nms_mask"]["cuda"],
    "warned": [str(w.message) for w in warned if "detops" in str(w.message)],
}))
"""


def run(hidden: str, **environment: str) -> Any:
    env = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "CC")} | environment
    done = subprocess.run([sys.executable, "-c", CODE, hidden], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(found: Any, reason: str) -> None:
    assert found["results"] == [[[False, True]], [[False, True]], [2, 2, 2]]
    assert found["backend"] == "portable"
    assert reason in found["problem"]
    (warning,) = found["warned"]
    assert reason in warning
    assert "runs portable PyTorch" in warning


def test_without_a_compiler(tmp_path: Path) -> None:
    """With a PATH on which there is no compiler, and an empty cache."""
    pytest.importorskip("triton")
    here = str(tmp_path)
    check(run("", PATH=here, TRITON_CACHE_DIR=here, TRITON_LIBCUDA_PATH=here), "Failed to find C compiler")


def test_without_triton() -> None:
    check(run("triton"), "Triton is not installed")
