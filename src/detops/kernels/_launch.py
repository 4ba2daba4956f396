"""Launching Triton kernels at a few microseconds of the host's time, where Triton itself takes 10 to 34.

Triton finds the compiled form of a kernel by all its arguments at each launch. Here it is kept under a small key, and
launched directly. A kernel's parameters are tensors, then numbers, then constants (`tl.constexpr`):

    @kernel(tensors=2, specialize=("W",), num_warps=4)
    def copy_kernel(source, sink, H, W, BLOCK: tl.constexpr): ...

    copy_kernel((programs,), (source, sink), (height, width), (128,))

Triton compiles a kernel anew for each type of its arguments, for pointers that are not multiples of 16 bytes, and for
numbers that are 1 or multiples of 16; here the latter holds only for those named in `specialize`, as sizes change from
step to step. Name the numbers that wide loads follow from, such as the width of a map.

Tensors of all levels go together, as a tuple. Triton always specializes on the numbers in a tuple, which therefore
reach a kernel in a form that it cannot tell apart, and that `plain` undoes.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import reduce
from operator import attrgetter, or_
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.compiler import CompiledKernel

_INT32_END = 2**31  # a number from here on is an int64 for Triton
_REST = ((), (1, 1), (1,), ())  # of a grid, by the number of its axes
_MOST_ENCODED = 256  # tuples of numbers that a kernel keeps encoded
_ON_ROCM = torch.version.hip is not None
_data_ptr, _dtype, _is_cuda = torch.Tensor.data_ptr, attrgetter("dtype"), attrgetter("is_cuda")
# Both are None in a PyTorch for CPUs alone, where kernels run in Triton's interpreter.
_current_device = getattr(torch._C, "_cuda_getDevice", None)
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)


def cdiv(a: int, b: int) -> int:
    """Quotient, rounded up; on the host `triton.cdiv` takes 2.5 us."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The lowest power of 2 that is at least `n`, which is at least 1."""
    return 1 << (n - 1).bit_length()


@triton.jit
def plain(value):
    """A number of a tuple as it was: twice as much and three came, which is odd and not 1."""
    return (value - 3) >> 1


@triton.jit
def number_of(values, which, LEVELS: tl.constexpr, STEP: tl.constexpr, PLACE: tl.constexpr):
    """The number of a level from a tuple that has STEP numbers of each, this one at PLACE."""
    found = plain(values[PLACE])
    for level in tl.static_range(1, LEVELS):
        found = tl.where(which == level, plain(values[STEP * level + PLACE]), found)
    return found


@triton.jit
def level_of(program, firsts, LEVELS: tl.constexpr):
    """The level of a program, given a tuple with the first program of each level."""
    found = tl.full((), 0, tl.int32)
    for level in tl.static_range(1, LEVELS):
        found += (program >= plain(firsts[level])).to(tl.int32)
    return found


@triton.jit
def map_of(maps, which, LEVELS: tl.constexpr):
    """The map of a level from a tuple of maps of one dtype."""
    found = maps[0]
    for level in tl.static_range(1, LEVELS):
        if which == level:
            found = maps[level]
    return found


@triton.jit
def at_cell(strides, which, b, y, x, LEVELS: tl.constexpr):
    """Where a cell of a level lies in its map (B, C, H, W), given a tuple of all levels' strides."""
    place = b * number_of(strides, which, LEVELS, 4, 0)
    place += y.to(tl.int64) * number_of(strides, which, LEVELS, 4, 2)
    return place + x.to(tl.int64) * number_of(strides, which, LEVELS, 4, 3)


class Kernel:
    """A Triton kernel, launched by `kernel(grid, tensors, numbers, constants)`.

    Attributes:
        jit: The kernel as Triton has it.
    """

    def __init__(
        self,
        function: Callable[..., None],
        tensors: int,
        specialize: tuple[str, ...],
        scalars: tuple[str, ...],
        num_warps: int,
        enable_fp_fusion: bool,
    ) -> None:
        parameters = inspect.signature(function).parameters.values()
        numbers = [p.name for p in parameters if p.annotation is not tl.constexpr][tensors:]
        self.jit = triton.jit(
            do_not_specialize=[name for name in numbers if name not in specialize],
            do_not_specialize_on_alignment=scalars,
        )(function)
        self.options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
        self.__doc__ = function.__doc__
        self._specialized = [numbers.index(name) for name in specialize]
        self._kept: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._encoded: dict[tuple[Any, ...], tuple[list[Any], int]] = {}

    def __call__(
        self,
        grid: tuple[int, ...],
        tensors: tuple[Any, ...],
        numbers: tuple[Any, ...] = (),
        constants: tuple[Any, ...] = (),
    ) -> None:
        """Launch the kernel on the device of its tensors, in the current stream.

        Args:
            grid: Number of programs along one to three axes.
            tensors: The kernel's tensors; where some are tuples of tensors, these come first.
            numbers: Its numbers; where some are tuples of numbers, these come first.
            constants: Its constants: bools and numbers, of which a look-up takes no time.
        """
        nested = type(tensors[0]) is tuple
        flat = _flat(tensors) if nested else tensors
        device = flat[0].get_device()
        on_gpu = device >= 0 and _current_device is not None
        if on_gpu and device != _current_device():
            with torch.cuda.device(device):
                self(grid, tensors, numbers, constants)
            return
        if numbers and type(numbers[0]) is tuple:
            numbers, highest = self._plain_numbers(numbers)
        else:
            highest = max(numbers, default=0)
        if not on_gpu:
            self.jit[grid](*tensors, *numbers, *constants, **self.options)
            return
        pointers = [*map(_data_ptr, flat)]
        key = (
            device,
            constants,
            tuple([pointer & 15 == 0 for pointer in pointers]) if reduce(or_, pointers) & 15 else len(pointers),
            *map(_dtype, flat),
            *[numbers[i] for i in self._specialized],
        )
        if _ON_ROCM:  # there Triton compiles apart for tensors beyond 2 GB
            key = (*key, *[tensor.untyped_storage().size() < _INT32_END for tensor in flat])
        kept = self._kept.get(key)
        hook = knobs.runtime.launch_enter_hook  # of a profiler
        ordinary = highest < _INT32_END and all(map(_is_cuda, flat))
        if kept is None or not ordinary or (hook is not None and getattr(hook, "calls", True)):
            compiled = self.jit[grid](*tensors, *numbers, *constants, **self.options)
            if ordinary and isinstance(compiled, CompiledKernel):
                # The compiled kernel itself, too: it unloads its code when it goes.
                self._kept[key] = compiled.run, compiled.function, compiled.packed_metadata, compiled
            return
        run, function, metadata, _ = kept
        if nested:
            pointers = _nested(pointers, tensors)
        run(
            *grid, *_REST[len(grid)], _current_stream(device), function, metadata, None, None, None, *pointers,
            *numbers, *constants,
        )  # fmt: skip

    def _plain_numbers(self, numbers: tuple[Any, ...]) -> tuple[list[Any], float]:
        """Return numbers with the tuples as `plain` undoes them, which are kept, and the highest number."""
        tuples = 1
        while tuples < len(numbers) and type(numbers[tuples]) is tuple:
            tuples += 1
        given, single = numbers[:tuples], numbers[tuples:]
        found = self._encoded.get(given)
        if found is None:
            if len(self._encoded) == _MOST_ENCODED:
                self._encoded.clear()
            found = [tuple([2 * n + 3 for n in value]) for value in given], max(_flat(given), default=0)
            self._encoded[given] = found
        encoded, highest = found
        return [*encoded, *single], max([highest, *single])


def kernel(
    *,
    tensors: int,
    specialize: tuple[str, ...] = (),
    scalars: tuple[str, ...] = (),
    num_warps: int = 4,
    enable_fp_fusion: bool = True,
) -> Callable[[Callable[..., None]], Kernel]:
    """Make a Triton kernel of a function.

    Args:
        tensors: How many of its parameters, the first ones, are tensors or tuples of tensors.
        specialize: Numbers for whose being 1 or a multiple of 16 it is compiled apart.
        scalars: Tensors of which only single numbers are read, so that it is not compiled apart for their address.
        num_warps: Warps per program.
        enable_fp_fusion: Whether a product and a sum may be rounded together.
    """
    return lambda function: Kernel(function, tensors, specialize, scalars, num_warps, enable_fp_fusion)


def _flat(values: Iterable[Any]) -> list[Any]:
    """Return the values, and in the place of a tuple those in it."""
    found: list[Any] = []
    for value in values:
        if type(value) is tuple:
            found.extend(value)
        else:
            found.append(value)
    return found


def _nested(flat: list[int], values: Iterable[Any]) -> list[Any]:
    """Return numbers in the shape of values of which some are tuples, the inverse of `_flat`."""
    found: list[Any] = []
    place = 0
    for value in values:
        if type(value) is tuple:
            found.append(tuple(flat[place : place + len(value)]))
            place += len(value)
        else:
            found.append(flat[place])
            place += 1
    return found
