"""The signatures of everything public, as one JSON: python tests/helpers/signatures.py > tests/public_signatures.json."""

import importlib
import inspect
import json
import re
import sys
from typing import Any

MODULES = ("detops", "detops.ragged")

Signatures = dict[str, dict[str, Any]]


def public_signatures() -> Signatures:
    """For each public module its names, and for each name its signature, or those of a class's public methods."""
    return {name: _of_module(importlib.import_module(name)) for name in MODULES}


def as_text(signatures: Signatures) -> str:
    """The contents of the file, a line per signature."""
    return json.dumps(signatures, indent=1, ensure_ascii=False) + "\n"


def _of_module(module: Any) -> dict[str, Any]:
    return {name: _of(getattr(module, name)) for name in sorted(module.__all__)}


def _of(thing: Any) -> Any:
    if inspect.isclass(thing):
        return {"()": _text(thing), **_methods(thing)}
    return _text(thing) if callable(thing) else type(thing).__name__


def _methods(cls: type) -> dict[str, str]:
    """What its own classes define, not those of PyTorch and Python."""
    found: dict[str, str] = {}
    for owner in cls.__mro__:
        if owner.__module__.split(".")[0] != "detops":
            continue
        for name, value in vars(owner).items():
            if name.startswith("_") and name not in ("__call__", "__len__", "__getitem__", "__iter__"):
                continue
            if isinstance(value, property):
                found.setdefault(name, "property")
            elif inspect.isroutine(value):
                found.setdefault(name, _text(getattr(cls, name)))
    return dict(sorted(found.items()))


class _Plain(str):
    """An annotation that is a string already, written without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _text(thing: Any) -> str:
    """The signature, with classes by their names alone and functions without their addresses."""
    signature = inspect.signature(thing)
    parameters = [p.replace(annotation=_plain(p.annotation)) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=parameters, return_annotation=_plain(signature.return_annotation)))
    text = re.sub(r"<(?:built-in )?function (\w+)[^>]*>", r"\1", text)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text)


def _plain(annotation: Any) -> Any:
    return _Plain(annotation) if isinstance(annotation, str) else annotation


if __name__ == "__main__":
    sys.stdout.write(as_text(public_signatures()))
