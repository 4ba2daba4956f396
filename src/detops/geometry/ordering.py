"""Orders without a stable sort: what takes part first, and keys that are all different."""

import torch
from torch import Tensor


def true_first(mask: Tensor) -> Tensor:
    """Return (B, M) int64: the indices of the true entries of each row, then those of the others, each in their order.

    By counting. A stable sort gives the same, but a GPU needs several kernels for it, and ONNX has none.
    """
    ahead = mask.cumsum(1)
    index = torch.arange(mask.shape[1], device=mask.device).expand_as(ahead)
    place = torch.where(mask, ahead - 1, ahead[:, -1:] + index - ahead)
    return torch.zeros_like(place).scatter(1, place, index)


def ordered_keys(values: Tensor, signed: bool = True) -> Tensor:
    """Return int64 (B, M) that sort as float32 values do, and equal ones by their index, the lowest last.

    `torch.topk` does not define which of equal values it takes; these are all different: the bits of the value, changed
    so that they sort as integers, less the index.
    """
    bits = values.view(torch.int32)
    if signed:
        bits = (values + 0.0).view(torch.int32)  # + 0.0 turns -0 into 0
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    index = torch.arange(0, -values.shape[1], -1, device=values.device)
    return torch.add(index, bits, alpha=2**32)


def top(values: Tensor, k: int, signed: bool = True) -> tuple[Tensor, Tensor]:
    """Return the k highest of each row (B, M) of float32 without NaN, and their indices; ties to the lower index.

    Without `signed` they are at least 0, or -1, which takes fewer kernels.

    An exported program has `topk` alone, because not every runtime can read bits; ONNX's gives ties to the lower index.
    """
    if torch.compiler.is_exporting():
        found = values.topk(k, 1)
        return found.values, found.indices
    best = -ordered_keys(values, signed).topk(k, 1).values & (2**32 - 1)
    return values.gather(1, best), best


def least_places(values: Tensor, count: int) -> Tensor:
    """Return int64 (..., count): the places of the least values (..., K), ascending; ties to the lower place, NaN last.

    Values are at least 0.
    """
    if values.dtype != torch.float32:
        return values.argsort(dim=-1, stable=True)[..., :count].sort(-1).values
    # Bits of such floats have the order of their values. With the place below them no two are equal, so that a
    # selection, which takes less than half of a sort's time, has one result.
    keys = (values.view(torch.int32).to(torch.int64) << 32) | torch.arange(values.shape[-1], device=values.device)
    return keys.topk(count, dim=-1, largest=False, sorted=False).indices.sort(-1).values
