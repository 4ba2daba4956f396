"""Decoders as programs: `torch.export` with any batch size, without detops where they run, and ONNX."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detops
from detops.reference.nms_mask import nms_mask as nms_by_the_book

pytestmark = pytest.mark.slow


class CenterNet(nn.Module):
    def forward(self, heatmap: Tensor, wh: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
        return tuple(detops.decode_centernet(heatmap, wh, offset, (128, 128), 40, iou_threshold=0.5))


class YOLOX(nn.Module):
    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, ...]:
        return tuple(detops.decode_yolox([fine, coarse], strides=(8, 16), candidates=120))


class GFL(nn.Module):
    def forward(self, scores: Tensor, coarse_scores: Tensor, boxes: Tensor, coarse_boxes: Tensor) -> tuple[Tensor, ...]:
        return tuple(detops.decode_gfl([scores, coarse_scores], [boxes, coarse_boxes], strides=(8, 16), candidates=120))


class DETR(nn.Module):
    def forward(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        return tuple(detops.decode_detr(logits, boxes, sizes, max_detections=20))


class Suppressed(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        return detops.nms_mask(boxes, scores, 0.4, labels=labels, valid=valid)


def outputs(family: type[nn.Module], batch: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(batch)
    shapes: dict[type[nn.Module], list[tuple[int, ...]]] = {
        CenterNet: [(3, 32, 32), (2, 32, 32), (2, 32, 32)],
        YOLOX: [(1, 16, 16, 8), (1, 8, 8, 8)],
        GFL: [(3, 16, 16), (3, 8, 8), (68, 16, 16), (68, 8, 8)],
        DETR: [(30, 3), (30, 4)],
    }
    maps = [torch.randn(batch, *shape, generator=g) * 2 + 1 for shape in shapes[family]]
    return (maps[0], maps[1].sigmoid(), torch.full((batch, 2), 128)) if family is DETR else tuple(maps)


@functools.cache
def decoder(family: type[nn.Module]) -> torch.export.ExportedProgram:
    return exported(family(), outputs(family, 2))


def exported(network: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batches = tuple({0: torch.export.Dim("batch", min=1, max=64)} for _ in inputs)
    program = torch.export.export(network.eval(), inputs, dynamic_shapes=batches)
    return program.run_decompositions(detops.decompositions())


@pytest.mark.parametrize("family", [CenterNet, YOLOX, GFL, DETR])
def test_a_decoder_is_exported_for_any_batch(family: type[nn.Module]) -> None:
    network, program = family(), decoder(family)
    assert not [node for node in program.graph.nodes if "detops" in str(node.target)]
    for batch in (1, 2, 5):
        inputs = outputs(family, batch)
        wanted = network(*inputs)
        assert (wanted[1] >= 0).sum() > 10 * batch
        boxes, *rest = program.module()(*inputs)
        for found, want in zip(rest, wanted[1:], strict=True):
            assert torch.equal(found, want)
        # The exponentials of boxes come from PyTorch in the program, from an op of detops in the network.
        rtol, atol = (1e-5, 1e-4) if family in (YOLOX, GFL) else (0, 0)
        torch.testing.assert_close(boxes, wanted[0], rtol=rtol, atol=atol)


def test_suppression_in_a_program_is_that_of_the_reference() -> None:
    """On crowds: chains of boxes that drop each other in turn, equal scores, labels, boxes that are not valid."""
    g = torch.Generator().manual_seed(0)

    def scene(batch: int) -> tuple[Tensor, ...]:
        low = torch.rand(batch, 60, 2, generator=g) * 40
        boxes = torch.cat([low, low + 5 + 20 * torch.rand(batch, 60, 2, generator=g)], 2)
        boxes[0, :30] = torch.tensor([0.0, 0, 10, 10]) + torch.arange(30.0)[:, None] * torch.tensor([4.0, 0, 4, 0])
        scores = (torch.rand(batch, 60, generator=g) * 20).round() / 20
        scores[0, :30] = torch.linspace(1, 0.5, 30)
        scores[-1, 3] = torch.nan
        return boxes, scores, torch.randint(3, (batch, 60), generator=g), torch.rand(batch, 60, generator=g) > 0.1

    program = exported(Suppressed(), scene(2)).module()
    for _ in range(20):
        inputs = scene(3)
        kept = program(*inputs)
        assert torch.equal(kept, nms_by_the_book(*inputs, 0.4))
        assert 0 < kept.sum() < kept.numel()


def test_a_saved_program_runs_without_detops(tmp_path: Path) -> None:
    inputs = outputs(CenterNet, 2)
    torch.export.save(decoder(CenterNet), tmp_path / "decoder.pt2")
    torch.save((inputs, CenterNet()(*inputs)), tmp_path / "expected.pt")
    code = (
        "import sys; sys.modules['detops'] = None\n"
        "import torch\n"
        "inputs, expected = torch.load('expected.pt')\n"
        "found = torch.export.load('decoder.pt2').module()(*inputs)\n"
        "assert all(map(torch.equal, found, expected))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [CenterNet, YOLOX, GFL, DETR])
def test_onnx_runtime_gives_the_same(family: type[nn.Module], tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime: Any = pytest.importorskip("onnxruntime")
    model = torch.onnx.export(decoder(family), dynamo=True, verbose=False)
    assert model is not None
    model.save(tmp_path / "decoder.onnx")
    session = runtime.InferenceSession(tmp_path / "decoder.onnx", providers=["CPUExecutionProvider"])
    inputs = outputs(family, 3)
    feeds = {item.name: value.numpy() for item, value in zip(session.get_inputs(), inputs, strict=True)}
    found = map(torch.from_numpy, session.run(None, feeds))
    for value, wanted, tolerance in zip(found, family()(*inputs), (1e-3, 0, 1e-6), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=tolerance)
