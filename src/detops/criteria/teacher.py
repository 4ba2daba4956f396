"""A frozen network whose box distributions a student learns from."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from detops.geometry.levels import require_maps


def _second(output: Any) -> Any:
    return output[1]


class Teacher:
    """A trained network that is run for its box distributions: frozen, in evaluation mode, without gradients.

    It is not an `nn.Module`, so that a student that holds it does not train, save or synchronise it, and the student's
    `train()` leaves it in evaluation mode. It moves to the device of its images by itself.

    Args:
        network: From images to the outputs that `distributions` takes.
        strides: Pixels per cell of each of its levels.
        student_strides: Strides of the student's levels, each one of `strides`; None for the same.
        distributions: Takes the network's output and returns the (B, 4 * (reg_max + 1), H, W) logits of each level; by
            default it returns the second item, as for a GFL head.

    Raises:
        TypeError: The network is not an `nn.Module`.
        ValueError: The student has a stride that the teacher does not have.

    Example:
        >>> class Network(nn.Module):
        ...     def forward(self, images):
        ...         return None, [torch.zeros(1, 68, 8, 8), torch.zeros(1, 68, 4, 4)]
        >>> teacher = Teacher(Network(), strides=(8, 16), student_strides=(16,))
        >>> [tuple(level.shape) for level in teacher(torch.zeros(1, 3, 64, 64))]
        [(1, 68, 4, 4)]

    Reference:
        Zheng et al., "Localization Distillation for Dense Object Detection", 2022.
    """

    def __init__(
        self,
        network: nn.Module,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        student_strides: Sequence[int] | None = None,
        distributions: Callable[[Any], Sequence[Tensor]] = _second,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
        wanted = strides if student_strides is None else student_strides
        missing = [stride for stride in wanted if stride not in strides]
        if missing or not wanted:
            raise ValueError(f"student_strides: expected some of the teacher's {list(strides)}, got {list(wanted)}")
        self.network = network.eval().requires_grad_(False)
        self.strides, self.distributions = tuple(strides), distributions
        self._levels = [self.strides.index(stride) for stride in wanted]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the logits of the levels that the student has too.

        Args:
            images: Input of the network, on the device where it is to run.

        Returns:
            (B, 4 * (reg_max + 1), H, W) logits per level of the student, without a gradient.

        Raises:
            TypeError: The network does not return a list of floating-point tensors.
            ValueError: It returns another number of levels.
        """
        first = next(chain(self.network.parameters(), self.network.buffers()), None)
        if first is not None and first.device != images.device:
            self.network.to(images.device)
        levels = self.distributions(self.network.eval()(images))
        require_maps("distributions", levels, None, len(self.strides))
        return [levels[index] for index in self._levels]
