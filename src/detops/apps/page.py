"""HTML pages that need no other file, light or dark as the reader's system is: the reports of `check` and of a run."""

import os
from collections.abc import Iterable
from pathlib import Path

GENERATOR = '<meta name="generator" content="detops">'  # by which a page is known as one of detops
STYLE = """
:root{color-scheme:light;--ink:#1c1e22;--soft:#5c6068;--paper:#fafaf8;--line:#d3d6db}
@media screen and (prefers-color-scheme:dark){
:root{color-scheme:dark;--ink:#e6e7ea;--soft:#a0a5ae;--paper:#17181b;--line:#3a3d44}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;padding:24px;
print-color-adjust:exact;-webkit-print-color-adjust:exact}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
@media screen and (max-width:700px){body{padding:16px}}
@media print{body{padding:0;background:none}@page{margin:14mm}}
"""


def page(title: str, style: str, body: Iterable[str]) -> str:
    """Lay out a page.

    Args:
        title: Its title, escaped.
        style: Rules beside those of all pages.
        body: Its parts, as HTML.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
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
