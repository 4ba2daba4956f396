"""detops.integrations.transformers: the losses, dicts and gradients of Transformers' own functions, run beside them."""

import importlib
import pickle
from types import SimpleNamespace

import pytest
import torch
from loaded_transformers import load
from op import two_ranks

import detops
from detops.diagnostics.launches import count_launches
from detops.integrations import transformers as ours
from detops.integrations._transformers_sets import is_last

transformers = load()
theirs = importlib.import_module("transformers.loss.loss_utils")

CLASSES, LAYERS, QUERIES, BINS = 5, 3, 12, 32
CONFIG = dict(
    num_labels=CLASSES, class_cost=1, bbox_cost=5, giou_cost=2, eos_coefficient=0.1, focal_alpha=0.25, auxiliary_loss=True,
    bbox_loss_coefficient=5, giou_loss_coefficient=2, class_loss_coefficient=1.5, decoder_layers=LAYERS, group_detr=3,
    num_queries=4, matcher_class_cost=2, matcher_bbox_cost=5, matcher_giou_cost=2, matcher_alpha=0.25, matcher_gamma=2.0,
    use_focal_loss=True, focal_loss_alpha=0.75, focal_loss_gamma=2.0, eos_coef=0.1, weight_loss_vfl=1.0,
    weight_loss_bbox=5.0, weight_loss_giou=2.0, weight_loss_fgl=0.15, weight_loss_ddf=1.5, weight_loss_mal=1.0,
    mal_alpha=None, use_dense_one_to_one=True, max_num_bins=BINS, reg_scale=4.0, up=0.5,
)  # fmt: skip
COUNTS = {"some": (3, 1), "one image": (2, 0), "none": (0, 0), "many": (15, 4)}
DETR = ["ForObjectDetectionLoss", "DeformableDetrForObjectDetectionLoss", "LwDetrForObjectDetectionLoss"]
RT_DETR = ["RTDetrForObjectDetectionLoss", "DFineForObjectDetectionLoss", "Deimv2ForObjectDetectionLoss"]


@pytest.fixture(autouse=True)
def stable_sort(monkeypatch):
    """Among equal counts theirs takes what an unstable sort puts first; a stable one puts the lower box first."""
    argsort = torch.argsort
    monkeypatch.setattr(torch, "argsort", lambda *args, **options: argsort(*args, **options, stable=True))


def labels(counts):
    g = torch.Generator().manual_seed(3)
    return [
        {
            "class_labels": torch.randint(0, CLASSES, (n,), generator=g),
            "boxes": torch.cat(
                [0.3 + 0.4 * torch.rand(n, 2, generator=g), 0.1 + 0.3 * torch.rand(n, 2, generator=g)], 1
            ),
        }
        for n in counts
    ]


def leaves(name, counts, heads=1, denoising=True):
    """The arguments after config, as leaves; and what stands before it."""
    g = torch.Generator().manual_seed(7)

    def logits(*shape):
        return torch.randn(*shape, generator=g).requires_grad_()

    def boxes(*shape):
        return torch.cat(
            [torch.rand(*shape, 2, generator=g), 0.05 + torch.rand(*shape, 2, generator=g)], -1
        ).requires_grad_()

    if name in DETR:
        columns = CLASSES + (name == "ForObjectDetectionLoss")
        rest = dict(outputs_class=logits(LAYERS, 2, QUERIES, columns), outputs_coord=boxes(LAYERS, 2, QUERIES))
        if name.startswith("Lw"):
            rest |= dict(enc_outputs_class=logits(2, QUERIES, columns), enc_outputs_coord=boxes(2, QUERIES))
        return logits(2, QUERIES, columns), boxes(2, QUERIES), rest
    most = max(counts)
    groups = max(8 // most, 1) if most and denoising else 0
    first = 2 * most * groups
    meta = None
    if groups:
        positive = [torch.cat([torch.arange(n) + 2 * most * k for k in range(groups)]) for n in counts]
        meta = {"dn_positive_idx": positive, "dn_num_group": groups, "dn_num_split": [first, QUERIES]}
    every = first + QUERIES
    rest = dict(
        outputs_class=logits(2, LAYERS + heads, every, CLASSES), outputs_coord=boxes(2, LAYERS + heads, every),
        enc_topk_logits=logits(2, QUERIES, CLASSES), enc_topk_bboxes=boxes(2, QUERIES), denoising_meta_values=meta,
    )  # fmt: skip
    if not name.startswith("RT"):
        rest |= dict(
            predicted_corners=logits(2, LAYERS, every, 4 * (BINS + 1)), initial_reference_points=boxes(2, LAYERS, every)
        )
    return logits(2, every, CLASSES), boxes(2, every), rest


def run(function, name, counts, change, **options):
    """Loss, dict, gradients of all leaves, and what is logged."""
    logits, pred, rest = leaves(name, counts, **options)
    config = SimpleNamespace(**CONFIG | change)
    loss, found, auxiliary = function(logits, labels(counts), torch.device("cpu"), pred, config, **rest)
    inputs = [one for one in (logits, pred, *rest.values()) if isinstance(one, torch.Tensor)]
    return loss, found, torch.autograd.grad(loss, inputs, allow_unused=True), auxiliary


def assert_equal(mine, other):
    torch.testing.assert_close(mine[0], other[0], rtol=1e-5, atol=1e-6)
    assert list(mine[1]) == list(other[1])
    for key, value in other[1].items():
        torch.testing.assert_close(
            mine[1][key], value, rtol=1e-5, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}", check_dtype=False
        )
    for one, two in zip(mine[2], other[2], strict=True):
        if one is None or two is None:
            assert all(part is None or not part.any() for part in (one, two))
        else:
            torch.testing.assert_close(one, two, rtol=1e-4, atol=3e-6 * max(1.0, two.abs().max().item()))
    assert (mine[3] is None) == (other[3] is None)
    for one, two in zip(mine[3] or [], other[3] or [], strict=True):
        assert set(one) == set(two)
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("name", DETR + RT_DETR)
@pytest.mark.parametrize("change", [{}, dict(auxiliary_loss=False)], ids=["", "last layer"])
def test_the_same_as_theirs(name, counts, change):
    if change and name == "LwDetrForObjectDetectionLoss" and counts == "none":
        pytest.skip("theirs raises")
    both = [run(getattr(place, name), name, COUNTS[counts], change) for place in (ours, theirs)]
    assert_equal(*both)
    assert len(both[0][1]) >= 3


@pytest.mark.parametrize(
    ("name", "change", "options"),
    [
        ("RTDetrForObjectDetectionLoss", dict(use_focal_loss=False), {}),
        ("RTDetrForObjectDetectionLoss", dict(focal_loss_gamma=1.5, matcher_gamma=1.5), dict(denoising=False)),
        ("DFineForObjectDetectionLoss", {}, dict(heads=0)),
        ("Deimv2ForObjectDetectionLoss", dict(use_dense_one_to_one=False, mal_alpha=0.4), {}),
        ("Deimv2ForObjectDetectionLoss", {}, dict(heads=0, denoising=False)),
    ],
)
def test_options_as_theirs(name, change, options):
    for counts in ("some", "many"):
        both = [run(getattr(place, name), name, COUNTS[counts], change, **options) for place in (ours, theirs)]
        assert_equal(*both)


def test_groups_of_evaluation_mode_are_mended():
    """Theirs matches a box once per group of training, also where there is but one group's worth of queries."""
    name, change = "LwDetrForObjectDetectionLoss", dict(num_queries=QUERIES)
    logits, pred, rest = leaves(name, (3, 1))
    arguments = (logits, labels((3, 1)), "cpu", pred, SimpleNamespace(**CONFIG | change))
    fixed = ours.LwDetrForObjectDetectionLoss(*arguments, **rest, fixed=True)
    one = theirs.LwDetrForObjectDetectionLoss(
        *arguments[:4], SimpleNamespace(**CONFIG | change | dict(group_detr=1)), **rest
    )
    torch.testing.assert_close(fixed[0], one[0])
    assert not torch.isclose(fixed[0], theirs.LwDetrForObjectDetectionLoss(*arguments, **rest)[0])


def test_large_logits_are_finite():
    logits, pred, rest = leaves("LwDetrForObjectDetectionLoss", (3, 1))
    with torch.no_grad():
        logits += 20
    arguments = (logits, labels((3, 1)), "cpu", pred, SimpleNamespace(**CONFIG))
    loss, _, _ = ours.LwDetrForObjectDetectionLoss(*arguments, **rest)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    assert not theirs.LwDetrForObjectDetectionLoss(*arguments, **rest)[0].isfinite()


def test_the_sets_of_dfine_are_aligned():
    """Layer i's classes, boxes and distributions belong together, the first head stands alone, the last layer has FGL."""
    name, counts = "DFineForObjectDetectionLoss", (3, 1)
    fixed = run(lambda *args, **rest: ours.DFineForObjectDetectionLoss(*args, **rest, fixed=True), name, counts, {})[1]
    logits, pred, rest = leaves(name, counts)
    shifted = dict(rest, outputs_class=rest["outputs_class"][:, 1:], outputs_coord=rest["outputs_coord"][:, 1:])
    arguments = (logits, labels(counts), torch.device("cpu"), pred, SimpleNamespace(**CONFIG))
    aligned = theirs.DFineForObjectDetectionLoss(*arguments, **shifted)[1]
    for key, value in aligned.items():
        torch.testing.assert_close(fixed[key], value, rtol=1e-5, atol=2e-6, check_dtype=False)
    more = {f"loss_{term}{suffix}" for term in ("vfl", "bbox", "giou") for suffix in ("_pre", "_dn_pre")}
    assert set(fixed) - set(aligned) == more | {"loss_fgl"}
    corners = rest["predicted_corners"]
    last = ours.DFineForObjectDetectionLoss(*arguments, **rest, fixed=True)[1]["loss_fgl"]
    gradient = torch.autograd.grad(last, corners)[0].flatten(2).any(2).any(0)
    assert gradient.tolist() == [False] * (LAYERS - 1) + [True]


def part_of_a_step(rank, ranks):
    """Gradients of one of two images, as of a share of the batch; distillation is a mean over the rank's own queries."""
    found = []
    for name in RT_DETR:
        logits, pred, rest = leaves(name, (3, 1))
        mine = slice(rank * 2 // ranks, (rank + 1) * 2 // ranks)
        cut = {
            key: value[mine].detach().requires_grad_() if isinstance(value, torch.Tensor) else value
            for key, value in dict(rest, logits=logits, pred_boxes=pred).items()
        }
        inputs = [value for value in cut.values() if isinstance(value, torch.Tensor)]
        config = SimpleNamespace(**CONFIG | dict(weight_loss_ddf=0.0))
        loss = getattr(ours, name)(labels=labels((3, 1))[mine], device="cpu", config=config, fixed=True, **cut)[0]
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        found.append([one / ranks for one in gradients if one is not None])
    return found


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_one_if_fixed(tmp_path):
    whole, halves = two_ranks(part_of_a_step, tmp_path)
    for one, *parts in zip(whole, *halves, strict=True):
        for gradient, *pieces in zip(one, *parts, strict=True):
            torch.testing.assert_close(torch.cat(pieces), gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["ForObjectDetectionLoss", *RT_DETR])
def test_the_last_layer_may_be_a_view_of_all(name):
    """As the models have it; its gradient then goes straight to all layers."""
    _, _, rest = leaves(name, (3, 1))
    every = [rest["outputs_class"], rest["outputs_coord"]]
    dim = 0 if name in DETR else 1
    found = []
    for apart in (False, True):
        last = [one.select(dim, -1) for one in every]
        if apart:  # a copy, through which the gradient comes back on its own
            last = [one.clone() for one in last]
        config = SimpleNamespace(**CONFIG)
        loss = getattr(ours, name)(last[0], labels((3, 1)), "cpu", last[1], config, **rest)[0]
        found.append((loss, *torch.autograd.grad(loss, every)))
    for view, copy in zip(*found, strict=True):
        torch.testing.assert_close(view, copy)
    assert is_last(every[0].select(dim, -1), every[0], dim)
    assert not is_last(every[0].select(dim, 0), every[0], dim)
    assert not is_last(every[0].select(dim, -1).clone(), every[0], dim)
    assert not is_last(every[0].detach().select(dim, -1), every[0], dim)


def test_no_host_sync():
    for name in DETR + RT_DETR:
        arguments = leaves(name, (3, 1))
        targets = labels((3, 1))

        def step(name=name, arguments=arguments, targets=targets):
            logits, pred, rest = arguments
            loss = getattr(ours, name)(logits, targets, logits.device, pred, SimpleNamespace(**CONFIG), **rest)[0]
            torch.autograd.grad(loss, logits)

        assert detops.count_syncs(step) == 0, name


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("ForObjectDetectionLoss", 57),
        ("LwDetrForObjectDetectionLoss", 50),
        ("RTDetrForObjectDetectionLoss", 29),
        ("DFineForObjectDetectionLoss", 45),
        ("Deimv2ForObjectDetectionLoss", 59),
    ],
)
def test_launches_do_not_creep_up(name, most):
    """Kernels of loss and gradient with denoising, whatever the number of layers and boxes."""
    logits, pred, rest = leaves(name, (3, 1))
    inputs = [one for one in (logits, pred, *rest.values()) if isinstance(one, torch.Tensor)]

    def step():
        config = SimpleNamespace(**CONFIG)
        loss = getattr(ours, name)(logits, labels((3, 1)), logits.device, pred, config, **rest)[0]
        torch.autograd.grad(loss, inputs, allow_unused=True)

    assert count_launches(step) - count_launches(labels, (3, 1)) <= most


def rt_detr():
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, d_model=16, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=16,
        decoder_in_channels=[16, 16, 16], num_queries=10, decoder_layers=3, encoder_attention_heads=2,
        decoder_attention_heads=2, decoder_ffn_dim=16, decoder_n_points=2, num_denoising=12, num_labels=CLASSES,
        hidden_expansion=1.0,
    ))  # fmt: skip


@pytest.mark.parametrize("counts", ["some", "none"])
def test_use_changes_neither_the_model_nor_its_gradients(counts):
    torch.manual_seed(1)
    model = rt_detr().double()
    images, truth = torch.randn(2, 3, 64, 64).double(), labels(COUNTS[counts])
    for one in truth:
        one["boxes"] = one["boxes"].double()
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" not in name}
    found = []
    for swap in (False, True):
        if swap:
            assert ours.use(model) is model
        torch.manual_seed(5)  # of the denoising queries
        model.zero_grad()
        result = model(pixel_values=images, labels=truth)
        result.loss.backward()
        found.append(
            (result.loss_dict, {name: one.grad for name, one in model.named_parameters() if one.grad is not None})
        )
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=1e-8, check_dtype=False)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-5, atol=1e-6, check_dtype=False)
    after = model.state_dict()
    assert set(after) == {*before, *(name for name in after if "running" in name or "num_batches" in name)}
    assert all(torch.equal(after[name], value) for name, value in before.items() if "num_batches" not in name)
    assert pickle.loads(pickle.dumps(ours.use(model, fixed=True).loss_function)).keywords == {"fixed": True}


def test_other_models_are_refused():
    with pytest.raises(ValueError, match=r"model: expected one of ForObjectDetection, .* got Linear"):
        ours.use(torch.nn.Linear(1, 1))
