"""Train the compact DETR as `detops train --detector detr` does, by our criterion or by Transformers' RT-DETR's own.

python benchmarks/train_detr.py --data DIR --out RUN --criterion transformers --seed 0
"""

import argparse
import resource
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detops.apps.data.dataset import Batch
from detops.apps.train import families, train
from detops.apps.train.augment import Augmentation
from detops.apps.train.settings import Data, Hardware, Network, Settings
from detops.assign.set_targets import require_set_targets


class Theirs(families.Detr):
    """The same detector, whose losses Transformers computes."""

    def losses(self, outputs: list[Any], batch: Batch, shape: families.Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute RT-DETR's losses by Transformers' function."""
        from transformers import RTDetrConfig
        from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

        logits, boxes, dense_logits, dense_boxes = outputs
        truth = require_set_targets(self.shares(batch, shape), self.criterion.num_classes, None, None, "")
        labels = []
        for label, box, exists in zip(truth.labels, truth.boxes, batch.targets.exists(), strict=True):
            there = exists & (label >= 0)
            labels.append({"class_labels": label[there].long(), "boxes": box[there]})
        config = RTDetrConfig(num_labels=self.criterion.num_classes, auxiliary_loss=True)
        total, parts, _ = RTDetrForObjectDetectionLoss(
            logits[:, -1], labels, logits.device, boxes[:, -1], config, logits, boxes, dense_logits, dense_boxes
        )  # fmt: skip
        return total, parts


def main() -> None:
    """Train once, and print the scores and the seconds of processor time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--criterion", choices=["detops", "transformers"], default="detops")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args()
    if options.criterion == "transformers":
        families.FAMILIES["detr"] = Theirs
    torch.set_num_threads(1)
    scores = train.run(
        options.out,
        data=Data.from_folder(options.data),
        network=Network("detr", width=options.width, size=(192, 256)),
        settings=Settings(
            epochs=options.epochs, lr=options.lr, seed=options.seed, augmentation=Augmentation(flip_vertical=True)
        ),
        hardware=Hardware("32-true", accelerator="cpu", workers=0),
    )
    used = resource.getrusage(resource.RUSAGE_SELF)
    ap = ", ".join(f"{name} {scores[name]:.3f}" for name in ("AP", "AP50", "AP75"))
    print(f"{options.criterion}, seed {options.seed}: {ap}; {(used.ru_utime + used.ru_stime) / 60:.1f} CPU minutes")


if __name__ == "__main__":
    main()
