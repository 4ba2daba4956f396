"""What several commands use: where they print, and checks of arguments that the command line does not make itself."""

import math
from collections.abc import Iterable

import typer
from rich.console import Console

console, errors = Console(), Console(stderr=True)


def given(ctx: typer.Context) -> list[str]:
    """List the parameters of a command that were given."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def refuse(ctx: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that would have no effect.

    Raises:
        ValueError: One of them was given.
    """
    useless = [option(ctx, name) for name in given(ctx) if name in names]
    if useless:
        raise ValueError(f"{', '.join(useless)}: {why}")


def require_finite(ctx: typer.Context) -> None:
    """Check that every number is one, which the command line itself does not.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    for name, value in ctx.params.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{option(ctx, name)}: expected a finite number, got {value}")


def option(ctx: typer.Context, name: str) -> str:
    """Return the name by which an option is given."""
    return next(parameter.opts[0] for parameter in ctx.command.params if parameter.name == name)
