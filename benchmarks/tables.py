"""Writes the speed tables of README and docs from the files in benchmarks/results, so that no number is typed by hand.

python benchmarks/tables.py
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
STAGES = re.compile(r"(<!-- stages: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def table(path: Path) -> str:
    """A file of results as a Markdown table, with the machine beneath."""
    record = json.loads(path.read_text())
    timed = dict.fromkeys(name for result in record["results"] for name in result["timings"])
    baselines = [name for name in timed if name not in ("floor", "ours")]  # a case may lack one
    header = ["milliseconds", record["floor"], "detops", "/ floor", *(h for b in baselines for h in (b, "speed-up"))]
    header += [f"{name} MiB" for name in ("detops", *baselines)]
    rows = [header, ["---", *["--:"] * (len(header) - 1)]]
    for result in record["results"]:
        times = {name: number(timing["median"]) for name, timing in result["timings"].items()}
        row = [result["case"], times["floor"], times["ours"], f"{result['ratios']['ours / floor']:.2f}"]
        for name in baselines:
            row += [times[name], f"**{result['ratios'][f'{name} / ours']:.0f}x**"] if name in times else ["", ""]
        peaks = result["peak_extra_bytes"]
        row += [f"{peaks[name] / 2**20:.1f}" if name in peaks else "" for name in ("ours", *baselines)]
        rows.append(row)
    return lines(rows) + f"\n\n{machine(record)}\n"


def stages(path: Path) -> str:
    """A file of `detops bench inference` as a Markdown table, with the machine beneath."""
    record = json.loads(path.read_text())
    columns = list(record["sizes"][0]["rows"][0]["columns"])
    rows = [["milliseconds", *columns, "speed-up"], ["---", *["--:"] * (len(columns) + 1)]]
    for entry in record["sizes"]:
        first = entry["rows"][0]["columns"]["total"]
        for row in entry["rows"]:
            times = [number(row["columns"][name]) for name in columns]
            name = f"{entry['size']} {row['name']}"
            rows.append([name, *times, f"**{first / row['columns']['total']:.2f}x**"])
    found = "trained weights" if record["trained weights"] else "generated detections"
    return lines(rows) + f"\n\n{found}; {machine(record)}\n"


def lines(rows: list[list[str]]) -> str:
    """Rows as Markdown."""
    return "\n".join("| " + " | ".join(row).strip() + " |" for row in rows)


def machine(record: dict) -> str:
    """Where and when it was measured."""
    env = record["env"]
    name = f"{env['cpu']['threads']} threads of {env['cpu']['model']}"
    if record["device"] == "cuda":
        driver = f", {record['driver']}" if record.get("driver") else ""
        name = f"{env['gpu'][0]['name']}{driver}, triton {env['triton']}"
    return f"{name}; torch {env['torch']}; {record['date'][:10]}"


def filled(text: str) -> str:
    """The text with every marked table made anew."""
    text = STAGES.sub(lambda match: match[1] + stages(RESULTS / match[2]) + match[3], text)
    return MARKED.sub(lambda match: match[1] + table(RESULTS / match[2]) + match[3], text)


if __name__ == "__main__":
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page.write_text(filled(page.read_text()))
