"""README and docs: every Python block runs, every link and command exists, every table is that of the results."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = [page for page in sorted(DOCS.rglob("*.md")) if DOCS / "reference" not in page.parents]  # that folder is made
PAGES = [*sorted(ROOT.glob("*.md")), *SITE]


def programs(page: Path) -> list[str]:
    """The Python blocks of a page, each by itself; those of a tutorial are one program."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    return ["".join(blocks)] if page.parent.name == "tutorials" else blocks


BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT).with_suffix('')}-{number}".replace("/", "-"))
    for page in PAGES
    for number, block in enumerate(programs(page))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block: str) -> None:
    exec(compile(block, "block", "exec"), {})


def test_every_page_is_in_the_contents_of_the_site() -> None:
    trees = re.findall(r"```{toctree}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    listed = {line for tree in trees for line in tree.split() if not line.startswith(":")}
    assert {page.relative_to(DOCS).with_suffix("").as_posix() for page in SITE} - {"index"} <= listed


def test_the_readme_has_an_example() -> None:
    assert "```python\n" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        path = (page.parent / target).resolve()
        made = path.parent == DOCS / "reference"  # by `make docs`, which fails where a link leads to none of its pages
        assert target.startswith("https://") or made or path.exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:`|^)make (\w+)", page.read_text(), re.MULTILINE):
        assert target in targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_speed_tables_are_those_of_the_results(page: Path) -> None:
    filled = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))["filled"]
    text = page.read_text()
    assert filled(text) == text
    places, open_places = text.count("<!-- table"), text.count("Not measured on a GPU yet")
    assert text.count("/ floor |") >= places - open_places  # a place for GPUs has a table per device
