"""`detops bench set_match`: DETR's costs and matching, against the loop with SciPy and against batched PyTorch."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from detops import ops
from detops.apps.bench._set_peers import rfdetr_match, transformers_match
from detops.apps.bench._sets import HAS_SCIPY, Scene, loop_match
from detops.apps.bench.runner import Case
from detops.portable.set_match import set_match as portable

TESTS = ("tests/ops/test_set_match.py",)
SIZES = ((6, 16, 300, 20, 1), (5, 8, 3900, 22, 13), (1, 2, 900, 500, 1))  # layers, images, queries, boxes, groups


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield a decoder of six layers, groups of queries, and two crowded images."""
    for layers, batch, queries, boxes, groups in SIZES[: 1 if quick else None]:
        scene = Scene(layers, batch, queries, boxes, device)
        arguments: dict[str, Any] = {
            "class_logits": [scene.logits], "pred_boxes": [scene.pred], "gt_boxes": scene.boxes,
            "gt_labels": scene.labels, "sample_sizes": scene.sizes, "num_classes": scene.logits.shape[3],
            "groups": groups, "kind": 1, "alpha": 0.25, "gamma": 2.0, "eps": 1e-8,
            "class_cost": 2.0, "box_cost": 5.0, "giou_cost": 2.0,
        }  # fmt: skip
        baselines: dict[str, Callable[[], object]] = {"batched PyTorch": partial(portable, **arguments)}
        if HAS_SCIPY:
            baselines["loop with SciPy"] = partial(loop_match, scene, groups)
        peers = {
            "Transformers": None if groups > 1 else transformers_match(scene),
            "rfdetr": rfdetr_match(scene, groups),
        }
        baselines |= {name: call for name, call in peers.items() if call is not None}
        block = torch.zeros(layers * batch, queries, boxes, device=device)
        name = f"{layers} layers x {batch} images x {queries} queries, {groups} groups, {boxes} boxes"
        yield Case(name, partial(ops.set_match, **arguments), block.clone, baselines, "copy of costs")
