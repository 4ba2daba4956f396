"""What the host passes to a device: the host does not wait, and a CUDA graph is not given memory that is freed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import detops
from detops.arguments import require_no_capture, sent


class OnHost(SimpleNamespace):
    """A tensor of the host that notes how it travels."""

    def __init__(self, **changed: Any) -> None:
        super().__init__(device=torch.device("cpu"), pinned=False, sent=[], **changed)

    def pin_memory(self) -> "OnHost":
        self.pinned = True
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> "OnHost":
        self.sent.append((device.type, non_blocking))
        return self


def test_it_goes_from_pinned_memory() -> None:
    value: Any = OnHost()
    assert sent("sizes", value, "cuda") is value
    assert value.pinned
    assert value.sent == [("cuda", True)]
    value = OnHost()
    sent("sizes", value, "cpu")
    assert not value.pinned
    assert value.sent == [("cpu", False)]


def test_nothing_goes_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    value: Any = OnHost()
    with pytest.raises(RuntimeError, match="image_sizes: expected nothing from the host while a CUDA graph"):
        sent("image_sizes", value, "cuda")
    assert value.sent == []
    sent("image_sizes", value, "cpu")
    require_no_capture("image_sizes", torch.device("cpu"))


@pytest.mark.gpu
def test_lists_of_image_sizes_do_not_wait() -> None:
    maps = [torch.randn(2, c, 8, 8, device="cuda") for c in (3, 68)]
    detops.decode_gfl(maps[:1], maps[1:], (8,), image_sizes=[(64, 64), (50, 60)])  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = detops.decode_gfl(maps[:1], maps[1:], (8,), image_sizes=[(64, 64), (50, 60)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.boxes[1, :, 2].max() <= 60


@pytest.mark.gpu
def test_preprocess_refuses_to_be_captured() -> None:
    images = [torch.zeros(3, 20, 30, dtype=torch.uint8, device="cuda")]

    def call() -> object:
        return detops.preprocess(images, size=(40, 40), mean=(0, 0, 0), std=(1, 1, 1))

    call()
    torch.cuda.synchronize()
    with (
        pytest.raises(RuntimeError, match="images: expected nothing from the host"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        call()
