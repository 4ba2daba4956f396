"""The benchmark: its sides draw the same, its numbers go out as strict JSON with the machine in them."""

import itertools
import json

import pytest
import torch

from detops.apps.bench import draw_gaussians, masks_to_rle, paste_masks, positive_losses, resize_normalize_pad, runner


@pytest.mark.parametrize("config", draw_gaussians.CONFIGS[:3], ids=lambda config: config.name)
@pytest.mark.parametrize("kernel", [False, True])
def test_all_sides_draw_the_same(config, kernel):
    data = draw_gaussians.boxes(config, "cpu")
    assert int(data.sizes.sum()) > 1000
    sides = [
        draw_gaussians._ours(config, data, kernel),
        draw_gaussians._batched(data, config.classes),
        draw_gaussians._loop(data),
    ]
    drawn = [torch.zeros(config.batch, config.classes, config.height, config.width) for _ in sides]
    for draw, maps in zip(sides, drawn, strict=True):
        draw(maps)
    assert drawn[0].max() == 1
    torch.testing.assert_close(drawn[0], drawn[1])
    torch.testing.assert_close(drawn[0], drawn[2])


@pytest.mark.parametrize("kernel", [False, True])
def test_results(monkeypatch, tmp_path, capsys, kernel):
    tiny = [draw_gaussians.Config("tiny", 2, 3, 8, 8, 4, (0, 2), "classwise")]
    monkeypatch.setattr(draw_gaussians, "CONFIGS", tiny)
    monkeypatch.setattr(runner, "keep_freed_memory", lambda: None)
    path = tmp_path / "results" / "tiny.json"
    runner.main("heatmap", kernel=kernel, json_path=path, quick=True, device="cpu")
    record = json.loads(path.read_text(), parse_constant=lambda token: pytest.fail(f"{token} is no JSON"))
    assert record["env"]["torch"] == torch.__version__
    assert record["kernel_only"] is kernel
    (result,) = record["results"]
    assert result["syncs"]["ours"] == 0
    assert result["syncs"]["loop"] > 0
    assert set(result["timings"]) == {"floor", "ours", "batched PyTorch", "loop"}
    assert result["timings"]["loop"]["median"] / result["timings"]["ours"]["median"] == pytest.approx(
        result["ratios"]["loop / ours"]
    )
    assert "tiny" in capsys.readouterr().out


def test_all_sides_preprocess_the_same(monkeypatch):
    monkeypatch.setattr(resize_normalize_pad, "SCALE", (66, 40))
    monkeypatch.setattr(resize_normalize_pad, "CONFIGS", {"480x640": ([(48, 64), (130, 97)], {})})
    (case,) = resize_normalize_pad.cases("cpu", kernel=False, quick=True)
    (op_alone,) = resize_normalize_pad.cases("cpu", kernel=True, quick=True)
    images = case.ours().images
    assert images.std() > 0.5
    assert torch.equal(op_alone.ours(), images)
    torch.testing.assert_close(case.baselines["F.interpolate"](), images, rtol=0, atol=1e-4)
    if "OpenCV" in case.baselines:  # which rounds to whole grey levels
        assert (case.baselines["OpenCV"]() - images).abs().max() < 1 / min(resize_normalize_pad.STD)


def test_all_sides_of_gfl_lose_the_same(monkeypatch):
    monkeypatch.setattr(positive_losses, "IMAGE", (130, 200))
    for case in positive_losses.cases("cpu", kernel=False, quick=True):
        for mine, other in zip(case.ours(), case.baselines["loop"](), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)
    for cases in (positive_losses.cases, positive_losses.box_cases):
        for case in cases("cpu", kernel=True, quick=True):
            torch.testing.assert_close(case.ours(), case.baselines["batched PyTorch"](), rtol=1e-3, atol=1e-4)


def test_the_sides_alternate():
    calls = []
    timings = runner.measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0, cuda=False)
    assert set(timings) == {"a", "b"}
    changes = sum(x != y for x, y in itertools.pairwise(calls))
    assert changes >= 5


@pytest.mark.parametrize("kernel", [False, True])
def test_all_sides_paste_the_same(kernel):
    """But for a pixel in many thousands, which rounding decides."""
    size = (240, 320)
    case = paste_masks.case("", masks_to_rle.usual_sides(size), size, "cpu", kernel, batched=True)
    pasted = case.ours()
    assert pasted.flatten(1).any(1).sum() > 90
    assert torch.equal(pasted, case.baselines["batched PyTorch"]())
    assert (pasted != case.baselines["grid_sample"]()).sum() <= 5


def test_all_sides_encode_the_same():
    case = masks_to_rle.rle_case((240, 320), "cpu", kernel=False)
    encoded = case.ours()
    different = [a != b for a, b in zip(encoded, case.baselines["grid_sample"](), strict=True)]
    assert len(encoded) == 100
    assert sum(different) <= 5
    counts, offsets = case.baselines["batched PyTorch"]()
    assert bytes(counts.tolist()) == b"".join(mask["counts"] for mask in encoded)
    assert offsets[-1] == len(counts)


def test_unknown_suite():
    with pytest.raises(
        ValueError,
        match="suite: expected one of heatmap, focal, centernet, gradient, nms, simota, yolox, atss, gfl, gfl_boxes,"
        " region, preprocess, masks, paste, got 'heat'",
    ):
        runner.main("heat")
