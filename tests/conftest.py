"""Set-up of all tests: Triton's interpreter if there is no GPU, fixed examples, unwritten memory that is NaN."""

import os
from collections.abc import Iterator
from pathlib import Path

# Read when PyTorch is imported, and by the processes that tests start. Workers of pytest-xdist share the cores: with
# all cores each, they wait for one another, and the tests take three times as long.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    per_worker = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, per_worker)))

import pytest
import torch
from hypothesis import settings

# The same examples in every run, so that a failure is one of the change at hand; DETOPS_EXPLORE=1 draws new ones.
settings.register_profile("fixed", derandomize=True)
if os.environ.get("DETOPS_EXPLORE") != "1":
    settings.load_profile("fixed")

if not torch.cuda.is_available():
    # Read when Triton is imported, which detops does not do by itself.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device"))


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    """Let `torch.empty` return NaN (the largest integer, True), from C++ too, so that reading unwritten memory shows.

    PyTorch fills it in its deterministic mode. That mode also replaces GPU kernels whose results depend on the order of
    their threads, which would hide them from the tests that run twice, so that it is for the CPU alone.
    """
    if torch.cuda.is_available():
        yield
        return
    torch.set_deterministic_debug_mode("warn")
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `detops train --data` takes, with four images to train on and two to evaluate on."""
    from predict_runs import write_shapes  # needs the extra train

    return write_shapes(tmp_path_factory.mktemp("data"))


@pytest.fixture
def without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no report, which takes longer than a short training; its tests are elsewhere."""
    monkeypatch.setattr("detops.apps.report.report.write", lambda *_, **__: None)
