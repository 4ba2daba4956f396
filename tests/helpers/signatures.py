"""The public signatures of detops, as tests/public_signatures.json keeps them.

Run as a script, prints them: python tests/helpers/signatures.py > tests/public_signatures.json
"""

import inspect
import json
from collections.abc import Callable

import detops


def public_signatures() -> dict[str, str]:
    """Arguments and defaults of every public function, constructor and public method, by name."""
    found: dict[str, str] = {}
    for name in sorted(detops.__all__):
        value = getattr(detops, name)
        if inspect.isclass(value):
            found[name] = _arguments(value)
            methods = inspect.getmembers(value, lambda member: inspect.isfunction(member) or inspect.ismethod(member))
            for method, function in methods:
                if not method.startswith("_") and function.__module__.startswith("detops"):
                    found[f"{name}.{method}"] = _arguments(function)
        elif callable(value):
            found[name] = _arguments(value)
    return found


def _arguments(function: Callable[..., object]) -> str:
    """A signature without annotations, which Python's versions print in different ways."""
    signature = inspect.signature(function)
    plain = [_without_annotation(parameter) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def _without_annotation(parameter: inspect.Parameter) -> inspect.Parameter:
    plain = parameter.replace(annotation=inspect.Parameter.empty)
    # A function is printed with its address.
    return plain.replace(default=plain.default.__name__) if inspect.isfunction(plain.default) else plain


if __name__ == "__main__":
    print(json.dumps(public_signatures(), indent=1))
