"""`set_loss_backward_` in whole-batch PyTorch."""

import torch
from torch import Tensor

from detops.geometry.set_parts import parts_of


def set_loss_backward_(
    gradients: list[Tensor], box_gradients: Tensor, pred_boxes: list[Tensor], parts: list[int], upstream: Tensor
) -> Tensor:
    """Scale the gradients; arguments and meaning as in `detops.reference.set_loss_backward`."""
    found = [one.new_zeros(one.shape) for one in pred_boxes]
    batch = pred_boxes[0].shape[1]
    for part in parts_of(parts, batch):
        by_class, by_l1, by_giou = upstream[part.sets, None, None, None].unbind(-1)
        own = gradients[part.tensor][part.place]
        own.copy_(own * by_class)
        place = found[part.tensor][part.place]
        l1, giou = box_gradients[:, part.rows].view(2, *place.shape)
        place.copy_(l1 * by_l1 + giou * by_giou)
    return torch.cat([one.flatten(0, 2) for one in found])
