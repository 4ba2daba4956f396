"""Write the speed tables of README and docs from the files in benchmarks/results, so that no number is typed by hand.

python benchmarks/tables.py
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
STAGES = re.compile(r"(<!-- stages: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTABLE = 0.1  # a spread from here on is shown: half the interquartile range, relative to the median


def number(value: float) -> str:
    """Format with three digits and no exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def ratio(value: float) -> str:
    """Format with one decimal; below 1 with two, from 100 on with none."""
    return f"{value:.{2 if value < 1 else 1 if value < 100 else 0}f}"


def time(timing: dict) -> str:
    """Format the median, and the spread if it matters."""
    spread = (timing["high"] - timing["low"]) / 2 / timing["median"]
    return number(timing["median"]) + (f" ±{spread:.0%}" if spread >= NOTABLE else "")


def tables(path: Path) -> str:
    """A file of results as a table; for NAME_cuda.json one per device that has been measured, NAME_cuda_DEVICE.json."""
    if not path.stem.endswith("_cuda"):
        return table(path)
    found = sorted(path.parent.glob(f"{path.stem}_*.json"))
    if not found:
        return "Not measured on a GPU yet: `make gpu` does it.\n"
    return "\n".join(gpu_table(file) for file in found)


def gpu_table(path: Path) -> str:
    """A file of `make gpu` as a Markdown table: eager calls, and the same in a CUDA graph, without the host."""
    record = json.loads(path.read_text())
    results = record["results"]
    timed = dict.fromkeys(name for result in results for name in result["timings"])
    baselines = [name for name in timed if name not in ("floor", "ours")]
    graphs = [f"{record['floor']}, graph", "detops, graph", "/ floor"]
    header = ["milliseconds", "detops", *graphs, *(h for b in baselines for h in (b, "speed-up"))]
    rows = [[*header, "MiB", "launches", "waits"]]
    rows.append(["---", *["--:"] * (len(rows[0]) - 1)])
    for result in results:
        row = [result["case"], *(_entry(result[kind], name, time) for kind, name in (
            ("timings", "ours"), ("graph", "floor"), ("graph", "ours")))]  # fmt: skip
        row.append(_entry(result["ratios"], "graph: ours / floor", ratio))
        for name in baselines:
            factor = _entry(result["ratios"], f"{name} / ours", ratio)
            row += [_entry(result["timings"], name, time), f"**{factor}x**" if factor else ""]
        row.append(_entry(result["peak_extra_bytes"], "ours", lambda peak: f"{peak / 2**20:.1f}"))
        rows.append([*row, *(_entry(result[kind], "ours", str) for kind in ("launches", "syncs"))])
    return f"{lines(rows)}\n\n{machine(record)}\n"


def _entry(values: dict, name: str, text: Callable) -> str:
    """One of the values as text; nothing where it could not be measured."""
    return text(values[name]) if name in values else ""


def table(path: Path) -> str:
    """Write a file of results as a Markdown table, with the machine beneath; older files have no launches."""
    record = json.loads(path.read_text())
    results = record["results"]
    timed = dict.fromkeys(name for result in results for name in result["timings"])
    baselines = [name for name in timed if name not in ("floor", "ours")]  # a case may lack one
    sides = {"ours": "detops", **{name: name for name in baselines}}
    header = ["milliseconds", record["floor"], "detops", "/ floor", *(h for b in baselines for h in (b, "speed-up"))]
    header += [f"{label} MiB" for label in sides.values()]
    launches = all("launches" in result for result in results)
    if launches:
        header += [f"{label} launches" for label in sides.values()]
    rows = [header, ["---", *["--:"] * (len(header) - 1)]]
    for result in results:
        times = {name: time(timing) for name, timing in result["timings"].items()}
        row = [result["case"], times["floor"], times["ours"], ratio(result["ratios"]["ours / floor"])]
        for name in baselines:
            row += [times[name], f"**{ratio(result['ratios'][f'{name} / ours'])}x**"] if name in times else ["", ""]
        peaks = result["peak_extra_bytes"]
        row += [f"{peaks[name] / 2**20:.1f}" if name in peaks else "" for name in sides]
        if launches:
            row += [str(result["launches"].get(name, "")) for name in sides]
        rows.append(row)
    text = lines(rows)
    spread = f"±: half the interquartile range, from {NOTABLE:.0%} on; " if "±" in text else ""
    return f"{text}\n\n{spread}{machine(record)}\n"


def stages(path: Path) -> str:
    """Write a file of `detops bench inference` as a Markdown table, with the machine beneath."""
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
    """Write rows as Markdown."""
    return "\n".join("| " + " | ".join(row).strip() + " |" for row in rows)


def machine(record: dict) -> str:
    """Write where, when and, if known, at which commit the results were measured."""
    env = record["env"]
    name = f"{env['cpu']['threads']} threads of {env['cpu']['model']}"
    if record["device"] == "cuda":
        driver = f", {record['driver']}" if record.get("driver") else ""
        gpu = record["gpu"] if "gpu" in record else env["gpu"][0]
        name = f"{gpu['name']}{driver}, triton {env['triton']}"
    commit = f"; {record['commit']['hash'][:9]}" if record.get("commit") else ""
    return f"{name}; torch {env['torch']}; {record['date'][:10]}{commit}"


def filled(text: str) -> str:
    """Return the text with every marked table written anew."""
    text = STAGES.sub(lambda match: match[1] + stages(RESULTS / match[2]) + match[3], text)
    return MARKED.sub(lambda match: match[1] + tables(RESULTS / match[2]) + match[3], text)


if __name__ == "__main__":
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page.write_text(filled(page.read_text()))
