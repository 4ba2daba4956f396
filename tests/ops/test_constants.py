"""The forms of an op do not import each other: the numbers of its definition, and its arguments, are the same in all."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from op import HAS_TRITON

import detops

CSRC = Path(__file__).parents[2] / "csrc"

NUMBER = r"(-?\d[\d.]*(?:e-?\d+)?)f?\b"

# A name, the modules that have it, and the C++ file that has it, as the name's declaration or in an expression.
CONSTANTS = [
    ("EPS", "reference.yolox_loss portable._iou_loss kernels._iou_loss", "iou_loss.h", "double kEps = NUMBER"),
    ("EPS", "reference.draw_gaussians portable.draw_gaussians kernels._gaussians", "gaussians.h", "double kEps = EPSILON"),
    ("IGNORED", "reference.yolox_loss portable.yolox_loss kernels.yolox_loss assign.assignment", "yolox_loss.cpp",
     "double kIgnored = NUMBER"),
    ("LOG_EPS", "reference.simota_match portable.simota_match kernels._simota", "simota_cost.h",
     r"log_of\(iou\[i\] \+ NUMBER"),
    ("LOG_EPS", "reference.yolox_loss portable.yolox_loss kernels.yolox_loss", "yolox_loss.cpp",
     r"std::log\(target[^;]* / side \+ C\(NUMBER"),
    ("LOG_FLOOR", "reference.simota_match portable.simota_match kernels._simota", "simota_cost.h",
     r"log_p = p > NUMBER \? p : NUMBER;\s+.*log_q = q > NUMBER \? q : NUMBER;"),
    ("LONGEST", "reference.yolox_loss portable.yolox_loss kernels.yolox_loss", "yolox_loss.cpp",
     "double kLongest = NUMBER"),
    ("NEAR", "reference.vlr_weights portable.vlr_weights kernels.vlr_weights", "vlr_weights.cpp", "float kNear = NUMBER"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "modules", "source", "pattern"), CONSTANTS, ids=lambda part: part.split()[0])
def test_all_forms_of_an_op_have_the_same_numbers(name: str, modules: str, source: str, pattern: str) -> None:
    found = {}
    for module in modules.split():
        if HAS_TRITON or not module.startswith("kernels"):
            value = getattr(importlib.import_module(f"detops.{module}"), name)
            found[module] = float(getattr(value, "value", value))  # for a Triton constant
    assert set(found.values()) == {found[modules.split()[0]]}, found
    pattern = pattern.replace("NUMBER", NUMBER).replace("EPSILON", r"std::(numeric_limits<float>::epsilon)\(\)")
    match = re.search(pattern, (CSRC / source).read_text(), re.DOTALL)
    assert match, f"no {pattern!r} in {source}"
    for number in match.groups():
        value = torch.finfo(torch.float32).eps if "epsilon" in number else float(number)
        assert value == found[modules.split()[0]], match[0]


def test_the_iou_losses_have_the_same_numbers() -> None:
    """The op takes the number of a kind."""
    from detops.criteria.yolox import KINDS
    from detops.losses._dense import BOX_KINDS
    from detops.portable import _iou_loss as portable
    from detops.reference.yolox_loss import KINDS as NAMES

    assert [NAMES.index(name) for name in KINDS] == list(KINDS.values()) == list(range(5))
    assert NAMES == BOX_KINDS
    names = {"iou_squared": "SQUARED", "iou": "PLAIN", "giou": "GIOU", "diou": "DIOU", "ciou": "CIOU"}
    assert {name: getattr(portable, constant) for name, constant in names.items()} == KINDS
    if HAS_TRITON:
        from detops.kernels import _iou_loss as kernels

        assert [kernels.SQUARED, kernels.PLAIN, kernels.GIOU, kernels.DIOU] == [0, 1, 2, 3]
    (order,) = re.findall(r"enum .*\{(.*)\}", (CSRC / "iou_loss.h").read_text())
    assert [name.split()[0].removeprefix("k").upper() for name in order.split(",")] == list(names.values())


def test_the_class_losses_have_the_same_numbers() -> None:
    from detops.losses._class_loss import CLASS_KINDS, ClassLoss
    from detops.portable.positive_losses import CLASS_LOSSES
    from detops.reference.positive_losses import CLASS_KINDS as NAMES

    assert NAMES == CLASS_KINDS
    for name, make in zip(CLASS_KINDS, CLASS_LOSSES, strict=True):
        assert (make(0.3, 1.5).background, make(0.3, 1.5).background_exponent) == ClassLoss(name, 1.5, 0.3).background
    if HAS_TRITON:
        from detops.kernels import positive_losses as kernels

        assert [getattr(kernels, name.upper()).value for name in NAMES] == list(range(len(NAMES)))
    (order,) = re.findall(r"enum ClassKind .*\{(.*)\}", (CSRC / "positive_losses.cpp").read_text())
    assert [name.strip().removeprefix("k").lower() for name in order.split(",")] == list(NAMES)


@pytest.mark.parametrize("op", sorted(detops.env()["ops"]))
def test_all_forms_of_an_op_have_the_same_arguments(op: str) -> None:
    """Ops are called with arguments by name."""
    declared = list(inspect.signature(getattr(detops.ops, op)).parameters)
    assert declared == [argument.name for argument in getattr(torch.ops.detops, op).default._schema.arguments]
    has_kernel = HAS_TRITON and (Path(detops.__file__).parent / "kernels" / f"{op.rstrip('_')}.py").exists()
    for folder in ("reference", "portable", *["kernels"] * has_kernel):
        form = getattr(importlib.import_module(f"detops.{folder}.{op.rstrip('_')}"), op)
        names = list(inspect.signature(form).parameters.items())
        assert [name for name, _ in names[: len(declared)]] == declared, folder
        assert all(parameter.default is not parameter.empty for _, parameter in names[len(declared) :]), folder
