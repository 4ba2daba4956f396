"""Steps whose loss or gradient is not finite: they change no weight, and stop a training that has many of them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

IN_A_ROW = 50  # steps that are left out one after the other, before the training stops in any case


class FiniteSteps:
    """Leaves such steps out.

    Args:
        network: Network that is trained.
        stops: Stop at the first of them, rather than after many in a row.

    Attributes:
        skipped: Why the last step is left out; empty if it is not.
        in_a_row: Number of steps that were left out one after the other.
    """

    def __init__(self, network: nn.Module, stops: bool) -> None:
        self._network, self._stops = network, stops
        self.skipped, self.in_a_row = "", 0
        self._before: list[Tensor] = []  # of the last step, once the device is known

    def begin(self) -> None:
        """Begin a training, when the network is on its device."""
        self._before = [buffer.clone() for buffer in self._statistics()]

    def begin_step(self) -> None:
        """Keep what the forward pass changes."""
        if self._before:
            torch._foreach_copy_(self._before, self._statistics())

    def judge(self, losses: Mapping[str, Tensor], norm: Sequence[Tensor], world_size: int) -> bool:
        """Return whether a step is finite; where it is not, drop its gradient and what its forward pass changed.

        Args:
            losses: Losses of the step.
            norm: The norm of its gradient; none where a scaler leaves out steps that overflowed by itself.
            world_size: Number of ranks, which all drop a step, or none does.
        """
        finite = torch.stack([value.float().isfinite() for value in (*losses.values(), *norm)]).all()
        if world_size > 1:
            shared = finite.to(torch.int32)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MIN)
            finite = shared > 0
        if finite:
            self.in_a_row = 0
            return True
        broken = [f"{name} is {float(value)}" for name, value in losses.items() if not value.isfinite()]
        self.skipped = f"the loss is not finite ({', '.join(broken)})" if broken else "the gradient is not finite"
        self.in_a_row += 1
        for parameter in self._network.parameters():
            parameter.grad = None  # so that the optimiser changes nothing
        if self._before:
            torch._foreach_copy_(self._statistics(), self._before)
        return False

    @property
    def too_many(self) -> bool:
        """Whether the training stops at the step that was left out."""
        return self._stops or self.in_a_row >= IN_A_ROW

    def explain(self) -> str:
        """Return why the last step was left out, and forget it; after many in a row, say so."""
        text, self.skipped = f"{self.skipped}; it changes no weight", ""
        return text if self._stops or not self.too_many else f"{text}, as {self.in_a_row} times in a row"

    def _statistics(self) -> list[Tensor]:
        """Return the buffers that a forward pass changes, such as the means of batch norm."""
        return [buffer for buffer in self._network.buffers() if buffer.is_floating_point()]
