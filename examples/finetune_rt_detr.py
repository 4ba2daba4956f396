"""An RT-DETR of Transformers, its criterion swapped in one line, and how long steps take.

In a plain training loop; `python examples/finetune_rt_detr.py trainer` trains with Transformers' Trainer, which needs
accelerate.
"""

import sys
import tempfile
import time
from typing import Any

import torch
from torch import Tensor

import detops
import detops.integrations.transformers

SIZE, CLASSES = 64, 2  # pixels of an image's side; tall and wide rectangles


def scene(index: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An image (3, 64, 64) with one to three rectangles, and labels as Transformers' image processors return them."""
    g = torch.Generator().manual_seed(index)
    count = int(torch.randint(1, 4, (), generator=g))
    labels = torch.randint(0, CLASSES, (count,), generator=g)
    sides = torch.tensor([[16.0, 28.0], [28.0, 16.0]])[labels]  # width and height by class
    low = (torch.rand(count, 2, generator=g) * (SIZE - sides)).round()
    image = 0.3 * torch.rand(3, SIZE, SIZE, generator=g)
    for (left, top), (width, height) in zip(low.int().tolist(), sides.int().tolist(), strict=True):
        image[:, top : top + height, left : left + width] = 1.0
    return image, {"class_labels": labels, "boxes": torch.cat([low + sides / 2, sides], 1) / SIZE}


def network() -> torch.nn.Module:
    """A small RT-DETR with random weights; your own would come from `from_pretrained`."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return RTDetrForObjectDetection(RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, d_model=32, encoder_in_channels=[16, 32, 32],
        encoder_ffn_dim=64, decoder_in_channels=[32, 32, 32], num_queries=20, decoder_layers=3,
        encoder_attention_heads=4, decoder_attention_heads=4, decoder_ffn_dim=64, num_denoising=20,
        num_labels=CLASSES,
    ))  # fmt: skip


def train(model: torch.nn.Module, steps: int) -> tuple[float, float]:
    """Train for some steps; return the last loss and the milliseconds per step."""
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4)
    model.train()
    begin = time.perf_counter()
    for step in range(steps):
        images, labels = zip(*(scene(8 * step + k) for k in range(8)), strict=True)
        loss = model(pixel_values=torch.stack(images), labels=list(labels)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item(), 1e3 * (time.perf_counter() - begin) / steps


class Scenes(torch.utils.data.Dataset[dict[str, Any]]):
    """So many images, as the Trainer takes them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, labels = scene(index)
        return {"pixel_values": image, "labels": labels}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch: the labels stay a list of dicts."""
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": [i["labels"] for i in items],
    }


def train_by_trainer(model: torch.nn.Module, steps: int) -> tuple[float, float]:
    """Train with Transformers' Trainer, which calls the loss through the model; return the mean loss and the time."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=5e-4, lr_scheduler_type="constant",
            remove_unused_columns=False, save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        result = Trainer(model, arguments, data_collator=collate, train_dataset=Scenes(8 * steps)).train()
    return result.training_loss, 1e3 * result.metrics["train_runtime"] / steps


def main(steps: int = 20, trainer: bool = False) -> dict[str, float]:
    """Train twice from the same weights, with their criterion and with ours, and return both losses."""
    reached = {}
    train(network(), 1)  # what the first step alone takes is counted on neither side
    for name in ("Transformers", "detops"):
        torch.manual_seed(0)
        model = network()
        if name == "detops":
            detops.integrations.transformers.use(model)
        reached[name], milliseconds = (train_by_trainer if trainer else train)(model, steps)
        print(f"{name}: loss {reached[name]:.4f} after {steps} steps, {milliseconds:.0f} ms per step")
    model.cpu()
    images, _ = zip(*(scene(10_000 + k) for k in range(4)), strict=True)
    with torch.no_grad():
        outputs = model.eval()(pixel_values=torch.stack(images))
    found = detops.decode_detr(outputs.logits, outputs.pred_boxes, [(SIZE, SIZE)] * 4, max_detections=10)
    print(f"boxes of the first image: {found.boxes[0, :2].round().tolist()}")
    return reached


if __name__ == "__main__":
    main(trainer="trainer" in sys.argv[1:])
