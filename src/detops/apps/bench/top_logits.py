"""`detops bench top_logits`: the highest class logits of each level, against PyTorch's topk of all."""

from collections.abc import Iterator
from functools import partial

import torch

from detops import ops
from detops.apps.bench import _task_aligned
from detops.apps.bench._task_aligned import Scene
from detops.apps.bench.runner import Case
from detops.portable.top_logits import top_logits as portable

TESTS = ("tests/ops/test_top_logits.py",)
COUNT = 1000


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield maps of 640 x 640 pixels, of which one logit in a hundred is above the lowest, or all are."""
    for batch in (1, 16)[: 1 if quick else None]:
        scene = Scene(batch, *_task_aligned.CONFIGS[0][1:], device)
        scores = [level.detach() - 2 for level in scene.scores]
        for name, least in (("scores from 0.05", -2.95), ("all", -float("inf"))):
            ours, batched = (partial(form, scores, least, COUNT) for form in (ops.top_logits, portable))
            floor = partial(_copy, scores)
            yield Case(f"{batch} images, {name}", ours, floor, {"batched PyTorch": batched}, "copy of class logits")


def _copy(levels: list[torch.Tensor]) -> object:
    return [level.clone() for level in levels]
