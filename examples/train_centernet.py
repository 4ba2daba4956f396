"""A training loop of your own: bright rectangles on noise, found by a CenterNet of three layers."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import detops

SIZE, STRIDE, CLASSES = 64, 4, 2  # pixels of an image's side, pixels per cell, tall and wide rectangles


class Rectangles(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """A data set of images (1, 64, 64) with one to three rectangles; boxes (n, 4) in pixels, labels (n,)."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(index)
        count = int(torch.randint(1, 4, (), generator=g))
        labels = torch.randint(0, CLASSES, (count,), generator=g)
        sides = torch.tensor([[10.0, 20.0], [20.0, 10.0]])[labels]  # width and height by class
        low = (torch.rand(count, 2, generator=g) * (SIZE - sides)).round()
        boxes = torch.cat([low, low + sides], 1)
        image = 0.3 * torch.rand(1, SIZE, SIZE, generator=g)
        for left, top, right, bottom in boxes.int().tolist():
            image[:, top:bottom, left:right] = 1.0
        return image, boxes, labels


class Network(nn.Module):
    """A network from images to heatmap logits, sizes and offsets at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, 64, 7, padding=3), nn.ReLU(),
            nn.Conv2d(64, CLASSES + 4, 1),
        )  # fmt: skip
        nn.init.constant_(self.body[-1].bias[:CLASSES], -4.6)  # objects are rare: p = 0.01 at first

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return three maps (B, 2, 16, 16)."""
        return self.body(images).split([CLASSES, 2, 2], 1)


def main(epochs: int = 4) -> float:
    """Train, and return the fraction of boxes that are found with IoU 0.5."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, criterion = Network().to(device), detops.CenterNetLoss(num_classes=CLASSES)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    loader = DataLoader(Rectangles(), batch_size=16, shuffle=True, collate_fn=detops.collate)
    for epoch in range(epochs):
        for images, targets in loader:
            outputs = network(images.to(device))
            losses = criterion(*outputs, targets.to(device), image_size=(SIZE, SIZE))
            sum(losses.values()).backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}: " + ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))

    images, targets = detops.collate([Rectangles()[index] for index in range(1000, 1032)])
    with torch.no_grad():
        found = detops.decode_centernet(*network(images.to(device)), image_size=(SIZE, SIZE), max_detections=10)
    kept = [box[score > 0.3].cpu() for box, score in zip(found.boxes, found.scores, strict=True)]
    truth = [target["boxes"] for target in targets.to_list()]
    hits = [overlap(box, near).amax(1, keepdim=True) for box, near in zip(truth, kept, strict=True) if len(near)]
    share = float((torch.cat(hits) >= 0.5).sum() / sum(len(box) for box in truth))
    print(f"{share:.0%} of the boxes found")
    return share


def overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU (n, m) of every box with every other one."""
    pairs = boxes[:, None].expand(-1, len(others), -1), others[None].expand(len(boxes), -1, -1)
    return 1 - detops.box_iou_loss(*(side.reshape(-1, 4) for side in pairs), reduction="none").view(len(boxes), -1)


if __name__ == "__main__":
    main()
