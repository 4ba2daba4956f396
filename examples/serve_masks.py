"""The stages around an instance segmentation network when it is served, each of them timed.

Random numbers stand in for the network; yours predicts boxes, labels, scores and masks of 28 x 28 cells for each image.
"""

import torch
from torch import Tensor

import detops

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def network(images: Tensor, count: int = 100) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predict boxes (B, N, 4) in pixels of the input, labels, scores, and mask logits (B, N, 80, 28, 28)."""
    batch, _, height, width = images.shape
    low = torch.rand(batch, count, 2, device=images.device) * torch.tensor([width, height], device=images.device) * 0.8
    boxes = torch.cat([low, low + 20 + 150 * torch.rand(batch, count, 2, device=images.device)], 2)
    scores = torch.rand(batch, count, device=images.device).sort(descending=True).values
    y = torch.linspace(-1, 1, 28, device=images.device)
    disc = 8 * (0.8 - (y[:, None] ** 2 + y**2).sqrt())
    labels = torch.randint(80, (batch, count), device=images.device)
    return boxes, labels, scores, disc.expand(batch, count, 80, 28, 28)


def main(size: tuple[int, int] = (1080, 1920)) -> list[dict[str, object]]:
    """Serve two images of this height and width; return the rows of a COCO results file."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = [torch.randint(256, (3, *size), dtype=torch.uint8), torch.randint(256, (3, 480, 640), dtype=torch.uint8)]
    timer, rows = detops.StageTimer(), []
    with torch.no_grad():
        for _ in range(3):  # the first round also starts threads, and on a GPU compiles kernels
            rows.clear()
            with timer.stage("preprocess"):
                batch = detops.preprocess(images, scale=(1333, 800), mean=MEAN, std=STD, device=device)
            with timer.stage("network"):
                boxes, labels, scores, logits = network(batch.images)
            with timer.stage("results"):
                originals = batch.to_original(boxes)
                for n, image in enumerate(images):
                    found = detops.InstanceMasks.from_class_masks(
                        originals[n], labels[n], scores[n], logits[n], (image.shape[1], image.shape[2]), logits=True
                    )
                    rows += found.to_coco(image_id=n)  # run lengths; no mask of an image's size was made
    print(timer.table())
    print(f"{len(rows)} instances, the first: {str(rows[0])[:150]} ...")
    return rows


if __name__ == "__main__":
    main()
