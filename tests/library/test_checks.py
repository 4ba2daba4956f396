"""checked(), count_syncs() and env()."""

import json
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F

import detops
from detops.diagnostics.checked import is_checked


def test_checked_is_off_and_nests():
    assert not is_checked()
    with detops.checked():
        assert is_checked()
        with detops.checked(False):
            assert not is_checked()
        assert is_checked()
    assert not is_checked()


def test_checked_belongs_to_its_thread():
    seen = []
    with detops.checked():
        thread = threading.Thread(target=lambda: seen.append(is_checked()))
        thread.start()
        thread.join()
    assert seen == [False]


def test_the_environment_turns_checks_on():
    code = "from detops.diagnostics.checked import is_checked; print(is_checked())"
    for value, expected in (("1", "True"), ("0", "False")):
        result = subprocess.run(
            [sys.executable, "-c", code], env={"DETOPS_CHECKED": value, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert result.stdout.strip() == expected


x = torch.arange(6.0)
mask = x > 2

SYNCS = {
    "item": (lambda: x.sum().item(), 1),
    "bool": (lambda: bool(mask.any()), 1),
    "int as index": (lambda: x[int(x[2])], 1),
    "tolist": (lambda: x.tolist(), 1),
    "numpy": (lambda: x.numpy(), 1),
    "cpu": (lambda: x.cpu(), 1),
    "nonzero": (lambda: mask.nonzero(), 1),
    "where with one argument": (lambda: torch.where(mask), 1),
    "read by mask": (lambda: x[mask], 1),
    "write by mask": (lambda: x.clone().__setitem__(mask, torch.zeros(3)), 1),
    "masked_select": (lambda: x.masked_select(mask), 1),
    "unique": (lambda: x.unique(), 1),
    "equal": (lambda: torch.equal(x, x), 1),
    "repeat_interleave": (lambda: x.repeat_interleave(torch.ones(6, dtype=torch.int64)), 1),
    "one_hot without classes": (lambda: F.one_hot(x.long()), 1),
    "two": (lambda: (x.max().item(), x.min().item()), 2),
}
NO_SYNCS = {
    "arithmetic": lambda: torch.where(mask, x * 2, 0).sum(),
    "gather": lambda: x[torch.tensor([1, 2])],
    "masked_fill": lambda: x.masked_fill(mask, 0.0),
    "write by index": lambda: x.clone().index_put_((torch.tensor([1]),), torch.zeros(1)),
    "repeat_interleave of known size": lambda: x.repeat_interleave(torch.ones(6, dtype=torch.int64), output_size=6),
    "one_hot with classes": lambda: F.one_hot(x.long(), 6),
    "backward": lambda: (torch.ones(3, requires_grad=True) * 2).sum().backward(),
}


def test_waits_within_our_own_ops_are_counted():
    """On a GPU, run lengths wait for the number of runs, of the bytes, and of the bytes that stay."""
    pytest.importorskip("triton")
    masks, boxes = torch.ones(2, 4, 4), torch.tensor([[1.0, 1, 5, 6], [2, 0, 9, 9]])
    for compress, waits in ((True, 3), (False, 2)):
        assert detops.count_syncs(detops.ops.masks_to_rle, masks, boxes, 8, 9, 0.5, compress) == waits
    assert detops.count_syncs(detops.ops.paste_masks, masks, boxes, 8, 9, 0.5) == 0


@pytest.mark.parametrize("name", SYNCS)
def test_syncs_are_counted(name):
    fn, expected = SYNCS[name]
    count = detops.count_syncs(fn)
    assert count == expected if name != "one_hot without classes" else count >= 1


@pytest.mark.parametrize("name", NO_SYNCS)
def test_what_does_not_wait_is_not_counted(name):
    assert detops.count_syncs(NO_SYNCS[name]) == 0


@pytest.mark.gpu
def test_copies_between_host_and_device_are_counted():
    on_gpu = x.cuda()
    assert detops.count_syncs(on_gpu.cpu) == 1
    assert detops.count_syncs(lambda: x.to("cuda")) == 1
    assert detops.count_syncs(lambda: x.pin_memory().to("cuda", non_blocking=True)) == 0


def test_arguments_and_errors_pass_through():
    assert detops.count_syncs(lambda a, b: (a + b).item(), x[0], b=x[1]) == 1
    with pytest.raises(ZeroDivisionError):
        detops.count_syncs(lambda: 1 / 0)


def test_env_is_plain_data():
    env = json.loads(json.dumps(detops.env()))
    assert set(env) == {
        "detops",
        "python",
        "platform",
        "torch",
        "triton",
        "triton_problem",
        "cpu",
        "gpu",
        "build",
        "ops",
    }
    assert env["torch"] == torch.__version__
    assert set(env["ops"]["draw_gaussians_"]) == {"cpu", "cuda", "other"}
    assert env["ops"]["draw_gaussians_"]["cpu"] == "C++"
    assert "-O3" in env["build"]["flags"]
