"""draw_heatmap and draw_heatmap_batched: forms, errors, checked mode, tracing, and no host synchronisation."""

import pytest
import torch
from gaussian_scenes import gaussian_scene
from op import assert_replays_in_cuda_graph
from torch._subclasses import FakeTensorMode

import detops
from detops.ragged import RaggedBatch
from detops.reference.draw_gaussians import draw_gaussians_ as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def ragged(scene, *names):
    return [RaggedBatch(getattr(scene, name), sample_sizes=scene.sizes) for name in names]


def classwise(scene, heatmap=None):
    centers, radii, labels = ragged(scene, "centers", "radii", "labels")
    return detops.draw_heatmap_batched(scene.heatmap if heatmap is None else heatmap, centers, radii, labels=labels)


def referenced(scene, k_scale=1.0, factor=6.0):
    expected = scene.heatmap.clone()
    reference(expected, *scene.args(factor, k_scale))
    return expected


def test_classwise_equals_reference():
    scene = gaussian_scene(0)
    expected = referenced(scene)
    assert classwise(scene) is scene.heatmap
    torch.testing.assert_close(scene.heatmap, expected)


def test_one_map_a_sample_equals_reference():
    scene = gaussian_scene(1, labelled=False)
    expected = referenced(scene, k_scale=0.5, factor=4.0)
    centers, radii = ragged(scene, "centers", "radii")
    drawn = detops.draw_heatmap_batched(scene.heatmap[:, 0], centers, radii, 4.0, 0.5)
    torch.testing.assert_close(drawn, expected[:, 0])


def test_concatenated_equals_classwise():
    scene = gaussian_scene(2, labelled=False)
    centers, radii = ragged(scene, "centers", "radii")
    expected = detops.draw_heatmap_batched(scene.heatmap[:, 0].clone(), centers, radii)
    valid = torch.arange(scene.centers.shape[1]) < scene.sizes[:, None]
    image = torch.arange(len(valid))[:, None].expand_as(valid)
    drawn = detops.draw_heatmap(scene.heatmap[:, 0], scene.centers[valid], scene.radii[valid], image[valid].int())
    assert torch.equal(drawn, expected)


def test_lists_and_padded_tensors_are_batches_too():
    scene = gaussian_scene(3, ragged=False)
    expected = detops.draw_heatmap_batched(scene.heatmap.clone(), scene.centers, scene.radii, labels=scene.labels)
    lists = [list(t) for t in (scene.centers, scene.radii, scene.labels)]
    drawn = detops.draw_heatmap_batched(scene.heatmap.clone(), lists[0], lists[1], labels=lists[2])
    assert torch.equal(drawn, expected)
    assert not torch.equal(drawn, scene.heatmap)


def test_the_ragged_dimension_may_be_another():
    scene = gaussian_scene(4)
    expected = classwise(scene, scene.heatmap.clone())
    centers = RaggedBatch(scene.centers.transpose(1, 2), sample_sizes=scene.sizes, non_uniform_dim=2)
    radii, labels = ragged(scene, "radii", "labels")
    assert torch.equal(detops.draw_heatmap_batched(scene.heatmap, centers, radii, labels=labels), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("batch", "boxes"), [(0, 3), (2, 0), (0, 0)])
def test_empty_batches(device, batch, boxes):
    scene = gaussian_scene(5, batch=batch, boxes=boxes).to(device)
    expected = scene.heatmap.clone()
    assert torch.equal(classwise(scene), expected)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    assert torch.equal(detops.draw_heatmap(scene.heatmap[:, 0], none.view(0, 2), none, none), expected[:, 0])


def test_a_known_gaussian():
    """The kernel of the CenterNet tutorials: radius 2, sigma 1 (so a factor of 5), centre (3, 3) on 8 x 8."""
    drawn = detops.draw_heatmap(
        torch.zeros(1, 8, 8),
        torch.tensor([[3, 3]]),
        torch.tensor([2]),
        torch.tensor([0]),
        diameter_to_sigma_factor=5,
    )[0]
    kernel = detops.gaussian_kernel(2, sigma=1.0)
    torch.testing.assert_close(drawn[1:6, 1:6], kernel)
    assert int((drawn > 0).sum()) == 25
    torch.testing.assert_close(kernel[0], torch.tensor([0.0183, 0.0821, 0.1353, 0.0821, 0.0183]), rtol=0, atol=5e-5)
    torch.testing.assert_close(kernel[2], torch.tensor([0.1353, 0.6065, 1.0, 0.6065, 0.1353]), rtol=0, atol=5e-5)
    assert kernel.sum().item() == pytest.approx(6.168924081)


def test_float_centres_with_a_gradient_are_drawn():
    centers = torch.tensor([[1.5, 2.0]], requires_grad=True)
    drawn = detops.draw_heatmap(torch.zeros(1, 4, 4), centers, torch.tensor([1.0]), torch.tensor([0]))
    assert not drawn.requires_grad
    assert drawn.any()


@pytest.mark.parametrize("device", DEVICES)
def test_inference_mode(device):
    scene = gaussian_scene(6).to(device)
    expected = classwise(scene, scene.heatmap.clone())
    with torch.inference_mode():
        assert torch.equal(classwise(scene, scene.heatmap.clone()), expected)


GOOD = {
    "heatmaps": torch.zeros(2, 4, 4),
    "centers": torch.zeros(3, 2, dtype=torch.int64),
    "radii": torch.ones(3),
    "heatmap_idxes": torch.zeros(3, dtype=torch.int32),
}
BAD = {  # argument, its value -> error, part of the message
    "list of maps": (
        "heatmaps",
        [1],
        TypeError,
        "heatmaps: expected a floating-point tensor (M, H, W), got list",
    ),
    "integer maps": ("heatmaps", torch.zeros(2, 4, 4, dtype=torch.int64), TypeError, "got int64 (2, 4, 4)"),
    "rank of maps": (
        "heatmaps",
        torch.zeros(4, 4),
        ValueError,
        "heatmaps: expected shape (M, H, W), got (4, 4)",
    ),
    "expanded maps": (
        "heatmaps",
        torch.zeros(1, 4, 4).expand(2, 4, 4),
        ValueError,
        "heatmaps: expected a tensor of its own",
    ),
    "maps with gradient": (
        "heatmaps",
        torch.zeros(2, 4, 4, requires_grad=True),
        ValueError,
        "needs no gradient",
    ),
    "bool centres": (
        "centers",
        torch.zeros(3, 2, dtype=torch.bool),
        TypeError,
        "centers: expected an integer or floating",
    ),
    "shape of centres": (
        "centers",
        torch.zeros(3, 3),
        ValueError,
        "centers: expected shape (3, 2), got (3, 3)",
    ),
    "number of radii": (
        "radii",
        torch.zeros(4),
        ValueError,
        "radii: expected shape (3,) to match centers, got (4,)",
    ),
    "three radii": (
        "radii",
        torch.zeros(3, 3),
        ValueError,
        "radii: expected shape (3, 2) to match centers, got (3, 3)",
    ),
    "rank of radii": ("radii", torch.zeros(3, 2, 1), ValueError, "radii: expected 1 dimensions or one more"),
    "float index": ("heatmap_idxes", torch.zeros(3), TypeError, "heatmap_idxes: expected an integer tensor"),
    "number of indices": (
        "heatmap_idxes",
        torch.zeros(2, dtype=torch.int32),
        ValueError,
        "heatmap_idxes: expected shape (3,)",
    ),
    "device": (
        "radii",
        torch.ones(3, device="meta"),
        ValueError,
        "radii: expected a tensor on cpu, as heatmaps is, got meta",
    ),
    "negative factor": (
        "diameter_to_sigma_factor",
        -1,
        ValueError,
        "diameter_to_sigma_factor: expected a finite number above 0, got -1",
    ),
    "zero factor": ("diameter_to_sigma_factor", 0, ValueError, "above 0, got 0"),
    "NaN factor": ("diameter_to_sigma_factor", float("nan"), ValueError, "got nan"),
    "negative k": ("k_scale", -0.5, ValueError, "k_scale: expected a finite number of at least 0, got -0.5"),
    "k of text": ("k_scale", "1", ValueError, "k_scale"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    name, value, error, message = BAD[case]
    with pytest.raises(error) as caught:
        detops.draw_heatmap(**{**GOOD, name: value})
    assert message in str(caught.value)


BAD_BATCHES = {
    "labels without classes": ({"heatmap": torch.zeros(2, 4, 4)}, ValueError, "heatmap: expected shape (B, C, H, W), as labels are given"),
    "batch size": ({"heatmap": torch.zeros(3, 3, 4, 4)}, ValueError, "centers: expected shape (3, 6, 2) to match heatmap, got (2, 6, 2)"),
    "no batch": ({"radii": 3}, TypeError, "radii: expected a RaggedBatch, a tensor or a list of tensors, got int"),
    "labels of floats": ({"labels": torch.zeros(2, 6)}, TypeError, "labels: expected integers, got float32 (2, 6)"),
    "labels of other length": ({"labels": torch.zeros(2, 5, dtype=torch.int64)}, ValueError, "labels: expected shape (2, 6)"),
    "two batch dimensions": (
        {"centers": RaggedBatch(torch.zeros(2, 1, 6, 2), sample_sizes=torch.ones(2, 1, dtype=torch.int64))},
        ValueError,
        "centers: expected one batch dimension, got 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_errors_of_batches_name_the_argument(case):
    change, error, message = BAD_BATCHES[case]
    scene = gaussian_scene(7, height=4, width=4)
    arguments = dict(zip(("centers", "radii", "labels"), ragged(scene, "centers", "radii", "labels"), strict=True))
    with pytest.raises(error) as caught:
        detops.draw_heatmap_batched(**{"heatmap": scene.heatmap, **arguments, **change})
    assert message in str(caught.value)


CHECKED = {  # argument -> its value for sample 1, box 2 -> message
    "labels": (9, "labels: sample 1, box 2 has 9, expected a value in 0 .. 2"),
    "radii": (-2, "radii: sample 1, box 2 has -2, expected finite, not negative"),
    "centers": (float("nan"), "centers: sample 1, box 2 has [nan, nan], expected finite numbers"),
}


@pytest.mark.parametrize("name", CHECKED)
def test_checked_mode_names_the_box(name):
    value, message = CHECKED[name]
    scene = gaussian_scene(8, boxes=4)
    scene.labels, scene.radii, scene.sizes = scene.labels.clamp(0, 2), scene.radii.abs(), torch.tensor([4, 3])
    if name == "centers":
        scene.centers = scene.centers.float()
    with detops.checked():
        classwise(scene)
    getattr(scene, name)[1, 2] = value
    classwise(scene)  # skipped without the checks
    with detops.checked(), pytest.raises(ValueError, match="sample 1, box 2") as caught:
        classwise(scene)
    assert message in str(caught.value)
    scene.sizes = torch.tensor([4, 2])  # now the box is padding
    with detops.checked():
        classwise(scene)


def test_checked_mode_names_sample_sizes():
    scene = gaussian_scene(9)
    scene.sizes = torch.tensor([1, 7])
    with (
        detops.checked(),
        pytest.raises(ValueError, match=r"sample_sizes: sample 1 has 7, expected a value in 0 \.\. 6"),
    ):
        classwise(scene)
    scene.sizes = torch.tensor([1, 2])
    centers, radii = ragged(scene, "centers", "radii")
    labels = RaggedBatch(scene.labels, sample_sizes=torch.tensor([2, 2]))
    with detops.checked(), pytest.raises(ValueError, match="labels: expected the sample sizes of centers"):
        detops.draw_heatmap_batched(scene.heatmap, centers, radii, labels=labels)


def public_calls(scene):
    """Call every function of the training path."""
    classwise(scene)
    centers, radii = ragged(scene, "centers", "radii")
    detops.draw_heatmap_batched(scene.heatmap[:, 0], centers, radii)
    index = torch.zeros_like(scene.radii[0])
    detops.draw_heatmap(scene.heatmap[0], scene.centers[0], scene.radii[0], index)
    detops.gaussian_radius(scene.radii, scene.radii.float())
    detops.gaussian_radius(scene.radii, 3.0, formula="legacy")


def test_no_host_sync():
    scene = gaussian_scene(10)
    assert detops.count_syncs(public_calls, scene) == 0
    with FakeTensorMode() as mode:
        fake = type(scene)(*(mode.from_tensor(t) for t in vars(scene).values()))
        public_calls(fake)


def test_the_portable_form_does_not_sync_either():
    from detops.portable.draw_gaussians import draw_gaussians_ as portable

    scene = gaussian_scene(11, subpixel=True)
    assert detops.count_syncs(portable, scene.heatmap, *scene.args()) == 0
    with FakeTensorMode() as mode:
        fake = type(scene)(*(mode.from_tensor(t) for t in vars(scene).values()))
        portable(fake.heatmap, *fake.args())


@pytest.mark.gpu
def test_no_sync_on_the_gpu():
    scene = gaussian_scene(12).to("cuda")
    public_calls(scene)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        public_calls(scene)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_runs_in_a_cuda_graph():
    scene = gaussian_scene(13).to("cuda")
    assert_replays_in_cuda_graph(lambda: classwise(scene, scene.heatmap.clone()))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("device", DEVICES)
def test_compiles_whole(device, backend):
    def targets(heatmap, centers, radii, labels, sizes):
        r = detops.gaussian_radius(radii, radii + 1, 0.3).to(torch.int64)
        batch = [RaggedBatch(t, sample_sizes=sizes) for t in (centers, r, labels)]
        return detops.draw_heatmap_batched(heatmap * 1.0, batch[0], batch[1], labels=batch[2]) * 2

    compiled = torch.compile(targets, fullgraph=True, backend=backend, dynamic=True)
    for size in (6, 9):
        scene = gaussian_scene(14, boxes=size, height=10 + size).to(device)
        scene.radii = scene.radii.float().abs()
        expected = targets(*vars(scene).values())
        torch.testing.assert_close(compiled(*vars(scene).values()), expected)


def test_exports():
    class Targets(torch.nn.Module):
        def forward(self, centers, radii, labels):
            return detops.draw_heatmap_batched(torch.zeros(2, 3, 8, 8), centers, radii, labels=labels)

    scene = gaussian_scene(15, ragged=False)
    inputs = (scene.centers, scene.radii, scene.labels)
    exported = torch.export.export(Targets(), inputs)
    assert torch.equal(exported.module()(*inputs), Targets()(*inputs))


def test_checked_mode_without_boxes():
    maps = torch.rand(2, 3, 8, 8)
    with detops.checked():
        drawn = detops.draw_heatmap(maps[:, 0].clone(), torch.zeros(0, 2), torch.zeros(0), torch.zeros(0).int())
        assert torch.equal(drawn, maps[:, 0])
        for batch in (2, 0):
            centers, labels = torch.zeros(batch, 0, 2), torch.zeros(batch, 0).long()
            for radii in (torch.zeros(batch, 0), torch.zeros(batch, 0, 2)):
                drawn = detops.draw_heatmap_batched(maps[:batch].clone(), centers, radii, labels=labels)
                assert torch.equal(drawn, maps[:batch])
