"""The signatures of everything public, as in tests/public_signatures.json.

Run as a script, prints them: python tests/helpers/signatures.py > tests/public_signatures.json
"""

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator

MODULES = ("detops", "detops.ragged")


def public_signatures() -> dict[str, str]:
    """Return arguments and defaults of every public function, constructor and method, and the properties, by name."""
    found: dict[str, str] = {}
    classes: dict[type, str] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for public in sorted(module.__all__):
            value = getattr(module, public)
            found[f"{name}.{public}"] = _arguments(value) if callable(value) else type(value).__name__
            if value in classes:
                found[f"{name}.{public}"] = classes[value]
            elif inspect.isclass(value):
                classes[value] = f"{name}.{public}"
                found.update((f"{name}.{public}.{member}", text) for member, text in _members(value))
    return found


def as_text(signatures: dict[str, str]) -> str:
    """Return the contents of the file, one line per signature."""
    return json.dumps(signatures, indent=1) + "\n"


def _members(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the members that the package's own classes define, not those of PyTorch and Python."""
    own = {name for owner in cls.__mro__ if owner.__module__.startswith("detops") for name in vars(owner)}
    for name in sorted(name for name in own if not name.startswith("_")):
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property):
            yield name, "property"
        elif callable(getattr(cls, name)):
            yield name, _arguments(getattr(cls, name))


def _arguments(function: Callable[..., object]) -> str:
    """Return a signature without annotations, which Python's versions print differently."""
    signature = inspect.signature(function)
    plain = [_plain(parameter) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
    plain = parameter.replace(annotation=inspect.Parameter.empty)
    # A function is printed with its address.
    return plain.replace(default=plain.default.__name__) if inspect.isroutine(plain.default) else plain


if __name__ == "__main__":
    sys.stdout.write(as_text(public_signatures()))
