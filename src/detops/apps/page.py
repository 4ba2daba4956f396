"""HTML pages that need no other file: the reports of `check` and of a run."""

import os
from collections.abc import Iterable
from pathlib import Path

GENERATOR = '<meta name="generator" content="detops">'  # by which a page is known as one of detops
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c1e22;background:#fafaf8;margin:0 auto;padding:24px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
"""


def page(title: str, style: str, body: Iterable[str]) -> str:
    """Lay out a page.

    Args:
        title: Its title, escaped.
        style: Rules beside those of all pages.
        body: Its parts, as HTML.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"{GENERATOR}<title>{title}</title><style>{STYLE}{style}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def is_own_page(path: Path) -> bool:
    """Whether an HTML page says that detops made it."""
    return path.is_file() and GENERATOR.encode() in path.open("rb").read(1000)


def claim_page(path: Path) -> None:
    """Check that a page may be written to a file that the user named: over an earlier one at most.

    Raises:
        ValueError: There is a file that is something else.
    """
    if os.path.lexists(path) and not is_own_page(path):
        raise ValueError(f"{path}: is something else than an earlier report, and is not replaced")
