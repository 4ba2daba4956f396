"""Localization distillation in a loop of your own: a GFL of 8 channels learns from one of 32 channels."""

import torch
from torch import Tensor, nn

import detops

SIZE, STRIDES, REG_MAX = 128, (8, 16), 16


class Network(nn.Module):
    """A GFL head on a few convolutions: class logits and distributions of distances at strides 8 and 16."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, 4, 4), nn.ReLU(), nn.Conv2d(channels, channels, 5, 2, 2), nn.ReLU(),
        )  # fmt: skip
        self.down = nn.Sequential(nn.Conv2d(channels, channels, 3, 2, 1), nn.ReLU())
        self.cls = nn.ModuleList(nn.Conv2d(channels, 1, 3, padding=1) for _ in STRIDES)
        self.box = nn.ModuleList(nn.Conv2d(channels, 4 * (REG_MAX + 1), 3, padding=1) for _ in STRIDES)
        for layer in self.cls:
            nn.init.constant_(layer.bias, -4.6)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return each level's (B, 1, H, W) class logits and (B, 68, H, W) box logits."""
        fine = self.stem(images)
        levels = (fine, self.down(fine))
        return (
            [layer(level) for layer, level in zip(self.cls, levels, strict=True)],
            [layer(level) for layer, level in zip(self.box, levels, strict=True)],
        )


def scene(count: int, seed: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Make images (B, 1, 128, 128) with a bright rectangle each, and its box and label."""
    g = torch.Generator().manual_seed(seed)
    sides = 24 + 48 * torch.rand(count, 2, generator=g)
    low = torch.rand(count, 2, generator=g) * (SIZE - sides)
    boxes = torch.cat([low, low + sides], 1).round()
    images = 0.3 * torch.rand(count, 1, SIZE, SIZE, generator=g)
    for image, (left, top, right, bottom) in zip(images, boxes.int().tolist(), strict=True):
        image[:, top:bottom, left:right] = 1.0
    return images, list(boxes[:, None]), [torch.zeros(1, dtype=torch.int64)] * count


def train(network: Network, steps: int, teacher: detops.Teacher | None = None) -> None:
    """Train by GFL's losses alone, or with a teacher's distributions too."""
    device = next(network.parameters()).device
    alone = detops.GFLLoss(1, REG_MAX, STRIDES, anchor_scale=4)
    taught = detops.LDLoss(1, REG_MAX, STRIDES, anchor_scale=4, ld_weight=4.0, normalize_ld=True)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(steps):
        images, boxes, labels = scene(16, step)
        images = images.to(device)
        arguments = (*network(images), detops.GroundTruth.from_boxes(boxes, labels).to(device))
        losses = alone(*arguments) if teacher is None else taught(*arguments, soft_targets=teacher(images))
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def quality(network: Network) -> float:
    """Return the mean IoU of the best detection of each image with its box."""
    images, boxes, _ = scene(64, 10_000)
    scores, distributions = network(images.to(next(network.parameters()).device))
    found = detops.decode_gfl(scores, distributions, STRIDES, score_threshold=0.0, max_detections=1)
    best = found.boxes[:, 0].cpu()
    return float(1 - detops.box_iou_loss(best, torch.cat(boxes)))


def main(steps: int = 150) -> dict[str, float]:
    """Train a teacher, a student alone and a student with the teacher; return the mean IoU of each."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    large = Network(32).to(device)
    train(large, 2 * steps)
    torch.manual_seed(1)
    alone = Network(8).to(device)
    taught = Network(8).to(device)
    taught.load_state_dict(alone.state_dict())  # from the same start
    train(alone, steps)
    train(taught, steps, detops.Teacher(large, STRIDES))
    reached = {"teacher": quality(large), "student alone": quality(alone), "student, taught": quality(taught)}
    for name, iou in reached.items():
        print(f"{name}: mean IoU {iou:.3f}")
    return reached


if __name__ == "__main__":
    main()
