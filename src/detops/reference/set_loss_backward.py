"""What `set_loss_backward_` means: how the gradients that `set_loss` made depend on those of its results."""

import torch
from torch import Tensor


def set_loss_backward_(
    gradients: list[Tensor], box_gradients: Tensor, pred_boxes: list[Tensor], parts: list[int], upstream: Tensor
) -> Tensor:
    """Multiply the gradients by the logits by the upstream ones of each set's class loss, in place; sum those by boxes.

    Args:
        gradients: Tensors (S, B, Q, C), what `set_loss` returned; written into.
        box_gradients: (2, rows, 4) of the L1 and the GIoU losses, in the order of the parts (sets, B, queries).
        pred_boxes: Tensors (S, B, Q, 4), which give shapes and dtype.
        parts: As of `set_loss`.
        upstream: (R, 3) gradients by the class, L1 and GIoU losses of the sets of all parts.

    Returns:
        (all queries, 4) gradients by boxes, of the tensors (S, B, Q) one after the other, 0 where no part is.
    """
    found = [one.new_zeros(one.shape) for one in pred_boxes]
    row = at = 0
    for tensor, first_set, sets, first, count in zip(*[iter(parts)] * 5, strict=True):
        queries = slice(first, first + count)
        for s in range(first_set, first_set + sets):
            gradients[tensor][s, :, queries] *= upstream[row, 0]
            size = gradients[tensor].shape[1] * count
            l1, giou = box_gradients[:, at : at + size].double()
            summed = l1 * upstream[row, 1] + giou * upstream[row, 2]
            found[tensor][s, :, queries] = summed.view(pred_boxes[tensor].shape[1], count, 4).to(box_gradients.dtype)
            row, at = row + 1, at + size
    return torch.cat([one.flatten(0, 2) for one in found])
