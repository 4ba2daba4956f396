"""Shared by the tests of all ops: an op in all its forms, and checks that hold for every op.

The file of an op, tests/ops/test_NAME.py, says `op = Op("NAME")`, runs its tests over `op.forms`, and lists its kernels
in `KERNELS`. Copy test_draw_gaussians.py.
"""

import importlib
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import torch
import torch.distributed as dist
from hypothesis import settings
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

import detops
from detops.diagnostics._launchers import without_kernels

T = TypeVar("T")

HAS_TRITON = importlib.util.find_spec("triton") is not None
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
for_each_device = pytest.mark.parametrize("device", DEVICES)

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
THREADS = (1, 2, 3, 5)


class Tolerance(NamedTuple):
    """The allowed error of a value, as torch.testing.assert_close takes it."""

    rtol: float
    atol: float


# For losses and gradients that are computed in float32, or in float64 for float64, and rounded to the dtype.
TOLERANCES = {
    torch.float32: Tolerance(1e-4, 1e-5),
    torch.float64: Tolerance(1e-6, 1e-7),
    torch.float16: Tolerance(2e-3, 1e-3),
    torch.bfloat16: Tolerance(1e-2, 1e-3),
}


class Form:
    """One of the forms of an op; it is called like the op."""

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self.name = name
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __str__(self) -> str:
        return self.name

    @property
    def interpreted(self) -> bool:
        """Whether Triton's interpreter runs it: slowly, and with float32 instead of float64."""
        return self.name.startswith("triton")

    def examples(self, count: int) -> settings:
        """Return Hypothesis' settings of that many examples: fewer in the interpreter, unless new ones are drawn."""
        fewer = self.interpreted and os.environ.get("DETOPS_EXPLORE") != "1"
        return settings(max_examples=max(10, count // 10) if fewer else count, deadline=None)

    def computes(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype whose tolerance applies to inputs of `dtype`."""
        return torch.float32 if self.interpreted and dtype == torch.float64 else dtype


class Op(Form):
    """An op of `torch.ops.detops`, called through PyTorch's dispatcher, with all its other forms.

    `forms` are what the tests run over: the portable one, the op itself (C++ on the CPU), and the Triton kernel by the
    interpreter if there is no GPU to run it. `reference` is the definition that they are compared with.
    """

    def __init__(self, op: str) -> None:
        self.overload = getattr(torch.ops.detops, op).default
        super().__init__("C++", self.overload)
        self.op = op
        self.reference = Form("reference", _load("reference", op))
        self.portable = Form("portable", _load("portable", op))
        self.kernels: list[Form] = [self]  # the forms that read memory by themselves
        if HAS_TRITON and not torch.cuda.is_available():  # imported when it is called, as detops does
            self.kernels.append(Form("triton, interpreted", lambda *args: _load("kernels", op)(*args)))
        self.forms: list[Form] = [self.portable, *self.kernels]

    @property
    def for_each_form(self) -> pytest.MarkDecorator:
        """Run a test with each form, as its argument `form`."""
        return pytest.mark.parametrize("form", _parameters(self.forms))

    @property
    def for_each_kernel(self) -> pytest.MarkDecorator:
        """Run a test with each form that reads memory by itself; in PyTorch, an index out of range raises an error."""
        return pytest.mark.parametrize("form", _parameters(self.kernels))

    def check(self, *args: Any) -> None:
        """Run PyTorch's own checks: schema, fake function, autograd registration, and tracing with dynamic shapes.

        Also check that no form makes a tensor of PyTorch's default dtype; Triton's kernels are launched, and do nothing.
        """
        torch.library.opcheck(self.overload, args)
        for form in self.forms:
            traces = []
            for dtype in (torch.float32, torch.bfloat16):
                given = tree_map_only(Tensor, Tensor.clone, args)  # an op may write into its arguments
                with default_dtype(dtype), DTypes() as trace:
                    form(*given)
                traces.append(trace.seen)
            for plain, other in itertools.zip_longest(*traces):
                assert other == plain, f"{form}: the default dtype is the dtype of a tensor"

    def refuses(self, args: Sequence[Any], **change: Any) -> None:
        """Check that the op, called directly with one argument changed, raises an error that names the argument."""
        (name,) = change
        names = [argument.name for argument in self.overload._schema.arguments]
        assert name in names, f"{self.op} has no argument {name}"
        self(*args)
        with pytest.raises(RuntimeError, match=rf"\b{name}\b.*: expected"):
            self.overload(**dict(zip(names, args, strict=False)) | change)


class DTypes(TorchDispatchMode):
    """Sees what PyTorch runs, and the dtypes of what it returns; Triton kernels are launched, and do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[torch.dtype]]] = []
        self.without_kernels = without_kernels()

    def __enter__(self) -> "DTypes":
        self.without_kernels.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.without_kernels.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen.append((func.name(), [leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]))
        return result


def _parameters(forms: Sequence[Form]) -> list[Any]:
    return [pytest.param(form, id=form.name, marks=[pytest.mark.slow] * form.interpreted) for form in forms]


def _load(package: str, op: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importlib.import_module(f"detops.{package}.{op.rstrip('_')}"), op)
    return function


def moved(args: T, device: str) -> T:
    """Return the same with all tensors, however nested, on a device."""
    found: T = tree_map_only(Tensor, lambda tensor: tensor.to(device), args)
    return found


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Check that all tensors of both are equal bit for bit: NaN equals NaN, and -0 does not equal 0."""
    ours, theirs = (tree_flatten(value)[0] for value in (actual, expected))
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.dtype, mine.shape, mine.device) == (other.dtype, other.shape, other.device)
        assert torch.equal(_bits(mine), _bits(other)), f"{mine} has other bits than {other}"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch use that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let PyTorch make tensors of that dtype where none is said."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def assert_same_bits_for_any_threads(call: Callable[[], Any]) -> None:
    """Check that `call` returns the same bits for any number of threads."""
    results = []
    for count in THREADS:
        with threads(count):
            results.append(call())
    for result in results[1:]:
        assert_same_bits(result, results[0])


def faked(call: Callable[..., T], *args: Any) -> T:
    """Call a function with tensors that have a shape but no values: reading a value raises an error."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return call(*tree_map_only(Tensor, mode.from_tensor, args))


changed_argument = "/".join  # the name of a test's case `{argument: value}`


def assert_no_syncs(call: Callable[..., Any], *args: Any) -> Any:
    """Check that a call never waits for a device: no synchronisation is counted, and no value is read.

    Returns:
        The call's result for fake tensors, whose shapes can be checked.
    """
    assert detops.count_syncs(call, *args) == 0
    return faked(call, *args)


def assert_compiles_whole(
    call: Callable[..., Any], *calls: tuple[Any, ...], backend: str = "aot_eager", rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Check that `call`, compiled as one graph, gives the same for each tuple of arguments; pass at least two sizes."""
    assert calls
    torch._dynamo.reset()  # what other tests compiled counts against the limit of recompilations
    compiled = torch.compile(call, fullgraph=True, backend=backend)
    for args in calls:
        torch.testing.assert_close(compiled(*args), call(*args), rtol=rtol, atol=atol, equal_nan=True)


def assert_replays_in_cuda_graph(step: Callable[[], Any]) -> None:
    """Check that `step`, captured in a CUDA graph and replayed, returns the same bits."""
    expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in tree_flatten(captured)[0]:
        tensor.zero_()
    graph.replay()
    assert_same_bits(captured, expected)


def two_ranks(step: Callable[[int, int], T], folder: Path) -> tuple[T, list[T]]:
    """Run `step(rank, ranks)` in a process group of one rank, and of two.

    Args:
        step: A function at the top level of a module, because each of two ranks is a process.
        folder: An empty folder.

    Returns:
        Its result as the only rank, and as each of two.
    """
    _run_rank(0, step, 1, str(folder))
    spawn(_run_rank, (step, 2, str(folder)), nprocs=2)
    whole, *halves = (torch.load(folder / name) for name in ("0_of_1.pt", "0_of_2.pt", "1_of_2.pt"))
    return whole, halves


def _run_rank(rank: int, step: Callable[[int, int], object], ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store_{ranks}", rank=rank, world_size=ranks)
    try:
        torch.save(step(rank, ranks), f"{folder}/{rank}_of_{ranks}.pt")
    finally:
        dist.destroy_process_group()
