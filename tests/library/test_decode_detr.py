"""decode_detr and denoising_queries."""

import importlib

import pytest
import torch
from op import assert_compiles_whole, assert_no_syncs
from set_scenes import set_scene

import detops


def outputs(seed=0, classes=4):
    logits, pred, *_ = set_scene(seed, sets=1, classes=classes).values()
    return logits[0], pred[0]


SIZES = torch.tensor([[100, 200], [50, 80]])


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_a_loop_finds_the_same(kind):
    logits, pred = outputs()
    found = detops.decode_detr(logits, pred, SIZES, kind=kind, max_detections=7, score_threshold=0.2)
    for b in range(2):
        rows = []
        for q in range(logits.shape[1]):
            scores = logits[b, q].sigmoid() if kind == "sigmoid" else logits[b, q].softmax(0)[:-1]
            classes = range(len(scores)) if kind == "sigmoid" else [int(scores.argmax())]
            rows += [(scores[c].item(), c, q) for c in classes if scores[c] >= 0.2]
        rows = sorted(rows, key=lambda row: -row[0])[:7]
        assert found.labels[b].tolist() == [c for _, c, _ in rows] + [-1] * (7 - len(rows))
        for k, (score, _, q) in enumerate(rows):
            assert found.scores[b, k].item() == pytest.approx(score, abs=1e-6)
            x, y, w, h = (pred[b, q] * SIZES[b].flip(0).repeat(2)).tolist()
            corners = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            limit = SIZES[b].flip(0).repeat(2).float()
            torch.testing.assert_close(found.boxes[b, k], corners.clamp(min=0).minimum(limit))


def test_transformers_finds_the_same():
    processing = pytest.importorskip("transformers.models.rt_detr.image_processing_rt_detr", exc_type=ImportError)
    logits, pred = outputs(1)
    theirs = processing.RTDetrImageProcessor().post_process_object_detection(
        type("Output", (), {"logits": logits, "pred_boxes": pred})(),
        threshold=0.3,
        target_sizes=SIZES,
        use_focal_loss=True,
    )
    mine = detops.decode_detr(logits, pred, [(10**6, 10**6)] * 2, max_detections=6, score_threshold=0.3).to_list()
    for one, other, size in zip(mine, theirs, SIZES, strict=True):
        assert one["labels"].tolist() == other["labels"].tolist()
        torch.testing.assert_close(one["scores"], other["scores"])
        whole = (other["boxes"] / size.flip(0).repeat(2) * 1e6).clamp(0, 1e6)
        torch.testing.assert_close(one["boxes"], whole, rtol=1e-4, atol=1)


def test_nan_and_few_candidates():
    logits, pred = outputs(2)
    logits[0], pred[1, :, 0] = torch.nan, torch.nan
    found = detops.decode_detr(logits.half(), pred, SIZES, max_detections=30)
    assert (found.labels == -1).all()
    assert (found.scores == 0).all()
    assert found.boxes.shape == (2, 30, 4)


def test_no_sync_and_one_graph():
    logits, pred = outputs(3)
    assert_no_syncs(lambda *args: detops.decode_detr(*args, SIZES), logits, pred)
    assert_compiles_whole(lambda *args: detops.decode_detr(*args, SIZES), (logits, pred), outputs(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kind="focal"), "kind: expected"),
        (dict(max_detections=0), "max_detections: expected"),
        (dict(pred_boxes=torch.zeros(2, 5, 4)), r"pred_boxes: expected shape \(2, 6, 4\)"),
        (dict(class_logits=torch.zeros(2, 6)), "class_logits: expected shape"),
        (dict(class_logits=torch.zeros(2, 6, 1), kind="softmax"), "class_logits: expected shape"),
    ],
)
def test_errors(change, message):
    logits, pred = outputs()
    with pytest.raises(ValueError, match=message):
        detops.decode_detr(**dict(class_logits=logits, pred_boxes=pred, image_sizes=SIZES) | change)


def targets(seed=0, counts=(3, 1)):
    _, _, boxes, labels, _ = set_scene(seed, boxes=max(counts)).values()
    pairs = list(zip(boxes, labels, counts, strict=True))
    return [b[:n] for b, _, n in pairs], [c[:n] for _, c, n in pairs]


@pytest.mark.parametrize("options", [{}, dict(num_denoising=4), dict(label_noise=0.0), dict(box_noise=0.0)], ids=str)
def test_denoising_queries_are_those_of_transformers(options):
    try:
        theirs = importlib.import_module("transformers.models.rt_detr.modeling_rt_detr")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs transformers: {error}")
    boxes, labels = targets(1)
    dicts = [{"boxes": b, "class_labels": c} for b, c in zip(boxes, labels, strict=True)]
    names = {
        "num_denoising": "num_denoising_queries",
        "label_noise": "label_noise_ratio",
        "box_noise": "box_noise_scale",
    }
    torch.manual_seed(3)
    label, box, mask, meta = theirs.get_contrastive_denoising_training_group(
        dicts,
        4,
        9,
        lambda label: label,
        **{names[name]: value for name, value in (dict(num_denoising=7) | options).items()},
    )
    torch.manual_seed(3)
    found = detops.denoising_queries((boxes, labels), 4, 9, **dict(num_denoising=7) | options)
    assert found.labels.tolist() == label.tolist()
    inside = box.abs() < 10 if options.get("box_noise") != 0 else torch.zeros_like(box, dtype=torch.bool)
    torch.testing.assert_close(found.boxes.logit()[inside], box[inside], rtol=1e-4, atol=1e-4)
    assert torch.equal(found.attention_mask, mask < 0)
    assert found.groups == meta["dn_num_group"]
    for row, places in zip(found.box_index, meta["dn_positive_idx"], strict=True):
        assert (row >= 0).nonzero()[:, 0].tolist() == places.tolist()


def test_denoising_queries_without_boxes_and_their_loss():
    none = detops.denoising_queries(([torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2), 4, 5)
    assert none.labels.shape == (2, 0)
    assert none.attention_mask.shape == (5, 5)
    assert not none.attention_mask.any()
    pair = targets(2)
    queries = detops.denoising_queries(pair, 4, 6, num_denoising=6, label_noise=0.0, box_noise=0.0)
    outputs = torch.nn.functional.one_hot(queries.labels, 5)[None, ..., :4] * 40.0 - 20
    logits, pred, *_ = set_scene(2, sets=1).values()
    found = detops.SetLoss(4)(
        logits, pred, pair, denoising=detops.Denoising(outputs, queries.boxes[None], queries.box_index, queries.groups)
    )
    assert found["loss_bbox_dn"].item() == pytest.approx(0, abs=1e-6)
    assert found["loss_giou_dn"].item() == pytest.approx(0, abs=1e-5)
    assert found["loss_cls_dn"] > 1  # of the negatives, which are certain here


def test_denoising_queries_wait_for_nothing():
    boxes, labels = (torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in targets(3))
    found = assert_no_syncs(lambda *pair: detops.denoising_queries(pair, 4, 5, num_denoising=7), boxes, labels)
    assert found.boxes.shape == (2, 12, 4)


@pytest.mark.parametrize(
    "change", [dict(num_classes=0), dict(num_denoising=0), dict(label_noise=-1.0), dict(box_noise=-1.0)], ids=str
)
def test_errors_of_denoising_queries(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}: expected"):
        detops.denoising_queries(targets(), **dict(num_classes=4, num_queries=5) | change)
