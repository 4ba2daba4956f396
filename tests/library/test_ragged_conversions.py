"""Ragged batches in other types, on other devices and in pinned memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from detops.ragged import RaggedBatch


def test_conversions() -> None:
    batch = RaggedBatch(torch.ones(2, 3), sample_sizes=torch.tensor([1, 3]))
    names = ["int", "long", "bool", "half", "bfloat16", "float", "double", "cfloat", "cdouble"]
    for name in names:
        assert getattr(batch, name)().dtype == getattr(torch.ones(1), name)().dtype
    assert batch.to(torch.float64).dtype == batch.to_dtype(torch.float64).dtype == torch.float64
    assert batch.cpu().device == batch.to_device("cpu").device == torch.device("cpu")
    meta = batch.to("meta")
    assert meta.device == meta.sample_sizes.device == meta.mask.device == torch.device("meta")
    batch.requires_grad = True
    assert batch.requires_grad
    assert not batch.detach().requires_grad
    again = batch.apply(lambda t: t * 2)
    again.retain_grad()
    assert again.retains_grad
    clone = batch.detach().as_self_with_cloned_data()
    clone[0, 0] = 7
    assert clone[0, 0] == 7
    assert batch[0, 0] == 1
    assert batch.size(1) == 3
    assert batch.size() == batch.shape
    for word in ("RaggedBatch", "tensor=", "mask=", "sample_sizes=", "non_uniform_dim=", "batch_shape="):
        assert word in repr(batch)
    clone.set_tensor(torch.zeros(2, 3, 5))
    assert clone.shape == (2, 3, 5)


class Copies(TorchDispatchMode):
    """Collects the shape of each tensor that is copied to another device, and whether the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.Size, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            self.found.append((args[0].shape, bool(kwargs.get("non_blocking"))))
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "non_blocking"),
    [
        (("meta",), {"non_blocking": True}, True),
        (("meta", torch.float64, True), {}, True),
        ((torch.zeros(1, device="meta"), True), {}, True),
        ((), {"device": torch.device("meta"), "non_blocking": True}, True),
        (("meta",), {}, False),
        (("meta", None, False, True), {}, False),  # the last is `copy`
    ],
)
def test_every_tensor_moves_without_waiting(args: tuple[Any, ...], kwargs: dict[str, Any], non_blocking: bool) -> None:
    batch = RaggedBatch(torch.zeros(2, 3, 4), sample_sizes=torch.tensor([1, 3]))
    assert batch.mask.any()
    with Copies() as copies:
        moved = batch.to(*args, **kwargs)
    assert copies.found == [(shape, non_blocking) for shape in ((2, 3, 4), (2, 3), (2,))]
    assert moved.device == moved.mask.device == moved.sample_sizes.device == torch.device("meta")


def test_every_tensor_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning needs a GPU, so here a pinned tensor is a marked copy."""
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = RaggedBatch(torch.ones(2, 1, 3), sample_sizes=torch.tensor([1, 3]), non_uniform_dim=2)
    found = pin_memory({"boxes": batch})["boxes"]  # as the thread of a DataLoader does
    assert found.tensor is pinned[0]
    assert found.sample_sizes is pinned[1]
    assert len(pinned) == 2
    assert found.non_uniform_dim == 2
    assert batch.mask.any()
    pinned.clear()
    found = batch.pin_memory()
    assert all(one is other for one, other in zip((found.tensor, found.mask, found.sample_sizes), pinned, strict=True))
    assert torch.equal(found.mask, batch.mask)


class OneBatch(Dataset[RaggedBatch]):
    """A data set of one batch, mask and sizes included."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> RaggedBatch:
        batch = RaggedBatch(torch.arange(6).reshape(2, 3), sample_sizes=torch.tensor([1, 3]))
        assert batch.mask.any()
        return batch


@pytest.mark.gpu
def test_a_loader_pins_a_batch() -> None:
    (found,) = DataLoader(OneBatch(), batch_size=None, pin_memory=True)
    assert found.tensor.is_pinned()
    assert found.mask.is_pinned()
    assert found.sample_sizes.is_pinned()
    moved = found.to("cuda", non_blocking=True)
    assert moved.mask.device == moved.sample_sizes.device == moved.device
    assert moved.with_padded_set_to(0).tensor.tolist() == [[0, 0, 0], [3, 4, 5]]
