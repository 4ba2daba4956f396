"""`detops bench local_loss_backward`: the gradient that D-FINE's losses hand on, against batched PyTorch."""

from collections.abc import Iterator
from functools import partial

import torch

from detops import ops
from detops.apps.bench.local_loss import arguments
from detops.apps.bench.runner import Case
from detops.portable.local_loss_backward import local_loss_backward_ as portable

TESTS = ("tests/ops/test_local_loss_backward.py",)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield losses that are summed as they are, and with two factors."""
    given = arguments(device)
    del given["teacher_logits"]
    gradient = torch.zeros_like(given["corners"])
    for name, factors in (("factors of 1", (1.0, 1.0)), ("factors of 0.5 and 2", (0.5, 2.0))):
        upstream = torch.tensor(factors, device=device).expand(len(given["scale"]), 2).contiguous()
        ours, plain = (
            partial(form, gradient=gradient, upstream=upstream, **given)
            for form in (ops.local_loss_backward_, portable)
        )
        yield Case(name, ours, upstream.clone, {"batched PyTorch": plain}, "copy of factors")
