"""`detops` and `python -m detops`: the command line, or one line that says how to install it."""

import sys


def main() -> None:
    """Run the command line; without its packages, say what to install and exit with code 2."""
    try:
        from detops.apps.terminal import make_streams_last
        from detops.cli import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "detops":
            raise
        install = 'pip install "detops[cli]"; from a checkout: pip install ".[cli]"'
        print(f"error: the command detops needs {package}: {install}", file=sys.stderr)
        sys.exit(2)
    make_streams_last()
    app()


if __name__ == "__main__":
    main()
