"""`detops` and `python -m detops`: the command line, or one line that says how to install it."""

import sys


def main() -> None:
    """Run the command line; without its packages, say what to install and exit with code 2."""
    try:
        from detops.cli import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "detops":
            raise
        print(f'error: the command detops needs {package}: pip install "detops[cli]"', file=sys.stderr)
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
