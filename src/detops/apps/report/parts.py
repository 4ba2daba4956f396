"""Parts of the pages about runs: sections, tables and numbers, as HTML."""

import html
from collections.abc import Callable, Iterable, Sequence

from detops.apps.errors import explain
from detops.arguments import flat

STYLE = """
body{max-width:1180px}
h1{font-size:26px;margin:0;overflow-wrap:anywhere}h2{font-size:19px;margin:40px 0 8px}
h3{font-size:15px;margin:18px 0 4px}p{margin:6px 0;max-width:80ch}.soft,figcaption{color:var(--soft)}
td,th{padding:3px 14px 3px 0;text-align:right;vertical-align:top}th{font-weight:600;border-bottom:1px solid var(--line)}
td:first-child,th:first-child,td.text,th.text{text-align:left}td.text{overflow-wrap:break-word}
.scroll{overflow-x:auto;max-width:100%}
.numbers{display:flex;flex-wrap:wrap;gap:10px 36px;margin:16px 0}
.numbers div{color:var(--soft)}.numbers b{display:block;font-size:28px;line-height:1.2;color:var(--ink)}
.bar{display:flex;height:26px;border-radius:4px;overflow:hidden;margin:10px 0}.bar i{display:block}
.dot{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:7px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:18px 24px;margin:10px 0}
figure{margin:0;break-inside:avoid}figure svg{width:100%;height:auto;max-width:480px}
.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(480px,100%),1fr));gap:0 40px}
.beside>div{min-width:0}
.pictures{display:grid;grid-template-columns:repeat(4,1fr);gap:10px}
.pictures img,.pair img{width:100%;border-radius:3px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:6px;margin-top:14px}figcaption{font-size:13px}
.pair figcaption{grid-column:1/3}.zoom{cursor:zoom-in;display:block}.zoom input{position:absolute;opacity:0}
.zoom input:focus-visible+img{outline:2px solid #4285b4}
.zoom input:checked+img{position:fixed;inset:0;width:100vw;height:100vh;object-fit:contain;background:#000d;z-index:9;
cursor:zoom-out;border-radius:0}
.legend{display:flex;flex-wrap:wrap;gap:4px 24px;max-width:none}
.swatch{display:inline-block;width:16px;height:9px;margin-right:7px}
.matrix{margin:10px 0}.matrix td,.matrix th{padding:5px 9px;text-align:center;border:1px solid var(--line)}
.matrix th.text{text-align:right;white-space:nowrap}.matrix thead th.up{vertical-align:bottom}
.matrix .up span{writing-mode:vertical-rl;transform:rotate(180deg);white-space:nowrap}
h2{break-after:avoid}table,.bar{break-inside:avoid}
@media screen and (max-width:700px){.pictures{grid-template-columns:1fr 1fr}.pair{grid-template-columns:1fr}
.pair figcaption{grid-column:1}.numbers{gap:8px 26px}.numbers b{font-size:23px}
td,th{padding-right:10px}}
@media print{body{max-width:none;font-size:12px}.scroll{overflow:visible}td,th{padding-right:9px}
.charts{grid-template-columns:1fr 1fr}
.zoom input:checked+img{position:static;width:100%;height:auto}}
"""


def section(title: str, make: Callable[[], str]) -> tuple[str, str]:
    """Make a section, or say why it could not be made."""
    try:
        content = make() or "<p>Nothing was recorded.</p>" * bool(title)
    except Exception as error:  # a picture, a font, or what a hand changed in the record
        content = f"<p>Could not be made: {html.escape(explain(error) or flat(error))}.</p>"
    return f"<h2>{title}</h2>" * bool(title), content


def beside(*sections: tuple[str, str]) -> tuple[str]:
    """Put sections side by side, where there is room."""
    return (f'<div class="beside">{"".join(f"<div>{title}{content}</div>" for title, content in sections)}</div>',)


def number(value: float | None, digits: int = 3) -> str:
    """Write a number; "n/a" where there is none."""
    return "n/a" if value is None or value != value else f"{value:.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = ()) -> str:
    """Lay out a table.

    Args:
        head: Names of the columns; none leaves the head out.
        rows: Cells, as HTML.
        text: Columns beside the first that hold text.
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        parts = (f"<{tag}{' class=text' * (place in text)}>{cell}</{tag}>" for place, cell in enumerate(cells))
        return f"<tr>{''.join(parts)}</tr>"

    top = line("th", head) if head else ""
    return f'<div class="scroll"><table>{top}{"".join(line("td", row) for row in rows)}</table></div>'


def numbers(values: Iterable[tuple[str, str]]) -> str:
    """Show a few numbers in large digits, each with its name."""
    return '<div class="numbers">' + "".join(f"<div><b>{value}</b>{name}</div>" for value, name in values) + "</div>"


def charts(*drawings: str) -> str:
    """Put charts side by side."""
    return f'<div class="charts">{"".join(drawings)}</div>'


def duration(seconds: float) -> str:
    """Write a duration in the two largest units that it has."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours = seconds // 60 % 60, seconds // 3600
    return f"{minutes} min {seconds % 60} s" if not hours else f"{hours} h {minutes} min"
