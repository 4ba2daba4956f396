"""`detops bench assignment`: exact assignment of many problems, against a loop with SciPy and batched PyTorch."""

import importlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from detops import ops
from detops.apps.bench._set_peers import batch_assignment
from detops.apps.bench._sets import HAS_SCIPY
from detops.apps.bench.runner import Case
from detops.portable.assignment import _assign

TESTS = ("tests/ops/test_assignment.py",)
SIZES = ((96, 300, 20), (520, 300, 22), (2, 900, 500))  # problems, queries, boxes


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield the problems of a decoder's layers, of groups of queries, and of two crowded images."""
    g = torch.Generator().manual_seed(0)
    for problems, queries, boxes in SIZES[: 1 if quick else None]:
        cost = torch.randn(problems, queries, boxes, generator=g).to(device)
        baselines: dict[str, Callable[[], object]] = {}
        if boxes < 100:
            baselines["batched PyTorch"] = partial(_batched, cost)
        if HAS_SCIPY:
            baselines["SciPy loop"] = partial(_loop, cost)
        theirs = batch_assignment(cost)
        if theirs is not None:
            baselines["torch-linear-assignment"] = theirs
        ours = partial(ops.assignment, cost, None)
        yield Case(f"{problems} problems, {queries} x {boxes}", ours, cost.clone, baselines, "copy of costs")


def _batched(cost: Tensor) -> Tensor:
    return _assign(cost.cpu(), None).to(cost.device)


def _loop(cost: Tensor) -> object:
    linear_sum_assignment = importlib.import_module("scipy.optimize").linear_sum_assignment
    return [linear_sum_assignment(problem) for problem in cost.cpu()]
