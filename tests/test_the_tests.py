"""Every test compares something: none can pass because a condition left its comparisons out."""

import ast
import functools
from collections.abc import Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(path for path in TESTS.rglob("*.py") if path.parent.name != "helpers")
HELPERS = sorted((TESTS / "helpers").glob("*.py"))

# Calls that compare; to these come the functions of the tests and their helpers that do.
COMPARE = {"raises", "warns", "fail", "assert_close", "gradcheck", "opcheck"}

# What these call raises by itself.
RAISE = {"test_python_blocks_run", "test_no_sync_on_the_gpu"}


@functools.cache
def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def called(call: ast.Call) -> str:
    """Return the last name of the called function."""
    function = call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def compares(node: ast.AST, names: set[str]) -> bool:
    return any(
        isinstance(part, ast.Assert) or (isinstance(part, ast.Call) and called(part) in names)
        for part in ast.walk(node)
    )


def surely_compares(statements: Sequence[ast.stmt], names: set[str]) -> bool:
    """Return whether these statements compare whichever way conditions go; loops are assumed to run."""
    for statement in statements:
        if isinstance(statement, ast.If):
            if surely_compares(statement.body, names) and surely_compares(statement.orelse, names):
                return True
            if any(isinstance(part, ast.Continue | ast.Return | ast.Break) for part in ast.walk(statement)):
                return False
        elif isinstance(statement, ast.For | ast.While | ast.With | ast.Try):
            items = statement.items if isinstance(statement, ast.With) else []
            if any(compares(item, names) for item in items) or surely_compares(statement.body, names):
                return True
        elif not isinstance(statement, ast.FunctionDef | ast.ClassDef) and compares(statement, names):
            return True
    return False


def comparing_names() -> set[str]:
    names, helpers = set(COMPARE), [f for path in (*HELPERS, *FILES) for f in functions(path)]
    while more := {f.name for f in helpers if f.name not in names and compares(f, names) and f.name[:5] != "test_"}:
        names |= more
    return names


def test_every_test_compares() -> None:
    names = comparing_names()
    tests = {f"{path.name}::{f.name}": f for path in FILES for f in functions(path) if f.name[:5] == "test_"}
    assert len(tests) > 500
    silent = [name for name, test in tests.items() if not surely_compares(test.body, names)]
    assert [name for name in silent if name.split("::")[1] not in RAISE] == []


@pytest.mark.parametrize(
    ("body", "sure"),
    [
        ("assert x", True),
        ("compare(x)", True),
        ("x = 1", False),
        ("if x: assert x", False),
        ("if x:\n  assert x\nelse:\n  assert not x", True),
        ("for x in y:\n  if z(x): continue\n  assert x", False),
        ("for x in y:\n  if z(x): continue\n  assert x\nassert counted > 3", True),
        ("with pytest.raises(ValueError): f()", True),
    ],
)
def test_what_surely_compares(body: str, sure: bool) -> None:
    assert surely_compares(ast.parse(body).body, {"compare", "raises"}) is sure
