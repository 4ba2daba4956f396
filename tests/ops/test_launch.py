"""Launching: when a kept kernel is launched, when Triton is asked, and that both launch the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton.language as tl

from detops.kernels import _launch
from detops.kernels._launch import cdiv, kernel, next_power_of_2


class OnGPU(Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    is_cuda = True
    number = 0

    def get_device(self) -> int:
        return self.number


def on_gpu(tensor: Tensor, index: int = 0) -> Tensor:
    made = tensor.as_subclass(OnGPU)
    made.number = index
    return made


class Triton:
    """In the place of a kernel of Triton: notes its launches, and hands out a compiled kernel that notes its own."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.kept: list[tuple[Any, ...]] = []
        self.function, self.packed_metadata = "function", "metadata"

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> "Triton":
            self.asked.append((grid, args, options))
            return self

        return launch

    def run(self, *args: Any) -> None:
        self.kept.append(args)


def copy_kernel(source, sink, height, width, factor, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """A kernel that does nothing."""


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> tuple[_launch.Kernel, Triton]:
    monkeypatch.setattr(_launch, "_current_device", lambda: 0)
    monkeypatch.setattr(_launch, "_current_stream", lambda device: 70 + device)
    monkeypatch.setattr(_launch, "CompiledKernel", Triton)
    monkeypatch.setattr(_launch, "_ON_ROCM", False)
    made = kernel(tensors=2, specialize=("width",), num_warps=2)(copy_kernel)
    made.jit = Triton()
    return made, made.jit


X, Y = (on_gpu(torch.zeros(64)) for _ in range(2))


def test_the_second_launch_is_of_the_kept_kernel(stub: tuple[_launch.Kernel, Triton]) -> None:
    copy, triton = stub
    for height in (5, 6):
        copy((7, 2), (X, Y), (height, 16, 0.5), (128,))
    assert triton.asked == [((7, 2), (X, Y, 5, 16, 0.5, 128), {"num_warps": 2, "enable_fp_fusion": True})]
    fixed = (7, 2, 1, 70, "function", "metadata", None, None, None)
    assert triton.kept == [(*fixed, X.data_ptr(), Y.data_ptr(), 6, 16, 0.5, 128)]


@pytest.mark.parametrize(
    ("tensors", "numbers", "constants"),
    [
        ((X.double(), Y), (5, 16, 0.5), (128,)),
        ((X, Y.half()), (5, 16, 0.5), (128,)),
        ((X[1:], Y), (5, 16, 0.5), (128,)),
        ((X, Y[1:]), (5, 16, 0.5), (128,)),
        ((X, Y), (5, 17, 0.5), (128,)),
        ((X, Y), (5, 16, 0.5), (64,)),
    ],
    ids=["a dtype", "another dtype", "an address", "another address", "a width", "a constant"],
)
def test_what_triton_compiles_apart_is_kept_apart(
    stub: tuple[_launch.Kernel, Triton], tensors: Any, numbers: Any, constants: Any
) -> None:
    copy, triton = stub
    copy((1,), (X, Y), (5, 16, 0.5), (128,))
    for _ in range(2):
        copy((1,), tensors, numbers, constants)
    assert (len(triton.asked), len(triton.kept)) == (2, 1)


@pytest.mark.parametrize(
    ("tensors", "numbers"), [((X, Y), (2**31, 16, 0.5)), ((X, torch.zeros(64)), (5, 16, 0.5))], ids=["int64", "cpu"]
)
def test_what_does_not_fit_a_kept_kernel_goes_to_triton(
    stub: tuple[_launch.Kernel, Triton], tensors: Any, numbers: Any
) -> None:
    copy, triton = stub
    copy((1,), (X, Y), (5, 16, 0.5), (128,))
    for _ in range(2):
        copy((1,), tensors, numbers, (128,))
    assert (len(triton.asked), len(triton.kept)) == (3, 0)


def test_each_device_has_its_own(stub: tuple[_launch.Kernel, Triton], monkeypatch: pytest.MonkeyPatch) -> None:
    copy, triton = stub
    args = (5, 16, 0.5), (128,)
    copy((1,), (X, Y), *args)
    current = [0]

    class Guard:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            current[0] = self.index

        def __exit__(self, *error: object) -> None:
            current[0] = 0

    monkeypatch.setattr(_launch, "_current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", Guard)
    other = on_gpu(torch.zeros(64), 1), on_gpu(torch.zeros(64), 1)
    for _ in range(2):
        copy((1,), other, *args)
    assert (len(triton.asked), len(triton.kept), current) == (2, 1, [0])
    assert triton.kept[0][3] == 71  # the stream of that device
    for _ in range(2):
        copy((1,), (other, other[0]), ((1, 7), 16, 0.5), (128,))
    assert triton.kept[1][9:12] == (tuple(t.data_ptr() for t in other), other[0].data_ptr(), (5, 17))


def test_encoded_numbers_are_forgotten_in_time(
    stub: tuple[_launch.Kernel, Triton], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, triton = stub
    monkeypatch.setattr(_launch, "_MOST_ENCODED", 3)
    for height in [*range(5), 2**31]:
        copy((1,), ((X, Y), X), ((height, 7), 16, 0.5), (128,))
    assert [kept[11] for kept in triton.kept] == [(2 * height + 3, 17) for height in range(1, 5)]
    assert triton.asked[-1][1][2] == (2**32 + 3, 17)
    copy((1,), ((X, Y), X), ((), 16, 0.5), (128,))
    assert triton.kept[-1][11] == ()


def test_tuples_come_as_tuples_of_one_kind(stub: tuple[_launch.Kernel, Triton]) -> None:
    """Of numbers what arrives is odd and not 1, so that it tells Triton nothing."""
    copy, triton = stub
    for rows in ((0, 16), (1, 7)):
        copy((1,), ((X, Y), X), (rows, 16, 0.5), (128,))
    assert triton.asked[0][1][:3] == ((X, Y), X, (3, 35))
    assert triton.kept[0][9:12] == ((X.data_ptr(), Y.data_ptr()), X.data_ptr(), (5, 17))


def test_integers() -> None:
    assert [cdiv(n, 4) for n in range(6)] == [0, 1, 1, 1, 1, 2]
    assert [next_power_of_2(n) for n in range(1, 10)] == [1, 2, 4, 4, 8, 8, 8, 8, 16]
