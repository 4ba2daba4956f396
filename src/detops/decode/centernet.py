"""CenterNet's maps to boxes: fixed shapes, whole batches, no host synchronisation."""

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, renamed, require_device, require_shape, require_tensor
from detops.decode.detections import Detections, require_options, select
from detops.geometry.levels import ImageSizes, Size, dense_map, require_fitting_sizes, require_size
from detops.portable.decode_peaks import decode_peaks as portable


@renamed(image_shape="image_size", k="max_detections")
def decode_centernet(
    heatmap_logits: Tensor,
    wh: Tensor,
    offset: Tensor,
    image_size: Size,
    max_detections: int = 100,
    kernel: int = 3,
    *,
    iou_threshold: float | None = None,
    image_sizes: ImageSizes | None = None,
) -> Detections:
    """Decode CenterNet's maps: the highest local maxima of the heatmap, with the box at each.

    A cell is a local maximum if no cell of its class within the kernel has a higher logit; equal neighbours are
    all maxima. Ties go to the lower class, then row, then column. A NaN is not a maximum.

    Args:
        heatmap_logits: (B, C, H, W), before the sigmoid.
        wh: (B, 2, H, W), width and height in cells.
        offset: (B, 2, H, W), x and y of a centre minus its cell.
        image_size: Height and width of the network's input in pixels.
        max_detections: Number of detections per image; if there are fewer, the rest has score 0 and label -1.
        kernel: Size of the window (odd). A peak is the maximum of its window.
        iou_threshold: IoU above which the worse of two boxes of a class is dropped; None for no suppression.
        image_sizes: Height and width that each image's boxes are clipped to, (B, 2) or a list; None for no clipping.

    Returns:
        The detections. A box without area, before or after clipping, is dropped.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: Shapes or devices do not match, or a number is out of range.

    Example:
        >>> logits = torch.full((1, 2, 4, 4), -9.0)
        >>> logits[0, 1, 2, 1] = 3.0
        >>> wh, offset = torch.full((1, 2, 4, 4), 2.0), torch.full((1, 2, 4, 4), 0.5)
        >>> boxes, labels, scores = decode_centernet(logits, wh, offset, (16, 16), max_detections=1)
        >>> boxes, labels
        (tensor([[[ 2.,  6., 10., 14.]]]), tensor([[1]]))

    Reference:
        Zhou et al., "Objects as Points", 2019, section 4; as in MMDetection's `CenterNetHead`.
    """
    _check(heatmap_logits, wh, offset, image_size, kernel)
    require_options(max_detections, iou_threshold=iou_threshold)
    height, width = heatmap_logits.shape[2:]
    op = portable if torch.compiler.is_exporting() else ops.decode_peaks
    boxes, labels, found = op(
        logits=dense_map(heatmap_logits.detach()),
        wh=wh.detach(),
        offset=offset.detach(),
        kernel=kernel,
        scale_x=image_size[1] / width,
        scale_y=image_size[0] / height,
        count=max_detections,
    )
    return select(boxes, labels, found.sigmoid(), 0.0, max_detections, iou_threshold, image_sizes)


def _check(heatmap: Tensor, wh: Tensor, offset: Tensor, image_size: Size, kernel: int) -> None:
    require_tensor("heatmap_logits", heatmap, FLOATS, "a floating-point tensor")
    if heatmap.dim() != 4 or 0 in heatmap.shape[1:]:
        raise ValueError(f"heatmap_logits: expected shape (B, C, H, W), none of C, H, W 0, got {tuple(heatmap.shape)}")
    for name, value in (("wh", wh), ("offset", offset)):
        require_tensor(name, value, FLOATS, "a floating-point tensor")
        require_shape(name, value, (heatmap.shape[0], 2, *heatmap.shape[2:]), "to match heatmap_logits")
        require_device(name, value, heatmap, "heatmap_logits")
    height, width = require_size("image_size", image_size)
    require_fitting_sizes((heatmap.shape[2], heatmap.shape[3]), (height, width))
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel: expected an odd number of at least 1, got {kernel!r}")
