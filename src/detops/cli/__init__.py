"""The commands: parse the arguments, call `detops.apps`, and turn errors into messages and exit codes."""

import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from detops import __version__
from detops.apps import note
from detops.apps.errors import explain
from detops.cli.benchmarks import bench
from detops.cli.data import check, targets
from detops.cli.detections import evaluate, predict
from detops.cli.first import demo, env
from detops.cli.shared import console, errors
from detops.cli.training import report, train

__all__ = ["FAULT", "app", "console", "errors"]

FAULT = 70  # exit code of a fault of detops


class Commands(TyperGroup):
    """The commands; here every error becomes a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. An error that the user can do something about is one line, and exit code 2."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as error:
            note(errors, str(error) or "stopped; train and predict go on with --resume", "red")
            raise typer.Exit(130) from None
        except Exception as error:
            if hasattr(error, "exit_code") and hasattr(error, "show"):  # a misuse that the command line itself found
                raise
            text = explain(error)
            if text is not None:
                note(errors, f"error: {text}", "red")
                raise typer.Exit(2) from error
            errors.print("".join(traceback.format_exception(error)), markup=False, highlight=False, soft_wrap=True)
            note(
                errors, "error: this is a fault of detops; please report it, with the lines above and detops env", "red"
            )
            raise typer.Exit(FAULT) from error


app = typer.Typer(
    cls=Commands,
    help="Everything around an object detector's network.",
    epilog="Exit codes: 0 done; 1 done, and something failed or was found; 2 refused or stopped, and a line says"
    " why; 70 a fault of detops; 130 stopped by Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options that come before a command."""


for command in (env, targets, check, demo, train, evaluate, report, predict, bench):  # the order of the help
    app.command()(command)
