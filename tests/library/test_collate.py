"""collate: samples of a data set to a batch, in a DataLoader with workers too."""

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import detops
from detops import GroundTruth, collate

SHAPES = [(8, 6), (5, 9), (8, 9)]


def image(n: int, shape: tuple[int, int] = (8, 6)) -> Tensor:
    return torch.full((3, *shape), float(n + 1))


def target(n: int) -> dict[str, Tensor]:
    """Make as many boxes as the sample's number; the last of three is a crowd."""
    corner = torch.arange(n, dtype=torch.float32)[:, None].expand(n, 2) + n
    flags = torch.tensor([0, 0, 1, 0, 0, 0])[:n]
    return {"boxes": torch.cat([corner, corner + 2], 1), "labels": torch.arange(n) + 1, "iscrowd": flags}


class Boxes(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """A data set of images of one size with 0 .. 4 boxes."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        return image(n), target(n % 5)


def test_samples_of_one_size() -> None:
    images, truth = collate([(image(n), target(n)) for n in range(4)])
    assert images.shape == (4, 3, 8, 6)
    assert images[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert truth.image_sizes is None
    assert truth.sample_sizes is not None
    assert truth.sample_sizes.tolist() == [0, 1, 2, 2]
    assert truth.boxes.shape == (4, 2, 4)
    assert truth.labels[2].tolist() == [1, 2]
    assert truth.ignored is not None
    assert torch.equal(truth.ignored[3, 0], target(3)["boxes"][2])


def test_every_form_of_a_sample_and_its_options() -> None:
    numbers = (1, 2)
    dicts = [(image(n), target(n)) for n in numbers]
    expected = GroundTruth.from_dicts([sample[1] for sample in dicts], first_label=1, pad_to=6, pad_ignored_to=2)
    transformers = []
    for n in numbers:
        box = target(n)["boxes"] / torch.tensor([6.0, 8.0] * 2)
        cxcywh = torch.cat([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]], 1)
        transformers.append((image(n), {"boxes": cxcywh, "class_labels": target(n)["labels"] - 1}))
    samples: list[tuple[Any, int]] = [
        (dicts, 1),
        ([list(sample) for sample in dicts], 1),
        ([(image(n), target(n)["boxes"], target(n)["labels"]) for n in numbers], 1),
        ([(image(n), target(n)["boxes"].tolist(), target(n)["labels"].numpy()) for n in numbers], 1),
        (transformers, 0),
    ]
    for form, first_label in samples:
        images, truth = collate(form, pad_to=6, pad_ignored_to=2, first_label=first_label)
        assert torch.equal(images, torch.stack([image(n) for n in numbers]))
        torch.testing.assert_close(truth.boxes, expected.boxes, rtol=0, atol=1e-6)
        assert torch.equal(truth.labels, expected.labels)
        assert truth.ignored is not None
        assert truth.ignored.shape == (2, 2, 4)


@pytest.mark.parametrize("size_divisor", [1, 4, 32])
def test_images_of_several_sizes_are_padded(size_divisor: int) -> None:
    images, truth = collate([(image(n, SHAPES[n]), target(n)) for n in range(3)], size_divisor=size_divisor)
    height, width = (-(-side // size_divisor) * size_divisor for side in (8, 9))
    assert images.shape == (3, 3, height, width)
    for n, (h, w) in enumerate(SHAPES):
        assert (images[n, :, :h, :w] == n + 1).all()
        assert images[n].sum() == 3 * h * w * (n + 1)
    assert truth.image_sizes is not None
    assert truth.image_sizes.tolist() == [list(shape) for shape in SHAPES]
    # Normalised boxes are fractions of their own image, not of the batch's padding.
    whole = {"boxes": torch.tensor([[0.5, 0.5, 1, 1]]), "class_labels": torch.tensor([0])}
    _, truth = collate([(image(n, SHAPES[n]), whole) for n in range(3)], size_divisor=size_divisor)
    assert truth.boxes[:, 0].tolist() == [[0, 0, w, h] for h, w in SHAPES]
    one, truth = collate([(image(0), target(1))], size_divisor=size_divisor)
    assert (truth.image_sizes is None) == (one.shape[2:] == (8, 6))


def test_no_boxes_and_other_dtypes() -> None:
    images, truth = collate([(image(0).to(torch.uint8), target(0)) for _ in range(2)])
    assert images.dtype == torch.uint8
    assert truth.boxes.shape == (2, 0, 4)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_loader(num_workers: int) -> None:
    loader = DataLoader(
        Boxes(),
        batch_size=4,
        num_workers=num_workers,
        collate_fn=functools.partial(collate, pad_to=5, pad_ignored_to=1, first_label=1),
    )
    batches = list(loader)
    assert [len(truth) for _, truth in batches] == [4, 4, 2]
    for start, (images, truth) in zip((0, 4, 8), batches, strict=True):
        assert isinstance(truth, GroundTruth)
        assert truth.boxes.shape == (len(images), 5, 4)
        assert images[:, 0, 0, 0].tolist() == [n + 1.0 for n in range(start, start + len(images))]
        _, expected = collate(
            [Boxes()[start + b] for b in range(len(images))], pad_to=5, pad_ignored_to=1, first_label=1
        )
        for name, tensor in expected._tensors().items():
            assert torch.equal(getattr(truth, name), tensor)


def test_plain_collate_is_enough() -> None:
    for images, truth in DataLoader(Boxes(), batch_size=5, num_workers=2, collate_fn=detops.collate):
        assert len(images) == len(truth) == 5
        assert truth.boxes.shape[1] == 3  # of four boxes the third is a crowd


def pinned_by(loader: DataLoader[Any]) -> list[Any]:
    """Return a loader's batches as its pinning thread would leave them, without a GPU to pin for."""
    from torch.utils.data._utils.pin_memory import pin_memory

    return [pin_memory(batch) for batch in loader]


def test_the_loader_pins_it_in_one_piece() -> None:
    pinned: list[Tensor] = []

    def pin(tensor: Tensor, *_: object) -> Tensor:
        pinned.append(tensor)
        return tensor.clone()

    loader = DataLoader(Boxes(), batch_size=5, num_workers=2, collate_fn=collate)
    with mock.patch.object(Tensor, "pin_memory", pin):
        batches = pinned_by(loader)
    assert len(pinned) == 2 * len(batches) == 4  # the images, and one buffer
    for images, truth in batches:
        assert isinstance(truth, GroundTruth)
        assert len({tensor.untyped_storage().data_ptr() for tensor in truth._tensors().values()}) == 1
        assert truth.exists().sum() == sum(min(n, 2) + max(n - 3, 0) for n in range(5))
        assert len(images) == 5


@pytest.mark.gpu
def test_pinned_batches_go_to_a_gpu() -> None:
    loader = DataLoader(Boxes(), batch_size=5, num_workers=2, collate_fn=collate, pin_memory=True)
    for (images, truth), (_, expected) in zip(
        loader, DataLoader(Boxes(), batch_size=5, collate_fn=collate), strict=True
    ):
        assert images.is_pinned()
        assert truth.is_pinned()
        moved = truth.to("cuda", non_blocking=True)
        for name, tensor in expected._tensors().items():
            assert torch.equal(getattr(moved, name).cpu(), tensor)


ERRORS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: collate([]), ValueError, "samples: expected at least one, got none"),
    (lambda: collate([image(0)]), TypeError, r"samples: sample 0: expected \(image, target\) or .* got Tensor"),
    (lambda: collate([(image(0), target(0)), (image(0),)]), TypeError, "samples: sample 1: expected .* got 1 items"),
    (lambda: collate([("picture", target(0))]), TypeError, r"samples: sample 0: expected an image as a tensor .* got str"),
    (lambda: collate([(image(0)[None], target(0))]), TypeError, r"expected an image as a tensor \(C, H, W\), got \(1, 3, 8, 6\)"),
    (lambda: collate([(image(0), target(0)), (image(0)[:1], target(0))]), ValueError,
     "samples: sample 1: expected 3 channels, as the first image has, got 1"),
    (lambda: collate([(image(0), target(0)), (image(0).byte(), target(0))]), ValueError,
     "samples: sample 1: expected torch.float32 on cpu, as the first image, got torch.uint8 on cpu"),
    (lambda: collate([(image(0), target(0)), (image(0), target(1)["boxes"])]), TypeError,
     "targets: image 1: expected a dict, got Tensor"),
    (lambda: collate([(image(0), {"boxes": []})]), ValueError, 'targets: image 0: expected the key "labels", got boxes'),
    (lambda: collate([(image(0), target(4))], pad_to=2), ValueError, "pad_to: expected at least 3, .* got 2"),
    (lambda: collate([(image(0), target(3))], pad_ignored_to=0), ValueError, "pad_ignored_to: expected at least 1, .* got 0"),
    (lambda: collate([(image(0), target(0))], size_divisor=0), ValueError, "size_divisor: expected at least 1, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_name_the_sample(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
